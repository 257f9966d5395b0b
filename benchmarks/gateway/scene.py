"""The servers, the gateway and the users that a gateway benchmark needs: the local stack over a release of a finished run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import redis

from baguni.domain.release import Release, ReleaseStore
from baguni.releases.activation import activate
from baguni.stores.history_store import HistoryWriter
from benchmarks.gateway.grown import grow
from deploy.local.settings import StackSettings, free_port
from deploy.local.stack import LocalStack
from trainer.data.complete_journey import prepare
from trainer.data.splits import last_month_start_ms
from trainer.export import build_release
from trainer.recipes import recipe_named
from trainer.run import Run

DATA = Path(".baguni/complete-journey")
DEFAULT_RUN = Path(".baguni/quality/complete-journey/runs/seed0")
BATCH = 100
START_S = 120.0


@dataclass(frozen=True)
class Scene:
    """Everything is up; `user_ids` have histories, `now_ms` is the moment after these."""

    stack: LocalStack
    release: Release
    user_ids: tuple[str, ...]
    now_ms: int

    def milvus(self) -> list[psutil.Process]:
        """Return Milvus' processes."""
        launched = psutil.Process(next(row.pid for row in self.stack.status() if row.name == "milvus"))
        return [launched, *launched.children(recursive=True)]

    def gateway(self) -> list[psutil.Process]:
        """Return the gateway's processes that answer page views."""
        return _online(next(row.pid for row in self.stack.status() if row.name == "gateway"))


@dataclass(frozen=True)
class OwnGateway:
    """Another gateway over the same servers, and its processes that answer page views."""

    address: str
    processes: list[psutil.Process]


def _online(supervisor: int) -> list[psutil.Process]:
    children = psutil.Process(supervisor).children()
    return [process for process in children if process.cmdline()[-1].startswith("online-")]


def short_run(path: Path) -> Run:
    """Make a run of a few steps, in minutes: its lists are worth nothing, and cost what those of a trained model cost, because
    shapes are the same. It keeps what an interrupted one has made."""
    if not DATA.is_dir():
        prepare(DATA)
    recipe = recipe_named("complete-journey")
    few = replace(
        recipe,
        steps=20,
        warmup_steps=5,
        rqvae=replace(recipe.rqvae, epochs=2),
        distill=replace(recipe.distill, steps=5, warmup_steps=1),
    )
    run = Run(path, DATA, few)
    run.embed_items()
    run.fit_semantic_ids()
    run.train_dual_head()
    run.distil()
    return run


@contextmanager
def scene(run_path: Path, folder: Path, rescored: bool = False, num_items: int | None = None) -> Iterator[Scene]:
    """Start everything in `folder`, on free ports, and stop it at the end. `num_items`: grow the catalogue to so many."""
    opened = Run.opened(run_path, DATA)
    run = opened if rescored else Run(run_path, DATA, replace(opened.recipe, rescored_share=0.0))
    stack = LocalStack(StackSettings.on_free_ports(folder))
    endpoints = stack.settings.endpoints()
    store = ReleaseStore(endpoints.releases)
    try:
        built = build_release(run, folder / "building")
        release = store.add((grow(built, folder / "grown", num_items) if num_items else built).path)
        stack.start_servers()
        past = run.training_log
        with redis.Redis.from_url(endpoints.redis_url) as client:
            writer = HistoryWriter(client)
            histories = {user_id: past.history(user) for user, user_id in enumerate(past.user_ids)}
            user_ids = tuple(user_id for user_id, events in histories.items() if events)
            for first in range(0, len(user_ids), BATCH):
                writer.apply({user_id: histories[user_id] for user_id in user_ids[first : first + BATCH]})
        activate(store, release.release_id, endpoints)
        stack.start_applications()
        yield Scene(stack, release, user_ids, last_month_start_ms(run.dataset))
    finally:
        stack.stop()


@contextmanager
def own_gateway(stack: LocalStack, **settings: object) -> Iterator[OwnGateway]:
    """Start another gateway over the same servers. `settings` are those of ServerSettings."""
    address, metrics = (f"127.0.0.1:{free_port()}" for _ in range(2))
    chosen = {
        "gateway_address": address,
        "metrics_address": metrics,
        "run_dir": stack.settings.root / "run" / "own",
        **settings,
    }
    own = {f"BAGUNI_{name.upper()}": str(value) for name, value in chosen.items()}
    with (stack.settings.root / "own-gateway.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "server"],
            env={**os.environ, **stack.settings.endpoints().environment(), **own},
            stdout=log,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + START_S
        while not _is_ready(metrics):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((stack.settings.root / "own-gateway.log").read_text()[-3_000:])
            time.sleep(0.2)
        yield OwnGateway(address, _online(process.pid))
    finally:
        process.terminate()
        process.wait()


def _is_ready(metrics_address: str) -> bool:
    """Return whether every process of the gateway serves."""
    try:
        with urllib.request.urlopen(f"http://{metrics_address}/readyz", timeout=5) as reply:
            return set(json.load(reply).values()) == {"SERVING"}
    except OSError:
        return False
