"""What a history is: the newest events of a set, less what was cancelled or deleted."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baguni.domain.errors import InvalidInputError
from baguni.domain.history import CLOCK_SKEW_MS, Action, Cancellation, Change, Deletion, HistoryEvent, build
from tests.strategies import history_events

RYE = HistoryEvent("rye", Action.ORDERED, 1_700_000_000_000, "o1")
JAM = HistoryEvent("jam", Action.CLICKED, 1_700_000_000_001)


@given(
    events=st.lists(history_events(), max_size=30),
    max_events=st.integers(1, 12),
    shuffle=st.randoms(use_true_random=False),
)
def test_any_order_with_any_repetition_builds_the_newest_of_the_set(
    events: list[HistoryEvent], max_events: int, shuffle: random.Random
) -> None:
    delivered = [*events, *shuffle.choices(events, k=len(events))] if events else []
    shuffle.shuffle(delivered)
    newest = sorted(set(events), key=lambda event: event.sort_key)[-max_events:]
    assert build(delivered, max_events) == tuple(
        event
        for event in newest
        if event.action is not Action.ORDERED
        or event.time_ms == max(o.time_ms for o in newest if o.order_id == event.order_id)
    )


def test_an_order_that_is_sent_again_later_replaces_the_one_before() -> None:
    """A correction: less was sold, or something else."""
    before = [RYE, RYE._replace(item_id="milk")]
    corrected = RYE._replace(item_id="salt", time_ms=RYE.time_ms + 60_000)
    for changes in ([*before, corrected], [corrected, *before]):
        assert build(changes) == (corrected,)
    assert build([*before, corrected, JAM]) == (JAM, corrected)
    assert build([*before, corrected, Cancellation("o1", corrected.time_ms)]) == ()


def test_cancellations_are_bounded_like_events() -> None:
    cancellations = [Cancellation(f"o{number}", RYE.time_ms + number) for number in range(1, 4)]
    assert build([RYE, *cancellations], max_events=3) == ()
    assert build([RYE, *cancellations], max_events=2) == (RYE,)


@pytest.mark.parametrize(
    "changes", [[RYE, JAM, Cancellation("o1", RYE.time_ms + 5)], [Cancellation("o1", 1 << 41), JAM, RYE]]
)
def test_a_cancelled_order_leaves_whenever_it_comes(changes: list[Change]) -> None:
    assert build(changes) == (JAM,)


def test_a_cancellation_by_a_slow_clock_counts_and_one_of_another_age_does_not() -> None:
    assert build([RYE, Cancellation("o1", RYE.time_ms - CLOCK_SKEW_MS)]) == ()
    assert build([RYE, Cancellation("o1", RYE.time_ms - CLOCK_SKEW_MS - 1)]) == (RYE,)


def test_a_cancellation_is_of_one_order_and_of_orders_only() -> None:
    other = HistoryEvent("rye", Action.ORDERED, RYE.time_ms, "o2")
    clicked = HistoryEvent("rye", Action.CLICKED, RYE.time_ms)
    assert build([RYE, other, clicked, Cancellation("o1", RYE.time_ms)]) == (other, clicked)


def test_cancelled_lines_still_take_room_so_that_nothing_old_comes_back() -> None:
    """What is trimmed is gone: a history that took it back would depend on what came first."""
    old = HistoryEvent("old", Action.CLICKED, 1)
    assert build([old, JAM, RYE, Cancellation("o1", RYE.time_ms)], max_events=2) == (JAM,)


def test_a_deletion_forgets_what_was_and_what_comes_late_of_it() -> None:
    assert build([RYE, JAM, Deletion(RYE.time_ms)]) == (JAM,)
    assert build([Deletion(JAM.time_ms), Deletion(1), RYE, JAM]) == ()


def test_a_history_of_no_events_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="max_events is 0, expected at least 1"):
        build([RYE], max_events=0)
