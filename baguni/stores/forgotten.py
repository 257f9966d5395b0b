"""The list of users who asked to be forgotten, in Redis: user consumers add to it, and every process that remembers users
follows it.

A history has its own tombstone. This list is for everything else: caches, captured requests, prepared lists. An entry
expires after KEPT_S, because what a process remembers for longer than that must expire by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, cast

import redis
import redis.asyncio

from baguni.stores.redis_client import lua, shared_redis_errors
from baguni.stores.served import processes

KEY = "baguni:forgotten"  # user id → position, about the ms since 1970 by Redis' clock; later ones are larger
_READ_KEY = "baguni:forgotten:read:"  # and a process: the position up to which it has forgotten
KEPT_S = 30 * 86_400
READ_KEPT_S = 3_600  # of a process; longer than it may be silent
AT_ONCE = 5_000

_NOTE = lua("baguni.stores", "note_forgotten")


class Entry(NamedTuple):
    """A user to forget. `position` grows from entry to entry."""

    user_id: str
    position: int


class ForgottenUsers:
    """Adds and reads entries; for synchronous processes. Every call raises UnavailableError if Redis does not answer."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._note = client.register_script(_NOTE)

    def note(self, user_ids: Iterable[str]) -> None:
        """Add users. One who is there already gets a later position."""
        ids = list(user_ids)
        with shared_redis_errors():
            for start in range(0, len(ids), AT_ONCE):
                self._note(keys=[KEY], args=[KEPT_S * 1000, *ids[start : start + AT_ONCE]])

    def since(self, position: int) -> list[Entry]:
        """Return the entries after a position, in order; at most AT_ONCE, so ask again."""
        with shared_redis_errors():
            reply = self._client.zrangebyscore(KEY, f"({position}", "+inf", 0, AT_ONCE, withscores=True)
        return _entries(cast("list[tuple[bytes, float]]", reply))

    def position_of(self, user_id: str) -> int | None:
        """Return the position of a user, None if there is no entry."""
        with shared_redis_errors():
            position = self._client.zscore(KEY, user_id)
        return None if position is None else int(position)

    def not_yet(self, position: int) -> list[str]:
        """Return the gateway processes that have not forgotten up to a position."""
        running = sorted(processes(self._client))
        with shared_redis_errors():
            read = cast(
                "list[bytes | None]", self._client.mget([_READ_KEY + name for name in running]) if running else []
            )
        return [name for name, until in zip(running, read, strict=True) if until is None or int(until) < position]


class ForgottenFollower:
    """Reads entries for one process of the gateway, which is asynchronous."""

    def __init__(self, client: redis.asyncio.Redis, process: str) -> None:
        self._client, self._process = client, process
        self._position = 0

    async def new(self) -> list[Entry]:
        """Return the entries since the last call, in order; the first call returns all. Raises UnavailableError."""
        found: list[Entry] = []
        while True:
            with shared_redis_errors():
                reply: Any = await self._client.zrangebyscore(
                    KEY, f"({self._position}", "+inf", 0, AT_ONCE, withscores=True
                )
            entries = _entries(reply)
            self._position = entries[-1].position if entries else self._position
            found += entries
            if len(entries) < AT_ONCE:
                return found

    async def tell(self, position: int) -> None:
        """Note up to where the process has forgotten. Raises UnavailableError."""
        with shared_redis_errors():
            await self._client.set(_READ_KEY + self._process, position, ex=READ_KEPT_S)


def _entries(reply: Sequence[tuple[bytes, float]]) -> list[Entry]:
    return [Entry(member.decode(errors="replace"), int(position)) for member, position in reply]
