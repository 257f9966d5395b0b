"""What a training says of itself as it goes: to TensorBoard, in the run's folder, and to MLflow where MLFLOW_TRACKING_URI is
set. Both read a run that was interrupted as one run. An MLflow that is away costs what it was not told, and nothing else.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

log = logging.getLogger(__name__)
FOLDER, RUN_ID = "tensorboard", "mlflow_run_id"  # beside what the run leaves
MLFLOW_EXPERIMENT = "baguni"
MLFLOW_EVERY = 50  # values of a call: its largest batch is 1,000 metrics
MLFLOW_TRIES, MLFLOW_TIMEOUT_S = 1, 10


class Tracking:
    """Of one run. `settings`: what was asked for, flat or nested. `uri`: MLflow's; empty: none."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], uri: str = "") -> None:
        self._folder, self._settings = folder, settings
        self._tensorboard: dict[str, SummaryWriter] = {}  # by stage: one that begins again forgets its later steps only
        self._mlflow = MlflowRun(folder, settings, uri) if uri else None

    @classmethod
    def of(cls, folder: Path, settings: Mapping[str, Any]) -> Tracking:
        """As the environment says."""
        return cls(folder, settings, os.environ.get("MLFLOW_TRACKING_URI", ""))

    def step(self, stage: str, step: int, losses: Mapping[str, float]) -> None:
        """The losses of a step of a stage, from 0."""
        if stage not in self._tensorboard:
            self._tensorboard[stage] = SummaryWriter(str(self._folder / FOLDER / stage), purge_step=step)
        for name, value in losses.items():
            self._tensorboard[stage].add_scalar(f"loss/{name}", value, step)
            if self._mlflow is not None:
                self._mlflow.add(f"{stage}/{name}", value, step)

    @contextmanager
    def told(self, stage: str) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
        """`step` of a stage, for a training loop: what it has said is written, however it ends."""
        try:
            yield lambda step, losses: self.step(stage, step, losses)
        finally:
            self.close(finished=False)

    def results(self, metrics: Mapping[str, Any]) -> None:
        """What an evaluation measured: nested numbers become `models/distilled/all/NDCG_10`."""
        numbers = dict(_numbers(metrics))
        with SummaryWriter(str(self._folder / FOLDER / "result")) as writer:
            for name, value in numbers.items():
                writer.add_scalar(f"result/{name}", value)
        if self._mlflow is not None:
            for name, value in numbers.items():
                self._mlflow.add(f"result/{name}", value, 0)

    def close(self, finished: bool = True) -> None:
        """Write what is left; `finished` ends the run in MLflow."""
        for writer in self._tensorboard.values():
            writer.close()
        self._tensorboard.clear()
        if self._mlflow is not None:
            self._mlflow.send(finished)


class MlflowRun:
    """A run in MLflow, made with its first values; its id is kept, so that whoever goes on goes on there."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], uri: str) -> None:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", str(MLFLOW_TRIES))
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(MLFLOW_TIMEOUT_S))
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(tracking_uri=uri)
        self._folder, self._settings = folder, settings
        self._waiting: list[tuple[str, float, int, int]] = []
        self._run_id, self._away = "", False

    def add(self, name: str, value: float, step: int) -> None:
        """One value; told with others."""
        self._waiting.append((name, value, int(time.time() * 1000), step))
        if len(self._waiting) >= MLFLOW_EVERY and not self._away:
            self.send()

    def send(self, finished: bool = False) -> None:
        """Tell what waits."""
        from mlflow.entities import Metric
        from mlflow.exceptions import MlflowException

        waiting, self._waiting = self._waiting, []
        try:
            run_id = self._id()
            for start in range(0, len(waiting), MLFLOW_EVERY):
                metrics = [
                    Metric(name.replace("@", "_"), value, at_ms, step)
                    for name, value, at_ms, step in waiting[start : start + MLFLOW_EVERY]
                ]
                self._client.log_batch(run_id, metrics=metrics)
            if finished:
                self._client.set_terminated(run_id)
        except (MlflowException, OSError) as error:
            if not self._away:
                log.warning("MLflow is not told of this training: %s", error)
            self._away = True

    def _id(self) -> str:
        if self._run_id:
            return self._run_id
        kept = self._folder / RUN_ID
        if kept.is_file():
            self._run_id = kept.read_text().strip()
            return self._run_id
        experiment = self._client.get_experiment_by_name(MLFLOW_EXPERIMENT)
        experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(MLFLOW_EXPERIMENT)
        made = self._client.create_run(experiment_id, run_name=self._folder.resolve().name)
        self._run_id = made.info.run_id
        for name, value in _flat(self._settings):
            self._client.log_param(self._run_id, name, str(value)[:500])
        kept.write_text(self._run_id + "\n")
        return self._run_id


def _flat(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in nested.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}/")
        else:
            yield prefix + name, value


def _numbers(nested: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in _flat(nested):
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield name.replace("@", "_").replace(" ", "_"), float(value)
