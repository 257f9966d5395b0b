"""An experiment from its tables to what may be concluded: a known effect, none, a broken split, and bad input."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from analysis.analyse import Plan, analyse, conclusion
from analysis.cli import experiment
from analysis.metrics import DAY_MS, METRICS, Window, units_of, values
from analysis.report import page
from analysis.tables import Tables, read_parquet, write_parquet
from baguni.domain.errors import InvalidInputError, NotFoundError

pytestmark = pytest.mark.slow

START_MS = 1_760_000_000_000
BY_NAME = {metric.name: metric for metric in METRICS}


def shop(lift: float, num_users: int = 6_000, seed: int = 0, treated: float = 0.5) -> Tables:
    """Users who come over ten days, click, fill carts and order, as many more in the treatment as `lift` says."""
    rng = np.random.default_rng(seed)
    first_ms = START_MS + rng.integers(0, 10 * DAY_MS, num_users)
    variation = np.where(rng.random(num_users) < treated, "model", "popular")
    exposures = [
        (f"u{u}", "sale", variation[u], int(first_ms[u] + again)) for u in range(num_users) for again in (0, 60_000)
    ]
    actions = []
    for user in range(num_users):
        taste = rng.gamma(1.0, 0.6)
        more = 1 + lift * (variation[user] == "model")
        for action, rate in (("click", 2.0), ("cart", 1.0), ("order", 0.8)):
            for low, high, factor in ((-28, 0, 1.0), (0, 14, more)):
                for _ in range(rng.poisson(taste * rate * factor)):
                    when = int(first_ms[user] + rng.uniform(low, high) * DAY_MS)
                    actions.append(
                        (f"u{user}", action, when, float(rng.lognormal(3, 0.5)) if action == "order" else 0.0)
                    )
    return Tables(
        pd.DataFrame(exposures, columns=["unit_id", "experiment", "variation", "time_ms"]),
        pd.DataFrame(actions, columns=["unit_id", "action", "time_ms", "value"]),
    )


def test_values_of_a_user_are_of_their_window() -> None:
    exposures = [("a", "e", "0", 100 * DAY_MS), ("a", "e", "0", 103 * DAY_MS), ("b", "e", "1", 100 * DAY_MS)]
    when = [(72.1, 1.0), (99.9, 2.0), (100.0, 4.0), (113.9, 8.0), (114.1, 16.0), (71.9, 32.0)]
    actions = [("a", "order", int(day * DAY_MS), value) for day, value in when]
    tables = Tables(
        pd.DataFrame(exposures, columns=["unit_id", "experiment", "variation", "time_ms"]),
        pd.DataFrame(actions, columns=["unit_id", "action", "time_ms", "value"]),
    )
    units = units_of(tables, "e")
    for name, after, before in (
        ("revenue", 12.0, 3.0),
        ("orders", 2.0, 2.0),
        ("conversion", 1.0, 1.0),
        ("click_rate", 0.0, 0.0),
    ):
        after_U, before_U = values(tables, units, BY_NAME[name], Window())
        assert (after_U.tolist(), before_U.tolist()) == ([after, 0.0], [before, 0.0])
    as_known, _ = values(tables, units, BY_NAME["revenue"], Window(), until_ms=101 * DAY_MS)
    assert as_known.tolist() == [4.0, 0.0]


def test_a_known_effect_is_found_and_said(tmp_path: Path) -> None:
    tables = shop(lift=0.25)
    found = analyse(tables, Plan("sale", "popular", planned_users=6_000))
    assert sum(found.users.values()) == 6_000
    assert found.is_split_right
    by_name = {result.metric.name: result for result in found.results}
    for name in ("orders", "revenue"):
        effect = by_name[name].now.frequentist
        assert effect.low is not None
        assert effect.high is not None
        assert effect.low < 0.25 < effect.high
        assert "more by" in conclusion(found, by_name[name])
        assert by_name[name].adjusted
    written = page(found)
    assert written.count("<svg") == len(METRICS)
    assert "It" not in re.findall(r"nan|None", written)
    write_parquet(tables, tmp_path)
    arguments = ["--exposures", str(tmp_path / "exposures.parquet"), "--actions", str(tmp_path / "actions.parquet")]
    report = tmp_path / "report.html"
    run = CliRunner().invoke(
        experiment,
        ["analyze", "sale", "--control", "popular", *arguments, "--page", str(report)],
        catch_exceptions=False,
    )
    assert "may be concluded now" in run.output
    assert report.read_text().startswith("<!doctype html>")


def test_without_an_effect_nothing_is_concluded() -> None:
    tables = shop(lift=0.0, num_users=3_000)
    found = analyse(tables, Plan("sale", "popular"))
    assert all("nothing may be concluded yet" in conclusion(found, result) for result in found.results)
    complete = analyse(tables, Plan("sale", "popular", planned_users=3_000))
    assert all("no difference was found" in conclusion(complete, result) for result in complete.results)


def test_a_split_that_is_broken_forbids_conclusions() -> None:
    found = analyse(shop(lift=0.5, num_users=3_000, treated=0.6), Plan("sale", "popular"))
    assert not found.is_split_right
    assert all("not split as they should be" in conclusion(found, result) for result in found.results)
    assert 'class="bad"' in page(found)
    meant = analyse(shop(lift=0.5, num_users=3_000, treated=0.6), Plan("sale", "popular", weights=(0.6, 0.4)))
    assert meant.is_split_right


def test_users_of_two_variations_are_left_out() -> None:
    tables = shop(lift=0.0, num_users=500)
    exposures = tables.exposures.copy()
    exposures.loc[(exposures.index % 2 == 1) & (exposures.index < 20), "variation"] = "model"
    units = units_of(Tables(exposures, tables.actions), "sale")
    assert 0 < units.num_mixed <= 10
    assert len(units.frame) == 500 - units.num_mixed


def test_bad_input_is_named(tmp_path: Path) -> None:
    tables = shop(lift=0.0, num_users=50)
    with pytest.raises(NotFoundError, match="nobody was exposed to experiment 'sail'; exposures are of sale"):
        analyse(tables, Plan("sail", "popular"))
    with pytest.raises(InvalidInputError, match="control is 'control', expected a variation of 'sale': model, popular"):
        analyse(tables, Plan("sale", "control"))
    with pytest.raises(InvalidInputError, match="weights are 3 numbers, expected 2"):
        analyse(tables, Plan("sale", "popular", weights=(1, 1, 1)))
    write_parquet(tables, tmp_path)
    with pytest.raises(InvalidInputError, match="has no column unit_id, experiment, variation"):
        read_parquet(_without(tmp_path, "exposures"), tmp_path / "actions.parquet")
    actions = tables.actions.assign(action="look")
    write_parquet(Tables(tables.exposures, actions), tmp_path)
    with pytest.raises(InvalidInputError, match="action is 'look', expected one of click, cart, order"):
        read_parquet(tmp_path / "exposures.parquet", tmp_path / "actions.parquet")


def _without(folder: Path, name: str) -> Path:
    path = folder / f"no-{name}.parquet"
    pd.DataFrame({"time_ms": [1]}).to_parquet(path)
    return path
