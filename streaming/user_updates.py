"""What user events do: they join histories, and clicks count for the placement where they happened. Adding to a set twice
adds once, so redelivery is harmless.
"""

from __future__ import annotations

from collections.abc import Sequence

from baguni.events import Event, MalformedEvent, UserEvents
from baguni.history import HistoryEvent
from baguni.history_store import HistoryWriter
from baguni.placements import PlacementWriter


def by_user(events: Sequence[Event]) -> tuple[dict[str, list[HistoryEvent]], list[tuple[int, MalformedEvent]]]:
    """History events of each user, and the events that are no user's."""
    grouped: dict[str, list[HistoryEvent]] = {}
    rejected = []
    for position, event in enumerate(events):
        if isinstance(event, UserEvents):
            grouped.setdefault(event.user_id, []).extend(event.events)
        else:
            rejected.append((position, MalformedEvent("wrong_topic", "an item event on a user topic")))
    return grouped, rejected


def by_placement(events: Sequence[Event]) -> dict[str, list[tuple[str, int]]]:
    """(item id, time in ms) of the clicks at each placement."""
    grouped: dict[str, list[tuple[str, int]]] = {}
    for event in events:
        if isinstance(event, UserEvents) and event.placement:
            grouped.setdefault(event.placement, []).extend((click.item_id, click.time_ms) for click in event.events)
    return grouped


class UserUpdates:
    """Applies batches of user events to the history store."""

    def __init__(self, writer: HistoryWriter, placements: PlacementWriter) -> None:
        self._writer, self._placements = writer, placements

    def apply(self, events: Sequence[Event]) -> list[tuple[int, MalformedEvent]]:
        """Two round trips to Redis a batch. Raises UnavailableError if Redis is away; nothing is lost by trying again."""
        grouped, rejected = by_user(events)
        if grouped:
            self._writer.apply(grouped)
        if clicks := by_placement(events):  # last: what fails before is tried again as a whole
            self._placements.count(clicks)
        return rejected
