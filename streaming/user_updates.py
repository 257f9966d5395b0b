"""Apply user events: they change histories, clicks count for the placement where they happened, events that name the page that
led to them count for it, and a deletion adds its user to the list of those to forget. A history is a set, so redelivery is
harmless; an event counts when it is new there.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from baguni.domain.events import Event, MalformedEvent, UserEvents
from baguni.domain.history import Action, Cancellation, Change, Deletion, HistoryEvent
from baguni.stores.forgotten import ForgottenUsers
from baguni.stores.history_store import Applied, HistoryWriter, Outcome
from baguni.stores.placements import PlacementWriter
from streaming.attribution import Attribution
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

    def __init__(
        self,
        writer: HistoryWriter,
        placements: PlacementWriter,
        forgotten: ForgottenUsers,
        metrics: Metrics,
        attribution: Attribution,
    ) -> None:
        self._writer, self._placements, self._attribution = writer, placements, attribution
        self._forgotten, self._metrics = forgotten, metrics
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
            self._note(batch, applied)
            self._count([event for event, position in batch.counted if _is_new(event, applied, position)])
            if deleted := _deletions(
                batch.events
            ):  # whatever became of it: a process may have been killed before it noted it
                self._forgotten.note(deleted)
            self._measure(batch.events, applied)
        return rejected

    def _note(self, batch: _Batch, applied: Mapping[str, Applied]) -> None:
        """Count what was not taken as it came."""
        most = self._writer.max_events
        if cut := sum(len(event.changes) > most for event in batch.events):
            self._metrics.cut_orders.inc(cut)
        if damaged := sum(theirs.was_damaged for theirs in applied.values()):
            self._metrics.damaged_histories.inc(damaged)

    def _count(self, events: Sequence[UserEvents]) -> None:
        """Count for placements and pages what is new in histories."""
        clicked: dict[str, list[tuple[str, int]]] = {}
        for event in events:
            if event.exposure_token:
                self._attribution.count(event)
            if event.placement:
                clicked.setdefault(event.placement, []).extend(
                    (change.item_id, change.time_ms) for change in event.changes if isinstance(change, HistoryEvent)
                )
        if clicked:
            # Refused counts as unavailable, since placements are everybody's.
            self._metrics.left_out_clicks.inc(self._placements.count(clicked))

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
    """Events of one round trip, and which of them count for a placement or a page, at which position among their user's
    changes."""

    events: list[UserEvents]
    counted: list[tuple[UserEvents, int]] = field(default_factory=list)


def _deletions(events: Iterable[UserEvents]) -> dict[str, int]:
    """Return the users who asked to be forgotten, each with the time of the latest deletion in ms."""
    found: dict[str, int] = {}
    for event in events:
        if isinstance(event.changes[-1], Deletion):
            found[event.user_id] = max(found.get(event.user_id, 0), event.changes[-1].time_ms)
    return found


def _is_new(event: UserEvents, applied: Mapping[str, Applied], position: int) -> bool:
    return applied[event.user_id].outcomes.get(position) in (Outcome.NEW, Outcome.LATE)


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
            if event.placement or event.exposure_token:
                batch.counted.append((event, len(theirs)))
            theirs += event.changes
            batch.events.append(event)
        batches.append(batch)
        yield changes
