"""Metrics as formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest

from baguni.domain.errors import InvalidInputError
from trainer.metrics import coverage, gini, mean_interval, per_order, popularity_lift, top_k

D = [1 / math.log2(rank + 1) for rank in (1, 2, 3)]


def test_metrics_of_two_orders_by_hand() -> None:
    top = np.array([[4, 1, 7], [2, 3, -1]])
    metrics = per_order(top, np.array([0, 0, 1, 1, 1, 1]), np.array([1, 9, 5, 6, 8, 9]))
    assert metrics["HR"].tolist() == [1.0, 0.0]
    assert metrics["Recall"].tolist() == [1 / 2, 0.0]
    assert metrics["Recall_min"].tolist() == [1 / 2, 0.0]
    assert metrics["NDCG"].tolist() == pytest.approx([D[1] / (D[0] + D[1]), 0.0])


def test_recall_min_counts_against_what_fits_in_the_list() -> None:
    metrics = per_order(np.array([[1, 2]]), np.zeros(4, int), np.array([1, 2, 3, 4]))
    assert metrics["Recall"][0] == 2 / 4
    assert metrics["Recall_min"][0] == 2 / 2
    assert metrics["NDCG"][0] == pytest.approx(1.0)


def test_a_list_with_an_item_twice_is_refused_by_its_number() -> None:
    with pytest.raises(InvalidInputError, match="list 1"):
        per_order(np.array([[1, 2], [3, 3]]), np.array([0, 1]), np.array([1, 3]))


def test_an_order_without_true_items_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="query 1"):
        per_order(np.array([[1], [2]]), np.array([0]), np.array([1]))


def test_ties_are_broken_at_random_and_not_by_index() -> None:
    firsts = {int(top_k(np.zeros((1, 50)), 1, np.random.default_rng(seed))[0, 0]) for seed in range(40)}
    assert len(firsts) > 10


def test_top_k_orders_by_score_and_never_returns_minus_infinity() -> None:
    scores = np.array([[0.1, -np.inf, 0.9]])
    assert top_k(scores, 4, np.random.default_rng(0)).tolist() == [[2, 0, -1, -1]]


def test_interval_holds_the_mean_and_widens_with_fewer_users() -> None:
    values = np.random.default_rng(0).random(4000)
    wide = mean_interval(values, np.arange(4000) % 10, np.random.default_rng(1))
    narrow = mean_interval(values, np.arange(4000), np.random.default_rng(1))
    assert wide[1] < wide[0] < wide[2]
    assert narrow[0] == pytest.approx(values.mean())
    assert narrow[2] - narrow[1] < 0.04


def test_coverage_lift_and_gini_by_hand() -> None:
    top = np.array([[0, 1], [0, -1]])
    assert coverage(top, 4) == 2 / 4
    assert popularity_lift(top, np.array([4.0, 2.0, 1.0, 1.0]), np.array([2, 3])) == pytest.approx((4 + 2 + 4) / 3)
    assert gini(np.array([[0, 1, 2, 3]]), 4) == pytest.approx(0.0)
    assert gini(np.array([[0], [0]]), 4) == pytest.approx(3 / 4)


def test_numbering_the_items_otherwise_changes_no_metric() -> None:
    rng = np.random.default_rng(0)
    scores, row, item = (
        rng.random((30, 50)),
        np.repeat(np.arange(30), 2),
        rng.integers(0, 25, 60) * 2 + np.arange(60) % 2,
    )
    number = rng.permutation(50)
    renumbered = np.empty_like(scores)
    renumbered[:, number] = scores
    before = per_order(top_k(scores, 10, np.random.default_rng(1)), row, item)
    after = per_order(top_k(renumbered, 10, np.random.default_rng(2)), row, number[item])
    for name, values in before.items():
        np.testing.assert_array_equal(values, after[name])
