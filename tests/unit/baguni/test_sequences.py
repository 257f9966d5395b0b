"""What the models read of a history: one example by hand, and what must not change it."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baguni.domain.history import Action, HistoryEvent
from baguni.domain.sequences import (
    DECAYED_SHARE,
    NUM_CONTEXT,
    NUM_FEATURES,
    NUM_POSITIONS,
    ModelInputs,
    event_batch,
    line_inputs,
    model_inputs,
)
from tests.strategies import DAY_MS, IDS, NOW_MS, history_events

ITEMS = {"rye": 0, "milk": 1, "jam": 2, "소금": 3}  # the other ids of `history_events` are unknown
HISTORIES = st.lists(st.lists(history_events(ids=IDS), max_size=15), min_size=1, max_size=4)


def inputs(histories: Sequence[Sequence[HistoryEvent]], max_tokens: int = 4, now_ms: int = NOW_MS) -> ModelInputs:
    return model_inputs(event_batch(histories, ITEMS), np.full(len(histories), now_ms), max_tokens)


def assert_same(left: ModelInputs, right: ModelInputs) -> None:
    for name in ("item_BS", "position_BS", "actions_BS"):
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name))
    np.testing.assert_allclose(left.features_BSF, right.features_BSF, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(left.context_BC, right.context_BC, rtol=1e-6, atol=1e-7)


def ordered(item_id: str, days_ago: float, order_id: str) -> HistoryEvent:
    return HistoryEvent(item_id, Action.ORDERED, NOW_MS - int(days_ago * DAY_MS), order_id)


def clicked(item_id: str, days_ago: float) -> HistoryEvent:
    return HistoryEvent(item_id, Action.CLICKED, NOW_MS - int(days_ago * DAY_MS))


# Rye and milk eight days ago, rye again a day ago after a click on it, jam clicked half a day ago.
EXAMPLE = [
    ordered("rye", 8, "o1"),
    ordered("milk", 8, "o1"),
    clicked("rye", 2),
    ordered("rye", 1, "o2"),
    clicked("jam", 0.5),
]


def test_a_history_by_hand() -> None:
    got = inputs([EXAMPLE])
    # Tokens stand by weight: what is ordered often and lately, and what was just looked at.
    weight = {
        "rye": math.exp(-8 / 270) * 0.97 + math.exp(-1 / 270) + math.exp(-2 / 2),
        "milk": math.exp(-8 / 270) * 0.97,
        "jam": math.exp(-0.5 / 2),
    }
    by_weight = sorted(weight, key=lambda item_id: -weight[item_id])
    assert by_weight == ["rye", "milk", "jam"]
    assert got.item_BS.tolist() == [[0, 1, 2, -1]]
    assert got.position_BS.tolist() == [[1, 2, 0, 0]]
    assert got.actions_BS.tolist() == [[1 | 2, 1, 2, 0]]


def test_the_lines_of_a_history_by_hand() -> None:
    got = line_inputs(event_batch([EXAMPLE], ITEMS), np.array([NOW_MS]), 6)
    names = {index: item_id for item_id, index in ITEMS.items()}
    tokens = list(zip(got.item_BS[0].tolist(), got.position_BS[0].tolist(), got.actions_BS[0].tolist(), strict=True))
    assert [(names.get(item), position, actions) for item, position, actions in tokens] == [
        ("jam", 0, 2),
        ("rye", 1, 1),  # the newest order
        ("rye", 1, 2),  # the click that led to it
        ("rye", 2, 1),
        ("milk", 2, 1),
        (None, 0, 0),
    ]
    assert not got.features_BSF.any()
    np.testing.assert_array_equal(got.context_BC, inputs([EXAMPLE]).context_BC)
    newest = line_inputs(event_batch([EXAMPLE], ITEMS), np.array([NOW_MS]), 2)
    np.testing.assert_array_equal(newest.item_BS[0], got.item_BS[0, :2])


def test_the_features_of_a_token_by_hand() -> None:
    rye = inputs([EXAMPLE]).features_BSF[0, 0]
    expected = [
        math.log1p(2),  # orders
        math.log1p(1),  # clicks
        math.log1p(1) / 2,  # days since the last order
        math.log1p(8) / 2,  # days since the first
        math.log1p(1) / 2,  # days since anything
        0.0,  # orders since it was ordered last
        2 * 2 / 2,  # its share of the user's orders
        *(math.log1p(math.exp(-8 / days) + math.exp(-1 / days)) for days in (7, 30, 90, 270)),
        math.log1p(7) / 2,  # days between its orders
        math.log1p(1 / 7),  # how much of that has passed
        1.0,  # ordered more than once
        1.0,  # in the newest order
        0.0,  # clicked since the newest order
        1.0,  # its decayed share of the user's orders
    ]
    assert rye.tolist() == pytest.approx(expected, rel=1e-6)


def test_the_decayed_share_is_of_the_users_orders_whatever_their_size() -> None:
    history = [ordered("rye", 2, "o1"), ordered("milk", 2, "o1"), ordered("jam", 2, "o1"), ordered("milk", 1, "o2")]
    got = inputs([[*history, ordered("milk", 1, "o2"), clicked("소금", 1)], [clicked("rye", 1)], []])
    new, old = math.exp(-1 / 270), math.exp(-2 / 270) * 0.97
    shares = dict(zip(got.item_BS[0].tolist(), got.features_BSF[0, :, DECAYED_SHARE].tolist(), strict=True))
    assert shares == pytest.approx({0: old / (old + new), 1: 1.0, 2: old / (old + new), 3: 0.0}, rel=1e-6)
    assert not got.features_BSF[1:, :, DECAYED_SHARE].any()


@given(HISTORIES)
def test_a_decayed_share_is_a_share(histories: list[list[HistoryEvent]]) -> None:
    share_BS = inputs(histories).features_BSF[:, :, DECAYED_SHARE]
    assert (share_BS >= 0).all()
    assert (share_BS <= 1).all()


def test_the_decayed_share_does_not_vanish_with_age() -> None:
    ancient = inputs([[ordered("rye", 12_000, "o1"), ordered("milk", 12_000, "o1")]])
    assert ancient.features_BSF[0, :2, DECAYED_SHARE].tolist() == [1.0, 1.0]


def test_the_context_by_hand() -> None:
    context = inputs([EXAMPLE]).context_BC[0]
    now = datetime.fromtimestamp(NOW_MS / 1000, UTC)  # a Tuesday evening
    hour = now.hour + now.minute / 60 + now.second / 3600
    weekday = now.weekday() + hour / 24
    expected = [
        1.0,  # has ordered
        math.log1p(1) / 2,  # days since the newest order
        0.0,  # within the last day
        math.log1p(2) / 2,  # orders
        math.log1p(3 / 2) / 2,  # lines an order
        math.log1p(7) / 2,  # days between orders
        *(f(2 * math.pi * hour / 24) for f in (math.sin, math.cos)),
        *(f(2 * math.pi * weekday / 7) for f in (math.sin, math.cos)),
    ]
    assert context.tolist() == pytest.approx(expected, rel=1e-5)


def test_the_clock_is_the_stores() -> None:
    batch = event_batch([EXAMPLE], ITEMS)
    seoul = model_inputs(batch, np.asarray([NOW_MS]), 4, "Asia/Seoul").context_BC
    nine_hours_later = model_inputs(batch, np.asarray([NOW_MS + 9 * 3_600_000]), 4).context_BC
    np.testing.assert_allclose(seoul[:, 6:], nine_hours_later[:, 6:], rtol=1e-6)


def test_items_of_one_order_share_one_position_and_older_orders_share_the_last() -> None:
    history = [ordered("rye", 500, "first"), *(ordered("milk", n, f"o{n}") for n in range(1, 100))]
    got = inputs([[*history, ordered("jam", 1, "o1")]])
    position = dict(zip(got.item_BS[0].tolist(), got.position_BS[0].tolist(), strict=True))
    assert position == {0: NUM_POSITIONS - 1, 1: 1, 2: 1, -1: 0}


def test_a_new_order_moves_every_older_one_back_by_one() -> None:
    before = inputs([EXAMPLE])
    after = inputs([[*EXAMPLE, ordered("소금", 0.1, "o3")]])
    old = {i: p for i, p in zip(before.item_BS[0].tolist(), before.position_BS[0].tolist(), strict=True) if i >= 0}
    new = dict(zip(after.item_BS[0].tolist(), after.position_BS[0].tolist(), strict=True))
    assert new == {**{item: position + 1 for item, position in old.items()}, 3: 1}


@given(HISTORIES, st.randoms(use_true_random=False))
def test_the_order_of_a_users_events_does_not_matter(
    histories: list[list[HistoryEvent]], shuffle: random.Random
) -> None:
    shuffled = [shuffle.sample(history, len(history)) for history in histories]
    assert_same(inputs(histories), inputs(shuffled))


@given(HISTORIES)
def test_the_other_users_of_a_batch_do_not_matter(histories: list[list[HistoryEvent]]) -> None:
    together = inputs(histories)
    for row, history in enumerate(histories):
        alone = inputs([history])
        assert_same(
            alone,
            ModelInputs(
                together.item_BS[[row]],
                together.position_BS[[row]],
                together.actions_BS[[row]],
                together.features_BSF[[row]],
                together.context_BC[[row]],
            ),
        )


@given(HISTORIES, st.integers(1, 4))
def test_more_tokens_only_add_what_was_cut_and_padding(histories: list[list[HistoryEvent]], max_tokens: int) -> None:
    narrow, wide = inputs(histories, max_tokens), inputs(histories, 9)
    cut = ModelInputs(
        wide.item_BS[:, :max_tokens],
        wide.position_BS[:, :max_tokens],
        wide.actions_BS[:, :max_tokens],
        wide.features_BSF[:, :max_tokens],
        wide.context_BC,
    )
    assert_same(narrow, cut)
    padding = wide.item_BS < 0
    assert padding[:, len(ITEMS) :].all()
    assert not wide.position_BS[padding].any()
    assert not wide.actions_BS[padding].any()
    assert not wide.features_BSF[padding].any()
    assert (wide.actions_BS[~padding] > 0).all()


@given(HISTORIES)
def test_every_input_is_finite(histories: list[list[HistoryEvent]]) -> None:
    got = inputs(histories)
    assert np.isfinite(got.features_BSF).all()
    assert np.isfinite(got.context_BC).all()


@given(st.lists(history_events(ids=IDS), max_size=15))
def test_items_that_the_catalogue_does_not_know_are_ignored(history: list[HistoryEvent]) -> None:
    known = [event for event in history if event.item_id in ITEMS]
    assert_same(inputs([history]), inputs([known]))


def test_events_after_now_count_as_just_happened() -> None:
    assert_same(inputs([[clicked("rye", -3)]]), inputs([[clicked("rye", 0)]]))


def test_a_user_without_events_has_padding_only() -> None:
    got = inputs([[]])
    assert got.item_BS.tolist() == [[-1] * 4]
    assert got.features_BSF.shape == (1, 4, NUM_FEATURES)
    assert got.context_BC.shape == (1, NUM_CONTEXT)
    assert got.context_BC[0, :6].tolist() == [0.0] * 6
