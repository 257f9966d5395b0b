"""What a night decides, without servers: is the candidate worse?"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baguni.domain.release import Release, ReleaseStore
from deploy.nightly import quality_problem, replay_problem
from server.replay.cli import problems
from server.replay.comparison import Comparison, Side

MODEL, METRIC = "retrieval, distilled", "NDCG@10"
NO_NUMBERS = [math.nan, math.inf, -math.inf, None, "0.3", [0.3]]


def release(release_id: str, *values: Any) -> Release:
    """A release that was measured, or was not."""
    metrics = {METRIC: values[0]} if values else {}
    return Release(Path(), {"release_id": release_id, "metrics": {"models": {MODEL: {"all": metrics}}}})


def problem(active: Release, candidate: Release) -> str:
    return quality_problem(active, candidate, MODEL, METRIC, tolerance=0.05)


@pytest.mark.parametrize("value", NO_NUMBERS)
def test_a_metric_that_is_no_number_is_named(value: Any) -> None:
    for active, candidate in (
        (release("active", 0.3), release("other", value)),
        (release("other", value), release("candidate", 0.3)),
        (release("active"), release("other", value)),
    ):
        assert "of other is" in (found := problem(active, candidate))
        assert found.endswith("expected a finite number")


@given(st.floats(0, 1), st.floats(0, 1))
def test_a_candidate_may_be_worse_by_the_tolerance(was: float, now: float) -> None:
    assert bool(problem(release("active", was), release("candidate", now))) == (now < 0.95 * was)


def test_an_active_release_that_was_not_measured_is_not_compared() -> None:
    assert problem(release("active"), release("candidate", 0.1)) == ""


@pytest.mark.parametrize("limits", [(0.5, None), (None, 2.0)])
def test_numbers_that_are_none_miss_every_limit(limits: tuple[float | None, float | None]) -> None:
    found = Comparison(Side("a", took_ms=[math.nan]), Side("b", took_ms=[1.0]), overlap=[math.nan])
    assert len(problems(found, *limits)) == 1
    assert problems(found, None, None) == []


def test_a_log_of_which_nothing_can_be_read_is_a_problem_only_for_a_limit(tmp_path: Path) -> None:
    log, store, candidate = tmp_path / "captured", ReleaseStore(tmp_path), release("candidate")
    assert replay_problem(store, log, candidate, 0.5, None) == ""  # nothing was captured yet
    log.mkdir()
    (log / "online-0.jsonl").write_text('{"request": {"userId": "u')
    assert replay_problem(store, log, candidate, None, None) == ""
    for limits in ((0.5, None), (None, 2.0)):
        assert "no captured request can be read" in replay_problem(store, log, candidate, *limits)
