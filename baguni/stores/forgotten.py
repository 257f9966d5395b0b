"""The list of users who asked to be forgotten, in Redis: user consumers add to it, and every process that remembers users
follows it.

A history has its own tombstone. This list is for everything else: caches, captured requests, prepared lists. An entry
expires after KEPT_S, because what a process remembers for longer than that must expire by itself.

A deletion may be read again long afterwards, when Redis or the consumer's offsets are lost. It gets no second position while
its entry exists; and an entry contains the time of the deletion, so that what a user who came back has done since is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import redis
import redis.asyncio

from baguni.stores.redis_client import lua, shared_redis_errors
from baguni.stores.served import processes

KEY = "baguni:forgotten"  # user id → position, about the ms since 1970 by Redis' clock; later ones are larger
_TIMES_KEY = "baguni:forgotten:times"  # user id → time of the deletion in ms
_READ_KEY = "baguni:forgotten:read:"  # and a process: the position up to which it has forgotten
KEPT_S = 30 * 86_400
READ_KEPT_S = 3_600  # of a process; longer than it may be silent
AT_ONCE = 5_000
OVERLAP_MS = (
    600_000  # of two readings by one who knows no epoch: what clocks of a primary and its replica may differ by
)
# Until a deletion is applied, lists are still made from what it removes: they go too. A consumer that is later than this has
# been unavailable for a day.
APPLIED_WITHIN_MS = 86_400_000

_NOTE = lua("baguni.stores", "note_forgotten")
_READ = lua("baguni.stores", "read_forgotten")


class Entry(NamedTuple):
    """A user to forget. `position` grows from entry to entry and is about the time when the deletion was applied;
    `deleted_ms` is the deletion's own time."""

    user_id: str
    position: int
    deleted_ms: int

    @property
    def until_ms(self) -> int:
        """Return the time up to which what is stored may contain what was deleted. It is close to the deletion, however much
        later the event was read again."""
        return min(self.position, self.deleted_ms + APPLIED_WITHIN_MS)


class ForgottenUsers:
    """Adds and reads entries; for synchronous processes. Every call raises UnavailableError if Redis does not answer."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._note, self._read = client.register_script(_NOTE), client.register_script(_READ)

    def note(self, deletions: Mapping[str, int]) -> None:
        """Add users: id → time of the deletion in ms. One who is there already gets a later position for a later deletion
        only."""
        users = list(deletions.items())
        with shared_redis_errors():
            for start in range(0, len(users), AT_ONCE):
                pairs = [part for user in users[start : start + AT_ONCE] for part in user]
                self._note(keys=[KEY, _TIMES_KEY], args=[KEPT_S * 1000, *pairs])

    def since(self, position: int) -> list[Entry]:
        """Return the entries after a position, in order; at most AT_ONCE, so ask again. Who keeps a position for longer begins
        OVERLAP_MS before it: after a failover, new entries may have earlier positions."""
        with shared_redis_errors():
            reply = self._read(keys=[KEY, _TIMES_KEY], args=["", position, AT_ONCE])
        return _entries(cast("list[bytes]", reply))

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
        self._read = client.register_script(_READ)
        self._epoch, self._position = "", 0

    async def new(self) -> list[Entry]:
        """Return the entries since the last call, in order; the first call, and the first after a restart or a failover of
        Redis, returns all. Raises UnavailableError."""
        found: list[Entry] = []
        while True:
            with shared_redis_errors():
                reply: Any = await self._read(keys=[KEY, _TIMES_KEY], args=[self._epoch, self._position, AT_ONCE])
            epoch, entries = reply[0].decode(), _entries(reply)
            if epoch != self._epoch:
                self._epoch, self._position = epoch, 0
            self._position = entries[-1].position if entries else self._position
            found += entries
            if len(entries) < AT_ONCE:
                return found

    async def tell(self, position: int) -> None:
        """Note up to where the process has forgotten. Raises UnavailableError."""
        with shared_redis_errors():
            await self._client.set(_READ_KEY + self._process, position, ex=READ_KEPT_S)


def _entries(reply: Sequence[bytes]) -> list[Entry]:
    """Return the entries of a reply, which begins with the epoch."""
    return [
        Entry(user_id.decode(errors="replace"), int(position), int(float(time_ms)))
        for user_id, position, time_ms in zip(reply[1::3], reply[2::3], reply[3::3], strict=True)
    ]
