"""Lists of popular items: what is clicked at a placement, smoothed by what is ordered."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from server.lists.calls import Clicks
from server.lists.popular import FIRST, PRIOR_CLICKS, Popular

TRAINED, LIVE = FIRST + 1_000, 3


class Items:
    """Item n was ordered 10,000 - n times; the last LIVE came since."""

    by_popularity = np.arange(TRAINED)
    items = tuple(SimpleNamespace(item_id=str(n)) for n in range(TRAINED + LIVE))
    total_popularity = float(sum(10_000 - n for n in range(TRAINED)))

    def popularity(self, index_I: np.ndarray) -> np.ndarray:
        return np.where(index_I < TRAINED, 10_000.0 - index_I, 0.0)

    def indexes(self, item_ids: list[str]) -> np.ndarray:
        return np.asarray([int(item_id) for item_id in item_ids], np.int64)


def clicks(**counts: float) -> Clicks:
    pairs = sorted((int(name.removeprefix("item_")), count) for name, count in counts.items())
    return np.asarray([i for i, _ in pairs], np.int64), np.asarray([c for _, c in pairs])


def ordered(popular: Popular) -> tuple[list[int], list[float]]:
    index, score = zip(*popular.all(), strict=True)
    return np.concatenate(index).tolist(), np.concatenate(score).tolist()


def test_without_clicks_the_order_is_that_of_orders() -> None:
    index, score = ordered(Popular(Items()))  # type: ignore[arg-type]
    assert index == list(range(TRAINED))
    assert score == [10_000.0 - n for n in range(TRAINED)]


def test_what_is_clicked_at_a_placement_comes_first_and_everything_once() -> None:
    live = f"item_{TRAINED + 1}"
    index, score = ordered(Popular(Items(), clicks(**{"item_7": 2.0, f"item_{TRAINED - 5}": 5.0, live: 3.0})))  # type: ignore[arg-type]
    assert index[:5] == [TRAINED - 5, TRAINED + 1, 7, 0, 1]
    assert sorted(index) == sorted([*range(TRAINED), TRAINED + 1])
    assert score == sorted(score, reverse=True)
    assert score[2] == pytest.approx(2.0 + PRIOR_CLICKS * (10_000 - 7) / Items.total_popularity)


def test_a_click_that_has_faded_lifts_nothing_above_the_rest() -> None:
    index, score = ordered(Popular(Items(), clicks(**{f"item_{TRAINED - 5}": 1e-9, f"item_{TRAINED}": 1e-9})))  # type: ignore[arg-type]
    assert index == list(range(TRAINED))
    assert score == sorted(score, reverse=True)


def test_a_callers_own_set_is_ordered_the_same_way() -> None:
    popular = Popular(Items(), clicks(item_9=1.0))  # type: ignore[arg-type]
    ((index, score),) = popular.among(["3", "9", "4", str(TRAINED + 2)])
    assert index.tolist() == [9, 3, 4, TRAINED + 2]
    assert score[-1] == 0
