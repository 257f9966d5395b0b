"""A history as people read it."""

from __future__ import annotations

from baguni.domain.history import Action, History, HistoryEvent
from inspection.timeline import SESSION_MS, Entry, timeline


def ordered(item_id: str, time_ms: int, order_id: str) -> HistoryEvent:
    return HistoryEvent(item_id, Action.ORDERED, time_ms, order_id)


def clicked(item_id: str, time_ms: int) -> HistoryEvent:
    return HistoryEvent(item_id, Action.CLICKED, time_ms)


def test_lines_of_an_order_are_one_entry_and_the_newest_entry_is_first() -> None:
    events = [ordered("a", 100, "o1"), ordered("b", 100, "o1"), ordered("a", 900, "o2")]
    assert timeline(events) == [
        Entry(Action.ORDERED, 900, "o2", ("a",)),
        Entry(Action.ORDERED, 100, "o1", ("a", "b")),
    ]


def test_clicks_within_half_an_hour_are_one_entry_and_an_item_stands_in_it_once() -> None:
    events = [clicked("a", 0), clicked("b", SESSION_MS), clicked("a", 2 * SESSION_MS), clicked("c", 3 * SESSION_MS + 1)]
    assert [entry.item_ids for entry in timeline(events)] == [("c",), ("a", "b")]


def test_an_order_between_clicks_does_not_part_them() -> None:
    events = [clicked("a", 0), ordered("x", 1, "o"), clicked("b", 2)]
    assert [entry.item_ids for entry in timeline(events)] == [("a", "b"), ("x",)]


def test_nothing_happened_is_no_entry() -> None:
    assert timeline([]) == []


def test_up_to_a_moment_is_what_happened_by_then() -> None:
    events = (clicked("a", 1), clicked("b", 2), clicked("c", 3))
    assert History(events).as_of(2).events == events[:2]
