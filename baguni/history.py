"""A user's history: the newest events, raw, as a set.

Because a history is the newest `max_events` of a *set* of events under one total order, adding events is associative,
commutative and idempotent: any delivery order with any redelivery gives the same history as a batch build. What the
model makes of it (positions, counts, buckets) is in `baguni.sequences` and never stored.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

from baguni.errors import InvalidInputError

MAX_EVENTS = 2048  # a grocery's heaviest 2 % of households order more lines than this in a year


class Action(IntEnum):
    """What a user did with an item; the numbers are those of `baguni.v1.Action`."""

    ORDERED = 1
    CLICKED = 2
    CARTED = 3


@dataclass(frozen=True, slots=True)
class HistoryEvent:
    """One user did one thing with one item. `time_ms`: UTC, since the epoch. `order_id` is empty unless ORDERED."""

    item_id: str
    action: Action
    time_ms: int
    order_id: str = ""

    @property
    def sort_key(self) -> tuple[int, bytes]:
        """The total order of a history: time, then the event's own bytes, as a Redis sorted set orders its members."""
        return self.time_ms, encode_event(self)


def encode_event(event: HistoryEvent) -> bytes:
    """The event as stored: `time|action|order|item`, with `|` and `%` escaped in the order id.

    >>> encode_event(HistoryEvent("rye", Action.ORDERED, 1_700_000_000_000, "o1"))
    b'1700000000000|1|o1|rye'
    """
    order_id = event.order_id.replace("%", "%25").replace("|", "%7C")
    return f"{event.time_ms}|{int(event.action)}|{order_id}|{event.item_id}".encode()


def decode_event(member: bytes) -> HistoryEvent:
    """Inverse of `encode_event`."""
    time_ms, action, order_id, item_id = member.decode().split("|", 3)
    order_id = order_id.replace("%7C", "|").replace("%25", "%")
    return HistoryEvent(item_id, Action(int(action)), int(time_ms), order_id)


@dataclass(frozen=True)
class History:
    """Events, oldest first, at most `max_events` of them. `version` grows with every change to the stored history."""

    events: tuple[HistoryEvent, ...] = ()
    version: int = 0

    def __len__(self) -> int:
        return len(self.events)


def append(history: History, events: Iterable[HistoryEvent], max_events: int = MAX_EVENTS) -> History:
    """The history with `events` in it. Events already there change nothing, and neither does the order of arrival.

    The version grows by one if the history changed. Raises InvalidInputError if `max_events` < 1.
    """
    if max_events < 1:
        raise InvalidInputError(f"max_events is {max_events}, expected at least 1")
    newest = tuple(sorted({*history.events, *events}, key=lambda event: event.sort_key)[-max_events:])
    return history if newest == history.events else History(newest, history.version + 1)
