"""A night's release: trained, measured, published, replayed and activated; it stops where it is worse, and goes on where it was
interrupted."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from baguni.domain.release import Release, ReleaseStore
from baguni.releases.activation import activate
from baguni.releases.release_transfer import RemoteReleases
from baguni.settings import Endpoints
from baguni.v1 import recommendation_pb2 as pb
from server.telemetry.capture import Recorded
from tests.tiny_release import renamed
from tests.tiny_shop import write_tiny_shop
from tests.waiting import COMMAND_S, eventually

pytestmark = [pytest.mark.stack, pytest.mark.slow]
MODEL, METRIC = "retrieval, distilled", "NDCG@10"


@dataclass(frozen=True)
class Night:
    """The command with the tiny shop, over the stack."""

    endpoints: Endpoints
    data: Path
    runs: Path
    encoder: Path

    def command(self) -> list[str]:
        words = ["release", "--releases", str(self.endpoints.releases), "nightly", str(self.data), "--recipe", "tiny"]
        return [
            sys.executable,
            "-m",
            "baguni.cli",
            *words,
            "--runs",
            str(self.runs),
            "--text-encoder",
            str(self.encoder),
            "--keep=20",  # other tests need their releases
        ]

    def environment(self) -> dict[str, str]:
        return {**os.environ, **self.endpoints.environment(), "OMP_NUM_THREADS": "1"}

    def run(self, *more: object) -> subprocess.CompletedProcess[str]:
        command = [*self.command(), *map(str, more)]
        return subprocess.run(
            command, env=self.environment(), capture_output=True, text=True, check=False, timeout=COMMAND_S
        )


@pytest.fixture(scope="module")
def night(
    stack: Endpoints, tiny_release: Release, active_release: Release, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Night]:
    """A night that was killed once its release was published: trained, measured and exported, and nothing was activated."""
    tiny, store = tiny_release.path.parent, ReleaseStore(stack.releases)
    before = set(store.ids())
    shop = write_tiny_shop(tmp_path_factory.mktemp("night") / "shop")
    events = (shop / "events.csv").read_text().splitlines(keepends=True)
    (shop / "events.csv").write_text("".join([events[0], *events[50:]]))  # the same data would give the active release
    one = Night(stack, shop, tmp_path_factory.mktemp("nights") / "runs", tiny / "encoder")
    log = one.runs.parent / "night.log"
    with log.open("w") as output:
        killed = subprocess.Popen(one.command(), env=one.environment(), stdout=output, stderr=output)
        try:
            eventually(
                lambda: "is published" in log.read_text() or killed.poll() is not None,
                "the night's release is published",
                lambda: log.read_text()[-3000:],
            )
            assert killed.poll() is None, log.read_text()[-3000:]
        finally:  # one that is left alone activates its release, and prunes what other tests need
            killed.kill()
            killed.wait()
    assert store.active_id() == active_release.release_id
    yield one
    activate(store, active_release.release_id, stack)
    for release_id in set(store.ids()) - before:
        shutil.rmtree(store.root / release_id)


@pytest.fixture(autouse=True)
def other_nights(night: Night, active_release: Release) -> None:
    """Each test begins with the release that was active before."""
    store = ReleaseStore(night.endpoints.releases)
    if store.active_id() != active_release.release_id:
        store.point_to(active_release.release_id)


def test_a_night_that_was_killed_goes_on_and_activates_once(
    night: Night, active_release: Release, tmp_path: Path
) -> None:
    store = ReleaseStore(night.endpoints.releases)
    (run,) = night.runs.glob("run-*")
    trained_at = (run / "distilled.pt").stat().st_mtime_ns
    candidate = (run / "release_id.python").read_text().strip()
    url = (tmp_path / "remote").as_uri()
    pushing = replace(night, endpoints=night.endpoints.model_copy(update={"releases_url": url}))
    done = pushing.run("--push")
    assert done.returncode == 0, done.stderr
    assert f"{candidate} is active." in done.stdout
    assert RemoteReleases(url).active_id() == candidate
    assert store.active_id() == candidate
    assert (run / "distilled.pt").stat().st_mtime_ns == trained_at
    history = json.loads((store.root / "ACTIVE.json").read_text())
    shutil.rmtree(tmp_path / "remote")  # as if it had been killed before it was pushed
    again = pushing.run("--push")
    assert again.returncode == 0
    assert "is active already" in again.stdout
    assert RemoteReleases(url).active_id() == candidate
    assert json.loads((store.root / "ACTIVE.json").read_text()) == history
    release = store.get(candidate)
    assert METRIC in release.metrics["models"][MODEL]["all"]
    assert release.metrics["base"] == active_release.release_id
    assert (release.manifest["warm_runs"], active_release.manifest["warm_runs"]) == (1, 0)
    assert release.trained_until_ms > active_release.trained_until_ms
    assert release.published_ids.items() >= active_release.published_ids.items()


def test_worse_lists_are_not_activated(night: Night, active_release: Release) -> None:
    """Where the active release was measured to be better."""
    store = ReleaseStore(night.endpoints.releases)
    (run,) = night.runs.glob("run-*")
    path = store.root / (run / "release_id.python").read_text().strip() / "manifest.json"
    kept = path.read_text()
    manifest = json.loads(kept)
    manifest["metrics"]["models"][f"before: {MODEL}"]["all"][METRIC] = 0.99
    path.write_text(json.dumps(manifest))
    try:
        done = night.run("--tolerance", 0.1)
    finally:
        path.write_text(kept)
    assert done.returncode == 3, done.stdout + done.stderr
    assert f"expected at least 0.8910. {active_release.release_id} stays." in " ".join(done.stderr.split())
    assert store.active_id() == active_release.release_id


def test_a_release_that_became_active_meanwhile_is_not_replaced(
    night: Night, active_release: Release, tmp_path: Path
) -> None:
    store = ReleaseStore(night.endpoints.releases)
    store.add(renamed(active_release, tmp_path / "other", "r20990501_0000beef").path)
    store.point_to("r20990501_0000beef")
    done = night.run()
    assert done.returncode == 3, done.stdout + done.stderr
    said = " ".join(done.stderr.split())
    assert f"it started from {active_release.release_id}, and r20990501_0000beef became active meanwhile" in said
    assert store.active_id() == "r20990501_0000beef"


def test_a_replay_that_is_worse_stops_it(night: Night, active_release: Release, tmp_path: Path) -> None:
    store = ReleaseStore(night.endpoints.releases)
    (tmp_path / "captured" / "pod-0").mkdir(parents=True)
    request = pb.RecommendRequest(user_id="nobody-yet", page_size=5)
    recorded = Recorded(request, "r", active_release.release_id, int(time.time() * 1000), 0, True, "FULL", (), 3.0, {})
    (tmp_path / "captured" / "pod-0" / "online-0.jsonl").write_text(recorded.line() + "\n")
    done = night.run("--log", tmp_path / "captured", "--max-latency-ratio", 0.0001)
    assert done.returncode == 3, done.stdout + done.stderr
    assert "times as long, expected at most 0.0001" in " ".join(done.stderr.split())
    assert store.active_id() == active_release.release_id


def test_bad_input_is_named(night: Night) -> None:
    done = night.run("--min-overlap", 0.5)
    assert done.returncode == 1
    assert "need --log, the captured requests to replay" in done.stderr
    done = night.run("--push")
    assert done.returncode == 1
    assert "--push needs BAGUNI_RELEASES_URL" in done.stderr
    done = night.run("--metric", "MRR")
    assert done.returncode == 1
    assert "has no MRR of 'retrieval, distilled'" in done.stderr
