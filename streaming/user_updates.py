"""What user events do: they join histories. Adding to a set twice adds once, so redelivery is harmless."""

from __future__ import annotations

from collections.abc import Sequence

from baguni.events import Event, MalformedEvent, UserEvents
from baguni.history import HistoryEvent
from baguni.history_store import HistoryWriter


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


class UserUpdates:
    """Applies batches of user events to the history store."""

    def __init__(self, writer: HistoryWriter) -> None:
        self._writer = writer

    def apply(self, events: Sequence[Event]) -> list[tuple[int, MalformedEvent]]:
        """One round trip to Redis a batch. Raises UnavailableError if Redis is away; nothing is lost by trying again."""
        grouped, rejected = by_user(events)
        if grouped:
            self._writer.apply(grouped)
        return rejected
