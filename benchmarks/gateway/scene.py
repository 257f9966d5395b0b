"""The servers, the gateway and the users that a gateway benchmark needs: the local stack over a release of a finished run."""

from __future__ import annotations

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
from deploy.local.settings import StackSettings
from deploy.local.stack import LocalStack
from trainer.data.splits import last_month_start_ms
from trainer.export import build_release
from trainer.recipes import recipe_named
from trainer.run import Run

DATA = Path(".baguni/complete-journey")
DEFAULT_RUN = Path(".baguni/quality/complete-journey/runs/seed0")
BATCH = 100


@dataclass(frozen=True)
class Scene:
    """Everything is up; `user_ids` have histories, `now_ms` is the moment after these."""

    stack: LocalStack
    release: Release
    user_ids: tuple[str, ...]
    now_ms: int

    def gateway(self) -> list[psutil.Process]:
        """The gateway's processes that answer page views."""
        supervisor = psutil.Process(next(row.pid for row in self.stack.status() if row.name == "gateway"))
        return [process for process in supervisor.children() if process.cmdline()[-1].startswith("online-")]


@contextmanager
def scene(run_path: Path, folder: Path, rescored: bool = False, num_items: int | None = None) -> Iterator[Scene]:
    """Start everything in `folder`, on free ports, and stop it at the end. `num_items`: grow the catalogue to so many."""
    recipe = recipe_named("complete-journey")
    run = Run(run_path, DATA, recipe if rescored else replace(recipe, rescored_share=0.0))
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
