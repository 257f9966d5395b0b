"""A night decides, without servers, whether the candidate is worse."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baguni.domain.catalog import Catalog
from baguni.domain.release import Release, ReleaseStore
from baguni.domain.semantic_ids import SemanticIdTable
from baguni.domain.staging import OLD_S, locked, unheld
from deploy.nightly import ids_problem, quality_problem, remove_runs, replay_problem, starts_warm
from server.replay.cli import problems
from server.replay.comparison import Comparison, Side
from tests.waiting import eventually
from trainer.base import Facts, write_base
from trainer.evaluate import BEFORE, GENERATIVE, TEACHER
from trainer.recipes import Recipe, recipe_named

MODEL, METRIC = "retrieval, distilled", "NDCG@10"
NO_CODES = np.zeros((0, 2), np.int32)
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


@pytest.mark.parametrize(
    ("base_id", "orders", "worse"), [("active", 5, True), ("active", 0, False), ("another", 5, True), (None, 5, False)]
)
def test_a_warm_candidate_is_compared_on_the_orders_since_the_active_release(
    base_id: str | None, orders: int, worse: bool
) -> None:
    """The candidate has measured both. If it started from another release, somebody has changed the active one meanwhile."""
    models = {name: {"all": {METRIC: value}} for name, value in ((MODEL, 0.2), (BEFORE + MODEL, 0.3))} if orders else {}
    metrics = {"base": base_id, "orders": orders, "models": models or {MODEL: {"all": {METRIC: 0.2}}}}
    candidate = Release(Path(), {"release_id": "candidate", "metrics": metrics})
    assert bool(problem(release("active", 0.1), candidate)) == worse


@pytest.mark.parametrize(("unseen", "worse"), [(0.21, True), (0.2, False), (None, False)])
def test_a_candidate_that_was_trained_anew_is_compared_with_the_last_that_was(
    unseen: float | None, worse: bool
) -> None:
    """The numbers of warm nights between them are of orders that they had seen."""
    models = {MODEL: {"all": {METRIC: 0.9}}}
    before = {"models": {MODEL: {"all": {METRIC: unseen}}}} if unseen else {}
    metrics = {"base": "an-earlier-one", "orders": 5, "models": models, "unseen": before}
    active = Release(Path(), {"release_id": "active", "metrics": metrics})
    assert bool(problem(active, release("candidate", 0.199))) == worse


def test_ids_that_would_move_are_named() -> None:
    def with_ids(**ids: tuple[int, ...]) -> Release:
        found = Release(Path(), {"release_id": "r"})
        found.__dict__.update(catalog=Catalog([], {}), semantic_ids=SemanticIdTable(NO_CODES, (4, 4)), reserved_ids=ids)
        return found

    active = with_ids(a=(1, 0), b=(1, 1))
    assert ids_problem(active, with_ids(a=(1, 0), b=(1, 1), new=(1, 2))) == ""
    assert "of 1 items would move, that of 'b' among them" in ids_problem(active, with_ids(a=(1, 0), b=(2, 1)))
    assert "of 2 items would move" in ids_problem(active, with_ids(c=(1, 0)))


@pytest.mark.parametrize("setting", ["all", "novel"])
@pytest.mark.parametrize(("value", "upper", "worse"), [(0.2, 0.24, True), (0.2, 0.26, False), (0.3, 0.35, False)])
def test_a_generative_head_that_is_clearly_below_its_teacher_is_refused(
    setting: str, value: float, upper: float, worse: bool
) -> None:
    def measured(ndcg: float, high: float) -> dict[str, Any]:
        fine = {METRIC: 0.5, f"{METRIC} interval": [0.4, 0.6]}
        return {"all": fine, "novel": fine, setting: {METRIC: ndcg, f"{METRIC} interval": [0.1, high]}}

    models = {MODEL: measured(0.5, 0.6), TEACHER: measured(0.25, 0.3), GENERATIVE: measured(value, upper)}
    candidate = Release(Path(), {"release_id": "candidate", "metrics": {"k": 10, "models": models}})
    found = problem(release("active", 0.3), candidate)
    assert bool(found) == worse
    if worse:
        assert f"is {value:.4f} on {setting} items, that of its teacher 0.2500" in found


def test_a_night_starts_from_the_weights_of_the_same_recipe_for_some_nights_in_a_row(tmp_path: Path) -> None:
    tiny = recipe_named("tiny", text_encoder="mine")

    def based_on(recipe: Recipe, warm_runs: int, until_ms: int | None = 0) -> Path:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        write_base(folder, Facts("r1", recipe, until_ms, (4, 4), warm_runs), [], {}, {})
        return folder

    words = ["--text-encoder", "mine"]
    assert starts_warm(based_on(tiny, 0), "tiny", words, 3)
    assert starts_warm(based_on(tiny.warm(123), 2), "tiny", words, 3)
    assert not starts_warm(based_on(tiny.warm(123), 3), "tiny", words, 3)
    assert not starts_warm(based_on(tiny, 0, until_ms=None), "tiny", words, 3)
    assert not starts_warm(based_on(tiny, 0), "tiny", [], 3)
    assert not starts_warm(based_on(replace(tiny, steps=7), 0), "tiny", words, 3)
    assert not starts_warm(tmp_path / "no-base", "tiny", words, 3)
    begun = based_on(tiny, 0)
    (begun / "recipe.json").write_text(json.dumps({"is_warm": False}))
    assert not starts_warm(begun, "tiny", words, 3)  # it goes on as it was begun


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


def run_of(runs: Path, number: int, *release_ids: str) -> Path:
    folder = runs / f"run-{number:012x}"
    folder.mkdir(parents=True)
    (folder / "distilled.pt").write_text("weights")
    for target, release_id in zip(("python", "onnx"), release_ids, strict=False):
        (folder / f"release_id.{target}").write_text(release_id + "\n")
    return folder


def test_runs_of_releases_that_are_gone_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs, store = tmp_path / "runs", ReleaseStore(tmp_path / "releases")
    (store.root / "r_kept").mkdir(parents=True)
    gone, both_gone = run_of(runs, 1, "r_gone"), run_of(runs, 2, "r_gone", "r_gone_too")
    kept, one_kept, killed = run_of(runs, 3, "r_kept"), run_of(runs, 4, "r_gone", "r_kept"), run_of(runs, 5)
    held, used = run_of(runs, 6, "r_gone"), run_of(runs, 7, "r_gone")
    by_hand = runs / "run-by-hand"
    by_hand.mkdir()
    time.sleep(0.01)
    newest = run_of(runs, 8, "r_gone")
    with locked(runs / f".{held.name}.lock"):
        assert remove_runs(runs, used, store) == [gone.name, both_gone.name]
        stay = {kept, one_kept, killed, held, used, newest, by_hand}
        assert {path for path in runs.iterdir() if path.is_dir()} == stay
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + OLD_S + 60)
        assert remove_runs(runs, used, store) == [killed.name]
    assert remove_runs(runs, used, store) == [held.name]
    assert remove_runs(runs, used, store) == []


def test_the_only_run_stays(tmp_path: Path) -> None:
    run = run_of(tmp_path, 1, "r_gone")
    assert remove_runs(tmp_path, tmp_path / "run-000000000002", ReleaseStore(tmp_path / "releases")) == []
    assert run.is_dir()


NIGHT = """
import subprocess, sys
from pathlib import Path
from baguni.domain.staging import locked
from deploy import nightly
sys.executable = sys.argv[2]  # stands for a training that takes long
with locked(Path(sys.argv[1])) as lock:
    nightly._command(lock, "train")
"""


def test_what_a_killed_night_has_started_keeps_the_lock(tmp_path: Path) -> None:
    """Two trainings in one folder would write each other's checkpoints."""
    training, lock = tmp_path / "training", tmp_path / "run.lock"
    training.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 600\n")
    training.chmod(0o755)
    night = subprocess.Popen([sys.executable, "-c", NIGHT, str(lock), str(training)])
    pid = int(eventually(lambda: (tmp_path / "pid").is_file() and (tmp_path / "pid").read_text().strip(), "a training"))
    night.kill()
    night.wait()
    try:
        with unheld(lock) as is_free:
            assert not is_free
    finally:
        os.kill(pid, signal.SIGKILL)

    def is_free() -> bool:
        with unheld(lock) as found:
            return found

    eventually(is_free, "the lock is free")
