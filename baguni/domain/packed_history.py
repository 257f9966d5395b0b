"""How a history lies in Redis: a head of fixed length, then a stream of msgpack, which Redis' Lua reads and writes too.

    head     version, number of events, max_events: 4 bytes each; newest time, deletion's time: 8 bytes each; big endian
    stream   gap_ms, action, content, gap_ms, action, content, ...

Gaps are those between one change and the next, the first from 0. Content is an item, of an order a list of the order and
its items, of a cancellation the order. An id that is a decimal number of at most 15 digits is stored as one: exact in the
doubles of Lua, and half as long. More than the newest `max_events` may be there: never less.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from itertools import repeat
from operator import attrgetter
from struct import Struct
from typing import Any, NamedTuple, cast

import msgpack

from baguni.domain.errors import BaguniError
from baguni.domain.history import (
    CLOCK_SKEW_MS,
    LATEST_TIME_MS,
    Action,
    Cancellation,
    Change,
    History,
    HistoryEvent,
    in_force,
)

VERSION_BYTES = 4
_HEAD = Struct(">IIIQQ")
CANCELLED, DELETED = 4, 5  # beside the numbers of Action
MAX_NUMBER_LENGTH = 15
_ACTIONS = (None, *Action)
_sort_key = attrgetter("sort_key")


class DamagedHistoryError(BaguniError):
    """A stored value is no history."""


class PackedChanges(NamedTuple):
    """Changes of one history as Redis gets them, [time_ms, action, content, ...]; `first` has the position of the first of each
    that counts as one: the lines of an order do."""

    flat: list[Any]
    first: list[int]

    def pieces(self, most: int) -> Iterator[tuple[list[Any], int]]:
        """Split the changes, in order; yields pieces of at most `most` lines. An order with more is a piece of its own."""
        start = lines = 0
        for place in range(0, len(self.flat), 3):
            content = self.flat[place + 2]
            size = len(content) - 1 if isinstance(content, list) else 1
            if lines and lines + size > most:
                yield self.flat[start:place], lines
                start, lines = place, 0
            lines += size
        yield self.flat[start:], lines


def pack_changes(changes: Sequence[Change], max_events: int) -> PackedChanges:
    """Ready for msgpack, with one entry for adjacent lines of an order. Of an order with more lines than a history keeps, those
    are left that it would keep."""
    flat: list[Any] = []
    first: list[int] = []
    order: tuple[str, int] | None = None
    for position, change in enumerate(changes):
        if isinstance(change, HistoryEvent):
            item = _id(change.item_id)
            if change.action is Action.ORDERED:
                if order == (change.order_id, change.time_ms):
                    flat[-1].append(item)
                    continue
                order = (change.order_id, change.time_ms)
                flat += (change.time_ms, 1, [_id(change.order_id), item])
            else:
                order = None
                flat += (change.time_ms, int(change.action), item)
        elif isinstance(change, Cancellation):
            order = None
            flat += (change.time_ms, CANCELLED, _id(change.order_id))
        else:
            order = None
            flat += (change.time_ms, DELETED, 0)
        first.append(position)
    for content in flat[2::3]:
        if isinstance(content, list) and len(content) > max_events + 1:
            content[1:] = sorted(set(content[1:]), key=str)[-max_events:]
    return PackedChanges(flat, first)


def unpack_history(value: bytes | None) -> History:
    """Return what is stored as a history. Raises DamagedHistoryError if it is none."""
    if not value:
        return History()
    try:
        return _unpacked(value)
    except (ValueError, TypeError, IndexError, OverflowError, struct.error, msgpack.UnpackException) as error:
        raise DamagedHistoryError(f"{len(value)} bytes are no history: {type(error).__name__} {error}") from error


def _unpacked(value: bytes) -> History:
    version, _, max_events, _, deleted_ms = _HEAD.unpack_from(value)
    stream = msgpack.Unpacker(max_buffer_size=0)
    stream.feed(memoryview(value)[_HEAD.size :])
    events: list[HistoryEvent] = []
    cancellations: list[Cancellation] = []
    orders: set[str] = set()
    num_orders, time_ms, is_sorted = 0, 0, True
    for gap_ms, action, content in zip(stream, stream, stream, strict=True):
        if type(gap_ms) is not int or gap_ms < 0 or type(action) is not int or not 1 <= action <= CANCELLED:
            raise ValueError(f"an entry has the gap {gap_ms!r} and the action {action!r}")
        if isinstance(content, list) != (action == Action.ORDERED) or not isinstance(content, list | str | int):
            raise ValueError(f"an entry of action {action} has the content {content!r}"[:200])
        is_sorted = is_sorted and gap_ms > 0
        time_ms += gap_ms
        if action == Action.ORDERED:
            order_id, *items = cast("list[Any]", content)
            order_id = str(order_id)
            orders.add(order_id)
            num_orders += 1
            lines = sorted(map(str, items))
            events += map(HistoryEvent, lines, repeat(Action.ORDERED), repeat(time_ms), repeat(order_id))
        elif action == CANCELLED:
            cancellations.append(Cancellation(str(content), time_ms))
        else:
            events.append(HistoryEvent(str(content), _ACTIONS[action], time_ms))
    if time_ms > LATEST_TIME_MS + CLOCK_SKEW_MS:
        raise ValueError(f"the newest event is of {time_ms} ms")
    if not is_sorted:
        events.sort(key=_sort_key)
    if not cancellations and num_orders == len(orders):  # everything is in force
        return History(tuple(events[-max_events:]), version, deleted_ms)
    return History(in_force(events, cancellations, max_events), version, deleted_ms)


def _id(text: str) -> int | str:
    if len(text) <= MAX_NUMBER_LENGTH and text.isdecimal() and text.isascii() and (text[0] != "0" or text == "0"):
        return int(text)
    return text


def unpack_version(value: bytes | None) -> int:
    """The version alone, from the first bytes of what is stored; 0 where nothing is."""
    return int.from_bytes(value[:VERSION_BYTES], "big") if value else 0
