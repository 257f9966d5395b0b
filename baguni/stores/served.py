"""A register of the gateway's processes and the releases that they have open, kept by the processes: nobody removes a release
that is served.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager
from typing import cast

import redis
import redis.asyncio

from baguni.stores.redis_client import connect, shared_redis_errors

KEY = "baguni:served"  # "RELEASE PROCESS" → until when, in s since 1970
TELL_S, VALID_S = 10.0, 60.0
LONGEST_S = 86_400.0
_KEPT = ":kept"  # ends the name of a process that is no gateway


def process_name() -> str:
    """Return the name of this process, which no other has."""
    return f"{socket.gethostname()}:{os.getpid()}"


class ServedTeller:
    """Tells what one process holds open. `process`: its `process_name`."""

    def __init__(self, client: redis.asyncio.Redis, process: str) -> None:
        self._client, self._process = client, process
        self._told: frozenset[str] = frozenset()
        self._next = 0.0

    async def tell(self, release_ids: Collection[str]) -> None:
        """Note that the process has these releases open, and no others; repeated every TELL_S. Raises UnavailableError."""
        named = frozenset(release_ids)
        if named == self._told and time.monotonic() < self._next:
            return
        with shared_redis_errors():
            if gone := [self._member(release_id) for release_id in self._told - named]:
                await self._client.zrem(KEY, *gone)
            if named:
                until = time.time() + VALID_S
                await self._client.zadd(KEY, {self._member(release_id): until for release_id in named})
            await self._client.zremrangebyscore(KEY, "-inf", time.time())
        self._told, self._next = named, time.monotonic() + TELL_S

    def _member(self, release_id: str) -> str:
        return f"{release_id} {self._process}"


@contextmanager
def kept_open(redis_url: str, release_id: str) -> Iterator[None]:
    """Count the release as served while the body runs, for at most LONGEST_S: a replay needs its models and collections."""
    member = f"{release_id} {process_name()}{_KEPT}"
    with closing(connect(redis_url)) as client:
        with shared_redis_errors():
            client.zadd(KEY, {member: time.time() + LONGEST_S})
        try:
            yield
        finally:
            with shared_redis_errors():
                client.zrem(KEY, member)


def served(client: redis.Redis) -> set[str]:
    """Return the releases that some gateway has open. Raises UnavailableError."""
    return {release_id for release_id, _ in _members(client)}


def processes(client: redis.Redis) -> set[str]:
    """Return the names of the gateway's processes that run, or that ran less than VALID_S ago. Raises UnavailableError."""
    return {process for _, process in _members(client) if not process.endswith(_KEPT)}


def _members(client: redis.Redis) -> list[tuple[str, str]]:
    with shared_redis_errors():
        found = cast("list[bytes]", client.zrangebyscore(KEY, time.time(), "+inf"))
    return [(release_id, process) for release_id, _, process in (member.decode().partition(" ") for member in found)]
