"""Find and remove what Redis has of a user. Other processes register their own places as entry points `baguni.personal_data`:
functions (user_id, erase) that return what they have, in words, and remove it if `erase` is true. They raise NotSearchedError
if they cannot look.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

import redis

from baguni.domain.errors import BaguniError
from baguni.stores import forgotten
from baguni.stores.history_store import TTL_S, HistoryWriter, is_history, keys_of
from baguni.stores.redis_client import shared_redis_errors

SCANNED = 1_000
# Keys that never have a user's id: of items, offsets, processes. An item or an offset may look like one.
_WITHOUT_USERS = (
    "baguni:{items:",
    "baguni:clicked:",
    "baguni:positions:",
    "baguni:passed:",
    "baguni:lease:",
    "baguni:served",
    forgotten.KEY,
)


class NotSearchedError(BaguniError):
    """A place cannot be searched from here: it is not configured, not mounted, or its code is not installed."""


@dataclass(frozen=True)
class Finding:
    """Something that is stored of a user. `stays`: it is there so that the user stays forgotten."""

    where: str
    what: str
    stays: bool = False


def in_redis(client: redis.Redis, user_id: str, erase: bool) -> list[Finding]:
    """Return everything that Redis has of a user. `erase` removes it, except a history, which its UserDeleted event removes.
    Raises UnavailableError."""
    findings = list(_history(client, user_id))
    with shared_redis_errors():
        position = client.zscore(forgotten.KEY, user_id)
        if position is not None:
            until = datetime.fromtimestamp(position / 1000 + forgotten.KEPT_S, UTC)
            what = f"the note for caches, captured requests and campaigns, until {until:%Y-%m-%d}"
            findings.append(Finding(forgotten.KEY, what, stays=True))
        for key in client.scan_iter("baguni:*", count=SCANNED):
            name = key.decode(errors="replace")
            if is_history(name) or name.startswith(_WITHOUT_USERS):
                continue
            if num := sum(_remove(client, key, part, erase) for part in _parts(client, key) if _names(part, user_id)):
                findings.append(Finding(name, f"{num} entries"))
    return findings


def _history(client: redis.Redis, user_id: str) -> Iterator[Finding]:
    key, damaged = keys_of(user_id)
    (history,) = HistoryWriter(client).read([user_id])
    if history.events:
        yield Finding(key, f"the history: {len(history)} events")
    if history.deleted_ms:
        when = datetime.fromtimestamp(history.deleted_ms / 1000, UTC)
        what = f"that the user was deleted on {when:%Y-%m-%d %H:%M}, for {TTL_S // 86_400} days from the last change"
        yield Finding(key, what, stays=True)
    with shared_redis_errors():
        if client.exists(damaged):
            yield Finding(damaged, "a damaged history")


def _parts(client: redis.Redis, key: bytes) -> Iterator[bytes]:
    """Return what a key holds: values, fields, members."""
    kind = cast("bytes", client.type(key))
    if kind == b"string":
        yield cast("bytes", client.get(key)) or b""
    elif kind == b"list":
        yield from cast("list[bytes]", client.lrange(key, 0, -1))
    elif kind == b"set":
        yield from client.sscan_iter(key, count=SCANNED)
    elif kind == b"zset":
        yield from (member for member, _ in client.zscan_iter(key, count=SCANNED))
    elif kind == b"hash":
        for field, value in cast("Iterator[tuple[bytes, bytes]]", client.hscan_iter(key, count=SCANNED)):
            yield field
            yield value


def _names(part: bytes, user_id: str) -> bool:
    """Return whether a value is the id or has it in quotes, also within JSON."""
    text = part.decode(errors="replace")
    return any(each == user_id or repr(user_id) in each for each in (text, *_strings(text)))


def _strings(text: str) -> Iterator[str]:
    """Return every string of a JSON text, none for other texts."""
    try:
        waiting = [json.loads(text)]
    except (ValueError, RecursionError):
        return
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, list):
            waiting += value
        elif isinstance(value, dict):
            waiting += [*value, *value.values()]


def _remove(client: redis.Redis, key: bytes, part: bytes, erase: bool) -> int:
    """Remove an entry of a list, where texts of errors are: nothing else has a user's id. Returns 1."""
    if erase and cast(Any, client.type(key)) == b"list":
        client.lrem(key, 0, part)  # type: ignore[arg-type]
    return 1
