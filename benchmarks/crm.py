"""What campaigns and assignments cost:

python -m benchmarks.crm [RUN]      writes benchmarks/results/crm.json

RUN is a finished run on Complete Journey. Everything shares this machine; ratios are of one run.
"""

from __future__ import annotations

import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import psutil
import redis
import yaml

from baguni.clients.inference import SyncInferenceClient, summarise, triton_inputs
from baguni.stores.history_store import HistoryWriter
from benchmarks.gateway.scene import DEFAULT_RUN, Scene, scene
from benchmarks.result import RESULTS, Row, write_result
from crm.campaign import Campaign
from crm.job import Job, open_parts
from crm.settings import CrmSettings
from crm.state import CampaignState
from deploy.local.braze_process import KEY, braze_process
from server.experiments.choices import Experiments

ROUNDS, USERS = 3, 1_000
AUDIENCE, HISTORY = 100_000, 20  # users of the large campaign, and how many of a household's events each has
INFER_TIMEOUT_S = 60.0
KILLED_AFTER_S = 60.0
FEATURES = {
    "baguni.rescored": {
        "defaultValue": None,
        "rules": [
            {"key": "order", "variations": [True, False], "hashAttribute": "id", "condition": {"placement": "home"}}
        ],
    }
}


def rows(stage: Scene, folder: Path) -> Iterator[Row]:
    """Everything that is measured."""
    yield _assignment()
    yield _bulk(stage, folder)
    yield from _campaign(stage, folder)


def _assignment() -> Row:
    """Microseconds of choosing for one user, of one experiment with a condition."""
    found, took = Experiments({"features": FEATURES}), []
    for _ in range(20):
        started = time.perf_counter()
        for number in range(1_000):
            found.choose({"id": str(number), "user_id": str(number), "is_anonymous": False, "placement": "home"})
        took.append(1e3 * (time.perf_counter() - started))
    us = statistics.median(took)
    return Row.at_most("assignment to an experiment, median", us, "µs", 30)


def _bulk(stage: Scene, folder: Path) -> Row:
    """Users a second of a campaign's lists, beside the generator's own with the same users and as many calls at a time."""
    user_ids, own, ours = stage.user_ids[:USERS], [], []
    for number in range(ROUNDS):
        own.append(_generator(stage, user_ids))
        ours.append(_prepare(stage, user_ids, folder / f"bulk-{number}"))
    per_s, own_s = statistics.median(ours), statistics.median(own)
    what = "lists of a campaign by GenerateTopItems"
    return Row.at_least_times(what, per_s, "users / s", 0.85, ("generator alone, users / s", own_s))


def _generator(stage: Scene, user_ids: Sequence[str]) -> float:
    endpoints, release = stage.stack.settings.endpoints(), stage.release
    signature, codes_NL = release.signature, release.semantic_ids.codes_NL
    with redis.Redis.from_url(endpoints.redis_url) as client:
        histories = HistoryWriter(client).read(user_ids)
    batches = []
    for first in range(0, len(histories), signature.max_batch_size):
        some = histories[first : first + signature.max_batch_size]
        now_ms = int(time.time() * 1000)
        inputs = summarise([history.events for history in some], now_ms, release.catalog.index, signature)
        every_item = np.ones((len(some), 1), np.bool_)
        batches.append({**triton_inputs(inputs, codes_NL, signature), "node_mask": every_item})
    with (
        closing(SyncInferenceClient(endpoints.triton_url, release.release_id, signature)) as inference,
        ThreadPoolExecutor(CrmSettings().crm_calls) as calls,
    ):
        started = time.monotonic()
        for _ in calls.map(lambda arrays: inference.infer("generator", arrays, INFER_TIMEOUT_S), batches):
            pass
        return len(user_ids) / (time.monotonic() - started)


def _prepare(stage: Scene, user_ids: Sequence[str], folder: Path) -> float:
    endpoints = stage.stack.settings.endpoints()
    folder.mkdir()
    (folder / "users.csv").write_text("user_id\n" + "\n".join(user_ids) + "\n")
    campaign = Campaign.model_validate(
        {
            "name": "bulk",
            "audience": {"file": {"path": folder / "users.csv"}},
            "sinks": [{"file": {"path": folder / "out.parquet"}}],
        }
    )
    settings = CrmSettings(**endpoints.model_dump())
    with (
        closing(CampaignState(folder / "state")) as state,
        open_parts(settings, state) as parts,
        closing(Job(campaign, parts)) as job,
    ):
        run = job.begin()
        job.select(run)
        started = time.monotonic()
        job.prepare(run)
        return len(user_ids) / (time.monotonic() - started)


def _campaign(stage: Scene, folder: Path) -> Iterator[Row]:
    """One campaign for AUDIENCE users into a local Braze, killed once on its way; its memory as it goes."""
    endpoints = stage.stack.settings.endpoints()
    _copy_histories(stage)
    (folder / "users.csv").write_text("user_id\n" + "".join(f"copy-{number}\n" for number in range(AUDIENCE)))
    environment = {
        **os.environ,
        **endpoints.environment(),
        "BAGUNI_CRM_STATE": str(folder / "large-state"),
        "BAGUNI_CRM_BRAZE_KEY": KEY,
    }
    path = folder / "large.yaml"
    command = [sys.executable, "-m", "baguni.cli", "crm", "run", str(path), "--run-id", "large"]
    with braze_process() as braze, (folder / "large.log").open("w") as log:
        content = {
            "name": "large",
            "audience": {"file": {"path": "users.csv"}},
            "quiet": {"campaigns": {"at_most": 1, "days": 1}, "pushed_days": 7},
            "sinks": [{"braze": {"url": braze.url}}],
        }
        path.write_text(yaml.safe_dump(content))
        started = time.monotonic()
        first = psutil.Popen(command, env=environment, stdout=log, stderr=log)
        memory = _watch(first, KILLED_AFTER_S)
        first.kill()
        first.wait()
        second = psutil.Popen(command, env=environment, stdout=log, stderr=log)
        memory += _watch(second)
        assert second.wait() == 0, (folder / "large.log").read_text()[-3000:]
        took_s = time.monotonic() - started
        assert braze.counts()["users"] == AUDIENCE
    with closing(CampaignState(folder / "large-state")) as state:
        counts = state.counts("large")
    sent = sum(states.get("sent", 0) for states in counts.values())
    yield Row(
        f"users of {AUDIENCE:,} sent to the local Braze by a run that was killed after a minute",
        sent,
        "users",
        f"{AUDIENCE:,}",
        sent == AUDIENCE,
        "users / s, everything included",
        AUDIENCE / took_s,
    )
    early, late = max(memory[: max(len(memory) // 10, 1)]), max(memory[len(memory) // 2 :])
    what = "memory of the job in its second half, at most"
    yield Row.at_most_times(what, late, "MB", 1.2, ("in its first tenth, MB", early))


def _copy_histories(stage: Scene) -> None:
    """AUDIENCE users with the newest events of the households, in turn."""
    with redis.Redis.from_url(stage.stack.settings.endpoints().redis_url) as client:
        writer = HistoryWriter(client)
        known = [history.events[-HISTORY:] for history in writer.read(stage.user_ids)]
        batches = (
            {f"copy-{number}": known[number % len(known)] for number in range(first, min(first + 500, AUDIENCE))}
            for first in range(0, AUDIENCE, 500)
        )
        for _ in writer.apply_each(batches):
            pass


def _watch(process: psutil.Popen, until_s: float = math.inf) -> list[float]:
    """Megabytes that a process holds, each half second, until it ends or so many seconds are over."""
    seen, started = [], time.monotonic()
    while process.poll() is None and time.monotonic() - started < until_s:
        try:
            seen.append(process.memory_info().rss / 1e6)
        except psutil.NoSuchProcess:
            break
        time.sleep(0.5)
    return seen


def main(run: str | None = None) -> None:
    """Measure and write the file."""
    found = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with scene(Path(run) if run else DEFAULT_RUN, folder) as stage:
            for row in rows(stage, folder):
                print(row, flush=True)
                found.append(row)
    write_result(RESULTS / "crm.json", "crm", "make bench-crm", found)


if __name__ == "__main__":
    main(*sys.argv[1:])
