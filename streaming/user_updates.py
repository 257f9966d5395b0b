"""What user events do: they change histories, and clicks count for the placement where they happened. A history is a set, so
redelivery is harmless; a click counts when it is new there.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from baguni.events import Event, MalformedEvent, UserEvents
from baguni.history import Action, Cancellation, Change, Deletion, HistoryEvent
from baguni.history_store import Applied, HistoryWriter, Outcome
from baguni.placements import PlacementWriter
from streaming.metrics import Metrics

KINDS: dict[object, str] = {
    **{action: action.name.lower() for action in Action},
    Cancellation: "cancelled",
    Deletion: "deleted",
}
FAR_MS = 1 << 62
BATCH_EVENTS = 400  # that Redis works on while as many are parsed


class UserUpdates:
    """Applies batches of user events to the history store."""

    def __init__(self, writer: HistoryWriter, placements: PlacementWriter, metrics: Metrics) -> None:
        self._writer, self._placements = writer, placements
        self._lag_s = {kind: metrics.visible_lag_s.labels(name) for kind, name in KINDS.items()}
        self._outcomes = {outcome: metrics.changes.labels(outcome.name.lower()) for outcome in Outcome}
        self._observe_bytes = metrics.history_bytes.observe

    def apply(self, events: Iterable[Event]) -> list[tuple[int, MalformedEvent]]:
        """A round trip to Redis for some hundred events, while the next are parsed, and one more for clicks at placements.
        Raises UnavailableError if Redis is away; nothing is lost by trying again, but a click's count for its placement may
        be."""
        rejected: list[tuple[int, MalformedEvent]] = []
        batches: deque[_Batch] = deque()
        for applied in self._writer.apply_each(_batches(events, batches, rejected)):
            batch = batches.popleft()
            self._count(batch.clicks, applied)
            self._measure(batch.events, applied)
        return rejected

    def _count(self, clicks: Sequence[tuple[UserEvents, int]], applied: Mapping[str, Applied]) -> None:
        """Count the clicks that are new in their histories."""
        new: dict[str, list[tuple[str, int]]] = {}
        for event, position in clicks:
            if applied[event.user_id].outcomes[position] in (Outcome.NEW, Outcome.LATE):
                clicked = [
                    (change.item_id, change.time_ms) for change in event.changes if isinstance(change, HistoryEvent)
                ]
                new.setdefault(event.placement, []).extend(clicked)
        if new:
            self._placements.count(new)

    def _measure(self, events: Sequence[UserEvents], applied: Mapping[str, Applied]) -> None:
        """Outcomes are counted one by one; of lags and sizes a batch tells the largest, which is a histogram that is never too
        kind, at a tenth of the time."""
        now_ms = time.time() * 1000
        letters = b"".join([theirs.letters for theirs in applied.values()])
        for outcome, counter in self._outcomes.items():
            counter.inc(letters.count(outcome))
        largest = max([theirs.size for theirs in applied.values()], default=0)
        if largest:
            self._observe_bytes(largest)
        oldest: dict[object, int] = {}
        for event in events:
            first = event.changes[0]
            kind = first.action if isinstance(first, HistoryEvent) else type(first)
            if first.time_ms < oldest.get(kind, FAR_MS):
                oldest[kind] = first.time_ms
        for what, time_ms in oldest.items():
            self._lag_s[what].observe(max(now_ms - time_ms, 0.0) / 1000)


@dataclass
class _Batch:
    """Events of one round trip, and which of them are clicks at a placement, at which position among their user's changes."""

    events: list[UserEvents]
    clicks: list[tuple[UserEvents, int]] = field(default_factory=list)


def _batches(
    events: Iterable[Event], batches: deque[_Batch], rejected: list[tuple[int, MalformedEvent]]
) -> Iterator[Mapping[str, Sequence[Change]]]:
    """The changes of a batch after the other; the batches themselves go to `batches`."""
    numbered = enumerate(events)
    while some := list(islice(numbered, BATCH_EVENTS)):
        batch = _Batch([])
        changes: dict[str, list[Change]] = {}
        for position, event in some:
            if not isinstance(event, UserEvents):
                rejected.append((position, MalformedEvent("wrong_topic", "an item event on a user topic")))
                continue
            theirs = changes.setdefault(event.user_id, [])
            if event.placement:
                batch.clicks.append((event, len(theirs)))
            theirs += event.changes
            batch.events.append(event)
        batches.append(batch)
        yield changes
