"""Histories in Redis: one value a user, changed by Lua, a few users in each call.

What is stored holds every event that can be among the newest, so adding is what adding to a set is: an event twice, late, or
in another order changes nothing that it should not. The call merges, forgets what is too old to matter, raises the version
if anything changed, and renews the expiry.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from enum import IntEnum
from typing import Any, NamedTuple, cast

import msgpack
import redis
import redis.asyncio

from baguni.coalescing import Coalescer
from baguni.domain.history import CLOCK_SKEW_MS, MAX_EVENTS, Change, History
from baguni.domain.packed_history import (
    VERSION_BYTES,
    DamagedHistoryError,
    PackedChanges,
    pack_changes,
    unpack_history,
    unpack_version,
)
from baguni.stores.redis_client import REFUSALS, TIMEOUT_S, lua, redis_errors

log = logging.getLogger(__name__)

TTL_S = 400 * 86_400  # a user who comes back within a year is known; longer than any topic keeps events
_PREFIX, _SUFFIX = "baguni:{", "}:h"  # braces: a cluster keeps a user's keys in one slot
_KEY = f"{_PREFIX}%s{_SUFFIX}"
_DAMAGED = ":damaged"
_SCAN = 1_000
# In a call Redis answers nobody else. Changes are a millisecond or two; stored histories that have to be merged more.
USERS_A_CALL, LINES_A_CALL = 8, 512
READS_A_CALL, NUM_RUNNING = 32, 2  # two, so that a connection that hangs does not stop the others

_APPLY = lua("baguni.stores", "apply_history")


def keys_of(user_id: str) -> tuple[str, str]:
    """Return the Redis keys of a user's history, and of a damaged one that was set aside."""
    key = _KEY % user_id
    return key, key + _DAMAGED


def is_history(key: str) -> bool:
    """Return whether a Redis key is that of a history, or of a damaged one."""
    return key.startswith(_PREFIX) and key.removesuffix(_DAMAGED).endswith(_SUFFIX)


class Outcome(IntEnum):
    """Result of a change: the letters of the script's reply."""

    NEW = ord("n")
    LATE = ord("l")  # new, and older than what was there
    DUPLICATE = ord("d")
    FORGOTTEN = ord("f")  # it is older than the deletion of its user


class Applied(NamedTuple):
    """A history's version, what became of its changes, and the bytes that were written, 0 if nothing changed. `was_damaged`:
    what was stored could not be read and was set aside."""

    version: int
    letters: bytes
    size: int
    was_damaged: bool
    first: Sequence[int]

    @property
    def outcomes(self) -> dict[int, Outcome]:
        """Outcomes by the position of the change; the adjacent lines of an order have one, at the position of the first."""
        return dict(zip(self.first, map(Outcome, self.letters), strict=True))


class HistoryWriter:
    """Applies changes; for the consumer, which is synchronous."""

    def __init__(self, client: redis.Redis, max_events: int = MAX_EVENTS, ttl_s: int = TTL_S) -> None:
        self._client = client
        self._apply = client.register_script(_APPLY)
        self.max_events, self._ttl_s = max_events, ttl_s

    def apply(self, changes: Mapping[str, Sequence[Change]]) -> dict[str, Applied]:
        """Change users' histories in one round trip. Safe to repeat. Raises UnavailableError."""
        return self._send(self._packed(changes))

    def apply_each(self, batches: Iterable[Mapping[str, Sequence[Change]]]) -> Iterator[dict[str, Applied]]:
        """The same for one batch after the other. While Redis works on one, the next is taken from `batches`."""
        with ThreadPoolExecutor(1) as redis_thread:
            before: Future[dict[str, Applied]] | None = None
            for changes in batches:
                sent = redis_thread.submit(self._send, self._packed(changes))
                if before is not None:
                    yield before.result()
                before = sent
            if before is not None:
                yield before.result()

    def _packed(self, changes: Mapping[str, Sequence[Change]]) -> list[tuple[str, PackedChanges]]:
        return [(user_id, pack_changes(theirs, self.max_events)) for user_id, theirs in changes.items()]

    def _send(self, packed: Sequence[tuple[str, PackedChanges]]) -> dict[str, Applied]:
        limits = (self.max_events, self._ttl_s, int(time.time()), CLOCK_SKEW_MS)
        with redis_errors():
            pipeline = self._client.pipeline(transaction=False)
            pieces = []
            for some in _calls(packed):
                arguments = (*limits, msgpack.packb([flat for _, flat in some]))
                self._apply(keys=[_KEY % user_id for user_id, _ in some], args=arguments, client=pipeline)
                pieces += some
            replies = [reply for some in pipeline.execute() for reply in some]
        applied = {user_id: Applied(0, b"", 0, False, theirs.first) for user_id, theirs in packed}
        for (user_id, _), (version, letters, size, was_damaged) in zip(pieces, replies, strict=True):
            before = applied[user_id]
            applied[user_id] = Applied(
                version,
                before.letters + letters,
                size or before.size,
                before.was_damaged or bool(was_damaged),
                before.first,
            )
            if was_damaged:
                log.error("a history was damaged: set aside, begun anew key=%r", _KEY % user_id + _DAMAGED)
        return applied

    def read(self, user_ids: Sequence[str]) -> list[History]:
        """Histories in the order of `user_ids`, in one round trip; a user without one has an empty history."""
        with redis_errors():
            values = cast("list[bytes | None]", self._client.mget([_KEY % user_id for user_id in user_ids]))
        return [_unpacked(user_id, value) for user_id, value in zip(user_ids, values, strict=True)]

    def user_ids(self) -> Iterator[str]:
        """Everybody of whom something is stored, a tombstone included, in no order; those who come or go meanwhile may be
        among them or not."""
        with redis_errors():
            for key in self._client.scan_iter(_PREFIX + "*" + _SUFFIX, count=_SCAN):
                yield key.decode().removeprefix(_PREFIX).removesuffix(_SUFFIX)

    def drop(self, user_ids: Sequence[str]) -> None:
        """Remove what is stored, without a tombstone: events that come again are taken again."""
        with redis_errors():
            if user_ids:
                keys = [_KEY % user_id for user_id in user_ids]
                self._client.unlink(*keys, *(key + _DAMAGED for key in keys))


def _calls(packed: Sequence[tuple[str, PackedChanges]]) -> Iterator[list[tuple[str, list[Any]]]]:
    """Split the changes of users into calls that Redis answers quickly; a user with many changes is in several."""
    call: list[tuple[str, list[Any]]] = []
    lines = 0
    for user_id, theirs in packed:
        for flat, size in theirs.pieces(LINES_A_CALL):
            if call and (lines + size > LINES_A_CALL or len(call) >= USERS_A_CALL):
                yield call
                call, lines = [], 0
            call.append((user_id, flat))
            lines += size
    if call:
        yield call


def _unpacked(user_id: str, value: bytes | None) -> History:
    """A stored history, empty if it cannot be read: the next event sets it aside, and `baguni histories` can rebuild it."""
    try:
        return unpack_history(value)
    except DamagedHistoryError as error:
        log.error("a history is damaged: read as empty key=%r error=%s", _KEY % user_id, error)
        return History()


class Asked(NamedTuple):
    """A user, and the version of the history that the reader has."""

    user_id: str
    version: int | None


class HistoryReader:
    """Read histories; for the gateway, which is asynchronous. Reads that wait at the same time are one round trip."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._client = client
        self._coalescer: Coalescer[None, Asked, History | None] = Coalescer(
            "redis", self._read_newer, READS_A_CALL, NUM_RUNNING
        )

    async def read_newer(self, user_id: str, version: int | None, timeout_s: float = TIMEOUT_S) -> History | None:
        """Return a user's history, or None if the stored version is still `version`. Raises UnavailableError, at the latest
        after `timeout_s`."""
        return await self._coalescer.call(None, Asked(user_id, version), timeout_s)

    async def read(self, user_ids: Sequence[str]) -> list[History]:
        """Return histories in the order of `user_ids`, in one round trip; a user without one has an empty history."""
        with redis_errors():
            values = cast("list[bytes | None]", await self._client.mget([_KEY % user_id for user_id in user_ids]))
        return [_unpacked(user_id, value) for user_id, value in zip(user_ids, values, strict=True)]

    async def close(self) -> None:
        """Cancel what waits."""
        await self._coalescer.close()

    async def _read_newer(self, key: None, asked: Sequence[Asked], timeout_s: float) -> list[History | None]:
        """Answer several readers; each waits as long as it wants, so `timeout_s` has no use here."""
        unchanged = await self._unchanged([each for each in asked if each.version is not None])
        wanted = dict.fromkeys(each.user_id for each in asked if each not in unchanged)
        found = dict(zip(wanted, await self.read(list(wanted)) if wanted else (), strict=True))
        return [None if each in unchanged else found[each.user_id] for each in asked]

    async def _unchanged(self, asked: Sequence[Asked]) -> set[Asked]:
        """Return those whose stored version is the one that they have. A key of another type has none: `read` finds nothing."""
        if not asked:
            return set()
        with redis_errors():
            pipeline = self._client.pipeline(transaction=False)
            for each in asked:
                pipeline.getrange(_KEY % each.user_id, 0, VERSION_BYTES - 1)
            replies = await pipeline.execute(raise_on_error=False)
            for reply in replies:
                if isinstance(reply, Exception) and not (
                    isinstance(reply, redis.ResponseError) and REFUSALS.search(str(reply))
                ):
                    raise reply
        return {
            each
            for each, reply in zip(asked, replies, strict=True)
            if isinstance(reply, bytes) and unpack_version(reply) == each.version
        }
