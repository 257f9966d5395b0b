"""The default recipe against simple peers, month by month: which months, what is trained on, and what counts as below."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import months
from benchmarks.months import OURS, Month, measured, months_of, rows_of
from benchmarks.quality.measure import Truth
from benchmarks.quality.shop import MIN_ORDERS
from tests.tiny_release import tiny_run
from trainer.recipes import Recipe
from trainer.run import Run, silent


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """The tiny recipe; its shop stands for Complete Journey."""
    recipe = tiny_run(tmp_path).recipe
    (tmp_path / "complete-journey").symlink_to(tmp_path / "shop")
    monkeypatch.setattr(months, "STATE", tmp_path)
    monkeypatch.setattr(months, "WORK", tmp_path / "work")
    monkeypatch.setitem(MIN_ORDERS, "complete-journey", 1)
    return recipe


def test_months_go_back_and_each_ends_where_the_next_begins(recipe: Recipe) -> None:
    newest, before = months_of("complete-journey", 2)
    assert newest.name > before.name
    assert before.dataset.time_E.max() < newest.start_ms
    assert before.queries.time_Q.min() >= before.start_ms


@pytest.mark.slow
def test_ours_and_peers_are_measured_on_the_orders_of_a_month_that_nobody_was_trained_on(
    recipe: Recipe, tmp_path: Path
) -> None:
    _, month = months_of("complete-journey", 2)
    values = measured(month, recipe, silent)
    assert set(values) == {OURS, "frequency × recency", "frequency × recency + EASE"}
    orders = len(Truth(month.queries).kept("all"))
    assert {len(value) for value in values.values()} == {orders}
    trained = Run.opened(tmp_path / "work" / "complete-journey" / f"{month.name}-seed0", tmp_path / "complete-journey")
    assert trained.test_start_ms == month.start_ms
    again = measured(month, recipe, silent)
    assert all((again[name] == values[name]).all() for name in values)


def test_a_month_below_the_best_of_the_peers_does_not_hold(recipe: Recipe) -> None:
    (month,) = months_of("complete-journey", 1)
    orders = len(Truth(month.queries).kept("all"))
    values = {OURS: np.full(orders, 0.2), "weak": np.full(orders, 0.1), "strong": np.full(orders, 0.3)}
    rows = list(rows_of(month, [values]))
    assert [(row.reference, row.value, row.holds) for row in rows] == [("strong", pytest.approx(-0.1), False)] * 2
    assert all(row.holds for row in rows_of(month, [values | {"strong": np.full(orders, 0.15)}]))


def test_what_nobody_buys_twice_counts_if_it_is_new(recipe: Recipe) -> None:
    (month,) = months_of("complete-journey", 1)
    assert month.setting == "all"
    assert Month("amazon-beauty", month.dataset, month.start_ms).setting == "novel"
