"""What a training says of itself can be read in TensorBoard and in MLflow, one run however often it was interrupted."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from deploy.local.settings import free_port
from tests.waiting import eventually
from trainer.run import Run
from trainer.tracking import FOLDER, RUN_ID, Tracking


def said(folder: Path, stage: str) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard reads: tag → (step, value)."""
    read = EventAccumulator(str(folder / FOLDER / stage))
    read.Reload()
    return {tag: [(at.step, at.value) for at in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def interrupted(tracking: Callable[[], Tracking]) -> None:
    """Eight steps, of which the last three are taken again by another process, in a later second: TensorBoard reads files in
    the order of the second that is in their names."""
    began = int(time.time())
    with tracking().told("dual-head") as tell:
        for step in range(8):
            tell(step, {"retrieval": 10.0 - step})
    eventually(lambda: int(time.time()) > began, "the next second has begun")
    with tracking().told("dual-head") as tell:
        for step in range(5, 10):
            tell(step, {"retrieval": 20.0 - step})


STEPS = [*((step, 10.0 - step) for step in range(5)), *((step, 20.0 - step) for step in range(5, 10))]


def test_every_step_once_and_each_stage_by_itself(tmp_path: Path) -> None:
    interrupted(lambda: Tracking(tmp_path, {}))
    with Tracking(tmp_path, {}).told("distillation") as tell:
        tell(0, {"kl": 0.5})
    assert said(tmp_path, "dual-head") == {"loss/retrieval": STEPS}
    assert said(tmp_path, "distillation") == {"loss/kl": [(0, 0.5)]}


def test_mlflow_has_one_run_with_settings_steps_and_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri, folder = (tmp_path / "mlruns").as_uri(), tmp_path / "run"
    folder.mkdir()
    settings = {"dataset": "tiny", "rqvae": {"epochs": 3}}
    interrupted(lambda: Tracking(folder, settings, uri))
    last = Tracking(folder, settings, uri)
    last.results({"training_s": 3.5, "mode": "first", "models": {"distilled": {"all": {"NDCG@10": 0.25}}}})
    last.close()
    client = MlflowClient(tracking_uri=uri)
    run = client.get_run((folder / RUN_ID).read_text().strip())
    assert run.info.status == "FINISHED"
    assert run.data.params == {"dataset": "tiny", "rqvae/epochs": "3"}
    assert run.data.metrics["result/models/distilled/all/NDCG_10"] == 0.25
    history = client.get_metric_history(run.info.run_id, "dual-head/retrieval")
    latest = {each.step: each.value for each in sorted(history, key=lambda each: each.timestamp)}
    assert sorted(latest.items()) == STEPS


def test_an_mlflow_that_is_away_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "trainer.tracking"):
        interrupted(lambda: Tracking(tmp_path, {}, f"http://127.0.0.1:{free_port()}"))
    assert "MLflow is not told of this training" in caplog.text
    assert said(tmp_path, "dual-head") == {"loss/retrieval": STEPS}


def test_a_run_tells_of_both_its_stages(trained: Run) -> None:
    for stage, steps in (("dual-head_training", trained.recipe.steps), ("distillation", trained.recipe.distill.steps)):
        assert [step for step, _ in said(trained.path, stage)["loss/retrieval"]] == list(range(steps))
