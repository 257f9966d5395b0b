"""Nights of releases: which moment each model knows, what is kept, and what the rows say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks.nights import METRIC, Day, Nights, rows_of
from trainer.run import Run, silent

DAYS = 3


@pytest.fixture(scope="module")
def nights(trained: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nights]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmarks.nights.WEEK", DAYS - 1)
        yield Nights(trained.dataset_path, tmp_path_factory.mktemp("nights"), trained.recipe, silent)


@pytest.fixture(scope="module")
def days(nights: Nights) -> list[Day]:
    return [nights.day(number) for number in range(DAYS)]


def test_each_night_knows_the_log_up_to_its_midnight_and_keeps_every_id(nights: Nights, days: list[Day]) -> None:
    for number in range(1, DAYS):
        run = Run.opened(nights.work / f"night-{number:02}", nights.data)
        assert run.test_start_ms == nights.midnight(number)
        assert run.training_log.time_E.max() < nights.midnight(number)
        assert run.published_ids == nights.first.published_ids
    assert [day.moved for day in days] == [0] * DAYS


def test_the_days_have_every_order_once_and_each_model_a_value_for_it(nights: Nights, days: list[Day]) -> None:
    orders = nights.first.dataset.orders()
    inside = (orders.time_O >= nights.midnight(0)) & (orders.time_O < nights.midnight(DAYS))
    assert sum(len(day.user_Q) for day in days) == inside.sum()
    for number, day in enumerate(days):
        assert {"monthly", "statistics", "nightly"} <= day.values.keys()
        assert ("anew" in day.values) == (number in (0, DAYS - 1))
        assert all(len(value_Q) == len(day.user_Q) for value_Q in day.values.values())
    assert days[0].values["nightly"] is not None
    np.testing.assert_array_equal(days[0].values["nightly"], days[0].values["monthly"])
    assert any((day.values["nightly"] != day.values["monthly"]).any() for day in days[1:])


def test_what_is_done_is_not_done_again(nights: Nights, days: list[Day], monkeypatch: pytest.MonkeyPatch) -> None:
    again = Nights(nights.data, nights.work, nights.recipe, silent)
    monkeypatch.setattr("trainer.run.train", None)
    assert [again.day(number).seconds for number in range(DAYS)] == [day.seconds for day in days]
    assert days[-1].seconds.keys() == {"nightly", "anew"}


def day(nightly: float, monthly: float, seconds: dict[str, float], tmp_path: Path, moved: int = 0) -> Day:
    user_Q = np.arange(40)
    noise_Q = np.random.default_rng(0).normal(0, 0.01, 40)
    names = {"nightly": nightly, "monthly": monthly, "statistics": 0.3, "anew": 0.3}
    one = Day(user_Q, {name: value + noise_Q * (name == "nightly") for name, value in names.items()}, seconds, moved)
    one.save(tmp_path / "day.npz")
    return Day.load(tmp_path / "day.npz")


@pytest.mark.parametrize(
    ("nightly", "seconds", "moved", "holds"),
    [
        (0.35, {"nightly": 10.0, "anew": 60.0}, 0, [True, True, True]),
        (0.25, {"nightly": 20.0, "anew": 60.0}, 3, [False, False, False]),
    ],
)
def test_rows_hold_if_nights_are_better_quick_and_move_nothing(
    nightly: float, seconds: dict[str, float], moved: int, holds: list[bool], tmp_path: Path
) -> None:
    rows = rows_of([day(nightly, 0.3, seconds, tmp_path, moved)] * 3)
    barred = [row for row in rows if row.bar != "reported"]
    assert [row.holds for row in barred] == holds
    assert METRIC in barred[0].what
    assert barred[0].value == pytest.approx(nightly - 0.3, abs=0.01)
    assert barred[2].value == 3 * moved
