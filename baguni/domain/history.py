"""A user's history: the newest events, raw, as a set.

Because a history is the newest `max_events` of a *set* of events under one total order, adding events is associative,
commutative and idempotent: any delivery order with any redelivery gives the same history as a batch build. What takes
something away again, a cancellation or a deletion, is a member of the set too, so that it may come before what it is about.
What the model makes of a history (positions, counts, buckets) is in `baguni.domain.sequences` and never stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import NamedTuple

from baguni.domain.errors import InvalidInputError

MAX_EVENTS = 2048  # a grocery's heaviest 2 % of households order more lines than this in a year
LATEST_TIME_MS = 253_402_300_799_999  # the end of the year 9999, where google.protobuf.Timestamp ends
CLOCK_SKEW_MS = 86_400_000  # how much earlier than its order a cancellation may seem to be


class Action(IntEnum):
    """An action of a user on an item; the numbers are those of `baguni.v1.Action`."""

    ORDERED = 1
    CLICKED = 2
    CARTED = 3


class HistoryEvent(NamedTuple):
    """One user did one thing with one item. `time_ms`: UTC, since the epoch. `order_id` is empty unless ORDERED."""

    item_id: str
    action: Action
    time_ms: int
    order_id: str = ""

    @property
    def sort_key(self) -> tuple[int, int, str, str]:
        """The total order of a history."""
        return self.time_ms, self.action, self.order_id, self.item_id


@dataclass(frozen=True, slots=True)
class Cancellation:
    """An order that is none any more: its lines leave the history, whenever they come."""

    order_id: str
    time_ms: int


@dataclass(frozen=True, slots=True)
class Deletion:
    """A deletion of all events up to this moment, also of those that arrive later."""

    time_ms: int


Change = HistoryEvent | Cancellation | Deletion
"""What can happen to a history."""


@dataclass(frozen=True)
class History:
    """Events, oldest first, at most `max_events` of them. `version` grows with every change to the stored history;
    `deleted_ms` is when the user last asked to be forgotten, 0 for never."""

    events: tuple[HistoryEvent, ...] = ()
    version: int = 0
    deleted_ms: int = 0

    def __len__(self) -> int:
        return len(self.events)

    def as_of(self, now_ms: int) -> History:
        """Return the history as it was at a moment, so that all pages of a list are made from one history."""
        if not self.events or self.events[-1].time_ms <= now_ms:
            return self
        return replace(self, events=tuple(event for event in self.events if event.time_ms <= now_ms))


def build(changes: Iterable[Change], max_events: int = MAX_EVENTS) -> tuple[HistoryEvent, ...]:
    """The events of a history, from all that ever happened to it in any order and number.

    What was deleted is gone; of the rest the newest `max_events` are kept, and as many cancellations; then what is not in force
    leaves. Raises InvalidInputError if `max_events` < 1.
    """
    if max_events < 1:
        raise InvalidInputError(f"max_events is {max_events}, expected at least 1")
    distinct = set(changes)
    deleted_ms = max((change.time_ms for change in distinct if isinstance(change, Deletion)), default=-1)
    left = [change for change in distinct if change.time_ms > deleted_ms]
    events = sorted((c for c in left if isinstance(c, HistoryEvent)), key=lambda event: event.sort_key)
    return in_force(events, [c for c in left if isinstance(c, Cancellation)], max_events)


def in_force(
    events: Sequence[HistoryEvent], cancellations: Sequence[Cancellation], max_events: int
) -> tuple[HistoryEvent, ...]:
    """Return those of the newest `max_events` events that are in force.

    An order that was sent again with a later time replaces the one before. Lines of cancelled orders leave; the newest
    `max_events` cancellations count. One is of no use to an order that is more than CLOCK_SKEW_MS younger: that is what lets it
    be dropped with the events of its time.

    events: oldest first
    """
    events = events[-max_events:]
    latest = {
        event.order_id: event.time_ms for event in events if event.action is Action.ORDERED
    }  # the last one counts
    cancelled: dict[str, int] = {}
    if cancellations:
        newest = sorted(cancellations, key=lambda cancellation: (cancellation.time_ms, cancellation.order_id))
        cancelled = {cancellation.order_id: cancellation.time_ms for cancellation in newest[-max_events:]}
    return tuple(
        event
        for event in events
        if event.action is not Action.ORDERED
        or (
            event.time_ms == latest[event.order_id]
            and event.time_ms > cancelled.get(event.order_id, -CLOCK_SKEW_MS - 1) + CLOCK_SKEW_MS
        )
    )
