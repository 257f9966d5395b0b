"""A history as people read it: orders with their lines, and what was clicked between them, newest first."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from baguni.domain.history import Action, HistoryEvent

SESSION_MS = 30 * 60_000  # clicks that are no further apart belong together


@dataclass(frozen=True)
class Entry:
    """One order, or clicks of one session, or what was put into the cart in one. `time_ms` is that of its newest event."""

    action: Action
    time_ms: int
    order_id: str
    item_ids: tuple[str, ...]


def timeline(events: Iterable[HistoryEvent]) -> list[Entry]:
    """The entries of a history, newest first; the items of each in the order of their events, each once."""
    entries: list[list[HistoryEvent]] = []
    open_entries: dict[tuple[Action, str], list[HistoryEvent]] = {}
    for event in sorted(events, key=lambda event: event.sort_key):
        key = (event.action, event.order_id)
        entry = open_entries.get(key)
        if entry is None or (event.action is not Action.ORDERED and event.time_ms - entry[-1].time_ms > SESSION_MS):
            entry = []
            entries.append(entry)
            open_entries[key] = entry
        entry.append(event)
    shown = [
        Entry(entry[0].action, entry[-1].time_ms, entry[0].order_id, tuple(dict.fromkeys(e.item_id for e in entry)))
        for entry in entries
    ]
    return sorted(shown, key=lambda entry: -entry.time_ms)
