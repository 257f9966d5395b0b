"""What user events do: they change histories, and clicks count for the placement where they happened. A history is a set, so
redelivery is harmless; a click counts when it is new there.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

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


class UserUpdates:
    """Applies batches of user events to the history store."""

    def __init__(self, writer: HistoryWriter, placements: PlacementWriter, metrics: Metrics) -> None:
        self._writer, self._placements = writer, placements
        self._lag_s = {kind: metrics.visible_lag_s.labels(name) for kind, name in KINDS.items()}
        self._outcomes = {outcome: metrics.changes.labels(outcome.name.lower()) for outcome in Outcome}
        self._observe_bytes = metrics.history_bytes.observe

    def apply(self, events: Sequence[Event]) -> list[tuple[int, MalformedEvent]]:
        """One round trip to Redis a batch, and one more for clicks at placements. Raises UnavailableError if Redis is away;
        nothing is lost by trying again, but a click's count for its placement may be."""
        changes: dict[str, list[Change]] = {}
        rejected, clicks = [], []
        for position, event in enumerate(events):
            if not isinstance(event, UserEvents):
                rejected.append((position, MalformedEvent("wrong_topic", "an item event on a user topic")))
                continue
            theirs = changes.setdefault(event.user_id, [])
            if event.placement:
                clicks.append((event, len(theirs)))
            theirs += event.changes
        applied = self._writer.apply(changes) if changes else {}
        self._count(clicks, applied)
        self._measure(events, applied)
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

    def _measure(self, events: Sequence[Event], applied: Mapping[str, Applied]) -> None:
        """Outcomes are counted one by one; of lags and sizes a batch tells the largest, which is a histogram that is never too
        kind, at a tenth of the time."""
        now_ms = time.time() * 1000
        letters = b"".join(theirs.letters for theirs in applied.values())
        for outcome, counter in self._outcomes.items():
            counter.inc(letters.count(outcome))
        largest = max((theirs.size for theirs in applied.values()), default=0)
        if largest:
            self._observe_bytes(largest)
        oldest: dict[object, int] = {}
        for event in events:
            if isinstance(event, UserEvents):
                first = event.changes[0]
                kind = first.action if isinstance(first, HistoryEvent) else type(first)
                if first.time_ms < oldest.get(kind, FAR_MS):
                    oldest[kind] = first.time_ms
        for what, time_ms in oldest.items():
            self._lag_s[what].observe(max(now_ms - time_ms, 0.0) / 1000)
