"""A register of the gateway's processes and the releases that they have open, kept by the processes: nobody removes a release
that is served. Entries are written, read and removed by Redis' clock: those of the machines may differ.
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

from baguni.stores.redis_client import connect, lua, shared_redis_errors

KEY = "baguni:served"  # "RELEASE PROCESS" → until when, in s since 1970 by Redis' clock
TELL_S, VALID_S = 10.0, 60.0
LONGEST_S = 86_400.0
_KEPT = ":kept"  # ends the name of a process that is no gateway
_TELL = lua("baguni.stores", "tell_served")
_READ = lua("baguni.stores", "read_served")


def process_name() -> str:
    """Return the name of this process, which no other has."""
    return f"{socket.gethostname()}:{os.getpid()}"


class ServedTeller:
    """Tells what one process holds open. `process`: its `process_name`."""

    def __init__(self, client: redis.asyncio.Redis, process: str) -> None:
        self._tell, self._process = client.register_script(_TELL), process
        self._told: frozenset[str] = frozenset()
        self._next = 0.0

    async def tell(self, release_ids: Collection[str]) -> None:
        """Note that the process has these releases open, and no others; repeated every TELL_S. Raises UnavailableError."""
        named = frozenset(release_ids)
        if named == self._told and time.monotonic() < self._next:
            return
        removed, present = ([self._member(each) for each in ids] for ids in (self._told - named, named))
        with shared_redis_errors():
            await self._tell(keys=[KEY], args=[VALID_S, len(removed), *removed, *present])
        self._told, self._next = named, time.monotonic() + TELL_S

    def _member(self, release_id: str) -> str:
        return f"{release_id} {self._process}"


def keeper_name() -> str:
    """Return the name under which `kept_open` notes what this process needs."""
    return f"{process_name()}{_KEPT}"


@contextmanager
def kept_open(redis_url: str, release_id: str) -> Iterator[None]:
    """Count the release as served while the body runs, for at most LONGEST_S: a replay needs its models and collections."""
    member = f"{release_id} {keeper_name()}"
    with closing(connect(redis_url)) as client:
        with shared_redis_errors():
            client.register_script(_TELL)(keys=[KEY], args=[LONGEST_S, 0, member])
        try:
            yield
        finally:
            with shared_redis_errors():
                client.zrem(KEY, member)


def served(client: redis.Redis, besides: str = "") -> set[str]:
    """Return the releases that some process has open, other than the one of the name `besides`. Raises UnavailableError."""
    return {release_id for release_id, process in _members(client) if process != besides}


def processes(client: redis.Redis) -> set[str]:
    """Return the names of the gateway's processes that run, or that ran less than VALID_S ago. Raises UnavailableError."""
    return {process for _, process in _members(client) if not process.endswith(_KEPT)}


def _members(client: redis.Redis) -> list[tuple[str, str]]:
    with shared_redis_errors():
        found = cast("list[bytes]", client.register_script(_READ)(keys=[KEY]))
    return [(release_id, process) for release_id, _, process in (member.decode().partition(" ") for member in found)]
