"""Requests written down by a real gateway, and asked again of a candidate that nobody has activated."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import grpc
import numpy as np
import pytest
import redis
from pymilvus import MilvusClient

from baguni.clients.inference import SyncInferenceClient
from baguni.clients.item_index import ItemIndex
from baguni.clients.milvus import collection_names
from baguni.domain.history import Action, HistoryEvent
from baguni.domain.release import Release, ReleaseStore
from baguni.settings import Endpoints
from baguni.stores import served
from baguni.stores.history_store import HistoryWriter
from baguni.v1 import recommendation_pb2 as pb
from baguni.v1 import recommendation_pb2_grpc as pb_grpc
from server.telemetry.capture import Recorded
from tests.gateway_process import gateway_process
from tests.tiny_release import renamed

pytestmark = [pytest.mark.stack, pytest.mark.slow]
USERS = [f"replayed-{number}" for number in range(8)]
DAY_MS = 86_400_000


@pytest.fixture(scope="module")
def captured(stack: Endpoints, active_release: Release, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a gateway has written down of sixteen pages of eight users."""
    items, now_ms = [item.item_id for item in active_release.catalog.items], int(time.time() * 1000)
    with redis.Redis.from_url(stack.redis_url) as client:
        HistoryWriter(client).apply(
            {
                user_id: [
                    HistoryEvent(items[(n + k) % len(items)], Action.ORDERED, now_ms - DAY_MS, "o") for k in (0, 9)
                ]
                for n, user_id in enumerate(USERS)
            }
        )
    folder = tmp_path_factory.mktemp("gateway")
    with (
        gateway_process(stack, folder, capture_dir=folder / "captured", capture_share=1.0) as gateway,
        grpc.insecure_channel(gateway.address) as channel,
    ):
        stub = pb_grpc.RecommendationServiceStub(channel)
        for user_id in USERS:
            request = pb.RecommendRequest(user_id=user_id, page_size=5, placement="home")
            request.page_token = stub.Recommend(request, timeout=30).next_page_token
            stub.Recommend(request, timeout=30)
        assert 'baguni_captured_total{outcome="written"} 16.0' in gateway.get("/metrics")[1]
    return folder / "captured"


@pytest.fixture(scope="module")
def candidate(stack: Endpoints, active_release: Release, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Release]:
    """The active release with item vectors that are another item's: its lists are others."""

    def rolled(path: Path) -> None:
        np.save(path / "item_vectors.npy", np.roll(active_release.item_vectors, 5, axis=0))

    target = tmp_path_factory.mktemp("candidate") / "r"
    copied = renamed(active_release, target, "r20990301_0000cafe", rolled)
    store = ReleaseStore(stack.releases)
    yield store.add(copied.path)
    shutil.rmtree(store.root / copied.release_id)


def replay(stack: Endpoints, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "baguni.cli", "release", "replay", *arguments]
    return subprocess.run(command, env={**os.environ, **stack.environment()}, capture_output=True, text=True)


def is_loaded(stack: Endpoints, release: Release) -> bool:
    with closing(SyncInferenceClient(stack.triton_url, release.release_id, release.signature)) as triton:
        return triton.is_loaded()


def has_collections(stack: Endpoints, release: Release) -> bool:
    with closing(MilvusClient(stack.milvus_uri, timeout=30)) as milvus:
        return bool(set(collection_names(release.release_id)) & set(milvus.list_collections()))


def take_away(stack: Endpoints, release: Release) -> None:
    """Unload what a replay left, for the tests after this one."""
    with closing(SyncInferenceClient(stack.triton_url, release.release_id, release.signature)) as triton:
        triton.unload()
    with closing(ItemIndex(stack.milvus_uri, release.release_id)) as index:
        index.drop()


def test_what_is_written_down_is_for_nobody_else_and_complete(captured: Path) -> None:
    (file,) = captured.glob("*.jsonl")
    assert file.stat().st_mode & 0o777 == 0o600
    recorded = [Recorded.of(line) for line in file.read_text().splitlines()]
    assert [r.request.user_id for r in recorded[::2]] == USERS
    assert [r.offset for r in recorded[:4]] == [0, 5, 0, 5]
    assert all(len(r.item_ids) == 5 and r.tier == "FULL" and r.took_ms > 0 for r in recorded)
    assert {"history", "encode", "search"} <= recorded[0].stage_ms.keys()
    assert Recorded.of(recorded[0].line()) == recorded[0]


def test_a_candidate_is_compared_and_leaves_nothing_behind(
    stack: Endpoints, active_release: Release, captured: Path, candidate: Release
) -> None:
    done = replay(stack, "--log", str(captured), "--candidate", candidate.release_id, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["compared"] == 16
    assert found["overlap"]["active_with_recorded"] == pytest.approx(1.0)
    assert 0 <= found["overlap"]["mean"] < 0.9
    assert found["candidate"]["answered"] == found["active"]["answered"] == 16
    assert found["active"]["tiers"] == {"FULL": 16}
    assert found["candidate"]["p50_ms"] > 0
    assert ReleaseStore(stack.releases).active_id() == active_release.release_id
    assert is_loaded(stack, candidate) == has_collections(stack, candidate) is False


def test_a_candidate_that_a_gateway_serves_by_then_stays(stack: Endpoints, captured: Path, candidate: Release) -> None:
    """An experiment that begins during the replay serves it beside the active one."""
    with redis.Redis.from_url(stack.redis_url) as client:
        client.zadd(served.KEY, {f"{candidate.release_id} elsewhere:1": time.time() + 600})
        try:
            assert replay(stack, "--log", str(captured), "--candidate", candidate.release_id).returncode == 0
            assert is_loaded(stack, candidate) == has_collections(stack, candidate) is True
        finally:
            client.zrem(served.KEY, f"{candidate.release_id} elsewhere:1")
            take_away(stack, candidate)


def test_a_line_that_was_cut_is_counted_and_the_others_are_replayed(
    stack: Endpoints, captured: Path, candidate: Release, tmp_path: Path
) -> None:
    (file,) = captured.glob("*.jsonl")
    (tmp_path / "pod-0").mkdir()
    (tmp_path / "pod-0" / file.name).write_bytes(file.read_bytes()[:-20])
    done = replay(stack, "--log", str(tmp_path), "--candidate", candidate.release_id, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["compared"] == 15
    assert "skipped lines that are no recorded request: 1, first" in done.stderr


def test_the_active_release_beside_itself_is_the_same(
    stack: Endpoints, active_release: Release, captured: Path
) -> None:
    arguments = ("--log", str(captured), "--candidate", active_release.release_id, "--min-overlap", "1")
    done = replay(stack, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["overlap"]["mean"] == found["overlap"]["same_first"] == 1.0
    assert found["score_shift"]["p95"] == pytest.approx(0, abs=1e-5)
    assert is_loaded(stack, active_release)


def test_too_little_overlap_is_an_exit_status_of_its_own(stack: Endpoints, captured: Path, candidate: Release) -> None:
    done = replay(stack, "--log", str(captured), "--candidate", candidate.release_id, "--min-overlap", "0.99")
    assert done.returncode == 3
    assert "expected at least 0.99" in done.stderr
    assert "16 requests compared" in done.stdout


def test_what_cannot_be_replayed_is_said(
    stack: Endpoints, active_release: Release, captured: Path, tmp_path: Path
) -> None:
    (file,) = captured.glob("*.jsonl")
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"request": {"userId": 7')
    for log, candidate, message in (
        (broken, active_release.release_id, "broken.jsonl:1 is no recorded request"),
        (broken, active_release.release_id, "the log has no request"),
        (tmp_path / "nowhere", active_release.release_id, "nowhere is no file"),
        (file, "r_none", "there is no release 'r_none'"),
    ):
        done = replay(stack, "--log", str(log), "--candidate", candidate)
        assert done.returncode == 1
        assert message in done.stderr
        assert "Traceback" not in done.stderr
