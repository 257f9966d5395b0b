"""Folding events into a history, in any order with any redelivery, equals building it at once."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baguni.errors import InvalidInputError
from baguni.history import Action, History, HistoryEvent, append, decode_event, encode_event
from tests.strategies import history_events

EVENT = HistoryEvent("rye", Action.ORDERED, 1_700_000_000_000, "o1")


@given(
    events=st.lists(history_events(), max_size=30),
    max_events=st.integers(1, 12),
    cuts=st.lists(st.integers(1, 5), max_size=40),
    shuffle=st.randoms(use_true_random=False),
)
def test_any_delivery_order_with_any_redelivery_equals_the_batch_build(
    events: list[HistoryEvent], max_events: int, cuts: list[int], shuffle: random.Random
) -> None:
    delivered = [*events, *shuffle.choices(events, k=len(events))] if events else []
    shuffle.shuffle(delivered)
    folded, rest = History(), delivered
    for size in [*cuts, len(delivered)]:
        folded, rest = append(folded, rest[:size], max_events), rest[size:]

    assert folded.events == append(History(), events, max_events).events
    assert folded.events == tuple(sorted(set(events), key=lambda event: event.sort_key))[-max_events:]


@given(st.lists(st.lists(history_events(), max_size=4), max_size=8), st.integers(1, 5))
def test_the_version_grows_by_one_exactly_when_the_stored_set_changes(
    batches: list[list[HistoryEvent]], max_events: int
) -> None:
    history = History()
    for batch in batches:
        after = append(history, batch, max_events)
        assert after.version - history.version == int(after.events != history.events)
        history = after


def test_redelivered_event_changes_nothing() -> None:
    history = append(History(), [EVENT])
    assert append(history, [EVENT]) is history


def test_an_event_older_than_a_full_history_changes_nothing() -> None:
    history = append(History(), [EVENT], max_events=1)
    assert append(history, [HistoryEvent("milk", Action.CLICKED, 1)], max_events=1) is history


def test_events_of_one_millisecond_keep_one_order() -> None:
    clicked, ordered = HistoryEvent("rye", Action.CLICKED, 5), HistoryEvent("rye", Action.ORDERED, 5, "o1")
    assert append(append(History(), [clicked]), [ordered]).events == append(History(), [clicked, ordered]).events


@given(history_events(ids=st.text(min_size=1, max_size=8)))
def test_decoding_an_encoded_event_gives_it_back(event: HistoryEvent) -> None:
    assert decode_event(encode_event(event)) == event


def test_separators_in_ids_survive() -> None:
    event = HistoryEvent("a|b%7C", Action.ORDERED, 1, "x|y%7C%")
    assert encode_event(event) == b"1|1|x%7Cy%257C%25|a|b%7C"
    assert decode_event(encode_event(event)) == event


def test_a_history_of_no_events_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="max_events is 0, expected at least 1"):
        append(History(), [EVENT], max_events=0)
