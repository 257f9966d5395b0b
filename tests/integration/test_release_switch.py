"""No answer mixes two releases: a switch is whole, and what does not belong together is refused."""

from __future__ import annotations

import itertools
import json
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
import redis
import tritonclient.grpc as triton

from baguni.activation import activate
from baguni.errors import ReleaseMismatchError
from baguni.history import Action, HistoryEvent
from baguni.history_store import HistoryWriter
from baguni.release import Release, ReleaseStore, load_release
from baguni.settings import Endpoints
from baguni.signature import model_specs
from baguni.v1 import recommendation_pb2 as pb
from baguni.v1 import recommendation_pb2_grpc as pb_grpc
from tests.tiny_release import renamed
from tests.waiting import eventually

pytestmark = pytest.mark.stack


@pytest.fixture
def stub(running: Endpoints) -> Iterator[pb_grpc.RecommendationServiceStub]:
    with grpc.insecure_channel(running.gateway_address) as channel:
        yield pb_grpc.RecommendationServiceStub(channel)


@pytest.fixture
def shopper(running: Endpoints) -> str:
    """A user whose lists need every model: two orders are known."""
    day_ms, now_ms = 86_400_000, int(time.time() * 1000)
    events = [
        HistoryEvent(item_id, Action.ORDERED, now_ms - days * day_ms, f"order-{days}")
        for days in (7, 14)
        for item_id in ("bread-rye", "milk-fresh")
    ]
    with redis.Redis.from_url(running.redis_url) as client:
        HistoryWriter(client).apply({"switch-shopper": events})
    return "switch-shopper"


@contextmanager
def traffic(stub: pb_grpc.RecommendationServiceStub, user_id: str) -> Iterator[list[pb.RecommendResponse]]:
    """Requests one after the other meanwhile; all of their answers. The first error is raised at the end."""
    answers: list[pb.RecommendResponse] = []
    stopping = threading.Event()

    def ask() -> None:
        while not stopping.is_set():
            answers.append(stub.Recommend(pb.RecommendRequest(user_id=user_id, page_size=3), timeout=30))

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask)
        try:
            yield answers
        finally:
            stopping.set()
        asking.result(timeout=30)


def test_a_switch_under_traffic_fails_no_request_and_a_rollback_returns(
    stub, shopper, running: Endpoints, active_release: Release, tmp_path: Path
) -> None:
    store = ReleaseStore(running.releases)
    other = store.add(renamed(active_release, tmp_path / "other", "r20990101_0000beef").path)
    with traffic(stub, shopper) as answers:
        activate(store, other.release_id, running)
        eventually(lambda: bool(answers) and answers[-1].release_id == other.release_id, "the other release is served")
        assert store.previous_id() == active_release.release_id
        activate(store, store.previous_id(), running)
        eventually(lambda: answers[-1].release_id == active_release.release_id, "the first release is served")
    served = [answer.release_id for answer in answers]
    assert sum(one != other for one, other in itertools.pairwise(served)) == 2
    assert {(len(answer.items), answer.degradation_tier) for answer in answers} == {(3, pb.DEGRADATION_TIER_FULL)}


def test_a_page_of_a_release_that_is_gone_is_refused_as_stale(stub, running, active_release) -> None:
    from server.page_token import PageToken

    token = stub.Recommend(pb.RecommendRequest(user_id="nobody", page_size=3)).next_page_token
    signer = running.token_signer()
    stale = replace(PageToken.decode(token, signer), release_id="r20000101_00000000").encode(signer)
    with pytest.raises(grpc.RpcError) as failure:
        stub.Recommend(pb.RecommendRequest(user_id="nobody", page_size=3, page_token=stale))
    assert failure.value.code() is grpc.StatusCode.FAILED_PRECONDITION


def test_a_release_that_triton_does_not_hold_is_not_served(stub, running, active_release, tmp_path) -> None:
    """The pointer is moved by hand to a release whose encoder is not there: item vectors without their encoder."""
    store = ReleaseStore(running.releases)
    half = store.add(renamed(active_release, tmp_path / "half", "r20990102_0000dead").path)
    store.point_to(half.release_id)
    try:
        for _ in range(20):
            assert stub.Recommend(pb.RecommendRequest(user_id="nobody")).release_id == active_release.release_id
            time.sleep(0.1)
    finally:
        store.point_to(active_release.release_id)


def test_models_that_carry_another_releases_id_are_refused_and_the_pointer_stays(
    running: Endpoints, active_release: Release, tmp_path: Path
) -> None:
    store = ReleaseStore(running.releases)
    mixed_id = "r20990103_0000cafe"

    def another_releases(path: Path) -> None:
        config = path / "triton" / f"user_encoder_{mixed_id}" / "config.pbtxt"
        own, other = (f'string_value: "{release_id}"' for release_id in (mixed_id, active_release.release_id))
        config.write_text(config.read_text().replace(own, other))

    mixed = renamed(active_release, tmp_path / "mixed", mixed_id, another_releases)
    store.add(mixed.path)
    with pytest.raises(ReleaseMismatchError, match="user_encoder"):
        activate(store, mixed.release_id, running)
    assert store.active_id() == active_release.release_id


def test_a_model_that_encodes_known_users_otherwise_is_refused_and_the_pointer_stays(
    running: Endpoints, active_release: Release, tmp_path: Path
) -> None:
    """Weights of another training under this release's name: every file is as its manifest says, and still wrong."""
    golden = dict(active_release.golden_queries)
    golden["user_embedding"] = golden["user_embedding"] * 1.1
    other = renamed(
        active_release,
        tmp_path / "wrong",
        "r20990104_0000feed",
        lambda path: np.savez(path / "golden_queries.npz", **golden),
    )
    store = ReleaseStore(running.releases)
    store.add(other.path)
    with pytest.raises(
        ReleaseMismatchError, match=r"user_encoder of .* does not answer known users as it did in training: 0\.091"
    ):
        activate(store, other.release_id, running)
    assert store.active_id() == active_release.release_id


def test_the_old_models_are_unloaded_after_the_drain_and_no_request_fails(
    stub, shopper, running: Endpoints, active_release: Release, tmp_path: Path
) -> None:
    store = ReleaseStore(running.releases)
    other = store.add(renamed(active_release, tmp_path / "drained", "r20990105_0000f00d").path)
    try:
        with traffic(stub, shopper) as answers:
            activate(store, other.release_id, running, drain_s=4.0)
            assert answers[-1].release_id == other.release_id
            loaded = loaded_models(running)
            assert {name for name in loaded if active_release.release_id in name} == set()
            assert len({name for name in loaded if other.release_id in name}) == len(model_specs(other.signature))
    finally:
        activate(store, active_release.release_id, running)
    assert {(len(answer.items), answer.degradation_tier) for answer in answers} == {(3, pb.DEGRADATION_TIER_FULL)}
    eventually(
        lambda: stub.Recommend(pb.RecommendRequest(user_id="u001")).release_id == active_release.release_id,
        "the first release is served again",
    )


def loaded_models(endpoints: Endpoints) -> set[str]:
    client = triton.InferenceServerClient(endpoints.triton_url)
    try:
        index = client.get_model_repository_index(as_json=True)["models"]
    finally:
        client.close()
    return {model["name"] for model in index if model.get("state") == "READY"}


def test_a_part_that_was_altered_is_named(active_release: Release, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(active_release.path, copy)
    with (copy / "item_vectors.npy").open("r+b") as file:
        file.seek(200)
        file.write(b"\x00\x01\x02\x03")
    with pytest.raises(ReleaseMismatchError, match=r"item_vectors\.npy"):
        load_release(copy)


def test_the_manifest_names_every_part(active_release: Release) -> None:
    manifest = json.loads((active_release.path / "manifest.json").read_text())
    files = {p.relative_to(active_release.path).as_posix() for p in active_release.path.rglob("*") if p.is_file()}
    assert set(manifest["parts"]) == files - {"manifest.json"}
