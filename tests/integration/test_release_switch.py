"""No answer mixes two releases: a switch is whole, and what does not belong together is refused."""

from __future__ import annotations

import itertools
import json
import random
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
import redis
import tritonclient.grpc as triton
from pymilvus import MilvusClient

from baguni.clients.inference import SyncInferenceClient
from baguni.clients.item_index import RELEASE, collections_of_releases
from baguni.clients.milvus import collection_names
from baguni.domain.catalog import Item
from baguni.domain.errors import ReleaseMismatchError
from baguni.domain.events import ItemRemoval, ItemUpsert
from baguni.domain.history import Action, HistoryEvent
from baguni.domain.release import RESERVED_IDS, Release, ReleaseStore, load_release
from baguni.domain.semantic_ids import write_ids
from baguni.domain.signature import model_specs, triton_model_name
from baguni.releases.activation import activate, check_golden_queries, copy_models, publish
from baguni.releases.item_updates import ItemServers, ItemUpdates
from baguni.releases.pruning import prune
from baguni.settings import Endpoints
from baguni.stores import lease, served
from baguni.stores.history_store import HistoryWriter
from baguni.stores.lease import LeaseError, held
from baguni.stores.live_items import LiveItemWriter
from baguni.v1 import recommendation_pb2 as pb
from baguni.v1 import recommendation_pb2_grpc as pb_grpc
from tests.tiny_release import renamed
from tests.waiting import WAIT_S, eventually

pytestmark = pytest.mark.stack


@pytest.fixture
def stub(running: Endpoints) -> Iterator[pb_grpc.RecommendationServiceStub]:
    with grpc.insecure_channel(running.gateway_address) as channel:
        yield pb_grpc.RecommendationServiceStub(channel)


@pytest.fixture(autouse=True)
def served_again(stub: pb_grpc.RecommendationServiceStub, active_release: Release) -> Iterator[None]:
    """At the end of each test the gateway serves what it served before: it follows the pointer within a second or two."""
    yield
    eventually(
        lambda: stub.Recommend(pb.RecommendRequest(user_id="nobody")).release_id == active_release.release_id,
        "the first release is served again",
    )


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
    from server.edge.page_token import PageToken

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
    forget_killed_gateways(running)
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


def test_a_release_has_the_changes_of_items_before_it_is_active(
    running: Endpoints, active_release: Release, tmp_path: Path
) -> None:
    """Also those that arrive while it is made ready: no price goes back, and nothing that was removed is seen again. The switch
    back to the release before brings what changed since."""
    ids = ("r20990501_0000aaaa", "r20990502_0000bbbb")
    releases = ReleaseStore(running.releases)
    one, other = (releases.add(renamed(active_release, tmp_path / each, each).path) for each in ids)
    items = active_release.catalog.items[:10]
    events = random_item_events(items, 90)
    rounds = iter([events[:30], events[30:60]])
    at_the_switch: dict[str, object] = {}

    class Watched(ReleaseStore):
        def point_to(self, release_id: str, lease_number: int = 0) -> None:
            at_the_switch.clear()
            at_the_switch.update(changes_of(running, release_id, events))
            super().point_to(release_id, lease_number)

    store = Watched(running.releases)
    with item_updates(running, one) as first, item_updates(running, other) as second:
        publish(one, running)
        releases.point_to(one.release_id)
        try:
            activate(store, other.release_id, running, lambda stage: first.apply(next(rounds, [])))
            assert at_the_switch == changes_of(running, one.release_id, events) != {}
            second.apply(events[60:])
            activate(store, one.release_id, running)
            assert at_the_switch == changes_of(running, other.release_id, events)
        finally:
            activate(store, active_release.release_id, running)
    assert at_the_switch == changes_of(running, active_release.release_id, events)
    put_back = [ItemUpsert(item, int(time.time() * 1000) + 1) for item in items]
    new = sorted({event.item_id for event in events} - set(active_release.catalog.index))
    removals = [ItemRemoval(item_id, int(time.time() * 1000) + 1) for item_id in new]
    with item_updates(running, active_release) as updates:
        assert updates.apply([*put_back, *removals]) == []


def test_the_semantic_id_of_an_item_stays_from_release_to_release(
    running: Endpoints, active_release: Release, tmp_path: Path
) -> None:
    """Three items: an ID is reserved for one, one came while the next release was trained, and one came before that."""
    releases = ReleaseStore(running.releases)
    model = active_release.catalog.items[3]
    twins = {name: replace(model, item_id=f"twin-{name}") for name in ("one", "two", "back")}
    now_ms = int(time.time() * 1000)

    def codes_in(release: Release) -> dict[str, tuple[int, ...]]:
        with redis.Redis.from_url(running.redis_url) as client:
            found = LiveItemWriter(client, release.release_id).changes()
        return {live.item.item_id: live.codes for live in found if live.item.item_id.startswith("twin-")}

    old = releases.add(renamed(active_release, tmp_path / "old", "r20990503_0000aaaa").path)
    publish(old, running)
    with item_updates(running, old) as updates:
        assert updates.apply(ItemUpsert(twins[name], now_ms) for name in ("one", "two")) == []
    given = codes_in(old)
    assert len(set(given.values())) == 2
    *content, last = given["twin-two"]
    reserved = {"twin-back": (*content, last + 3)}
    new = renamed(
        active_release, tmp_path / "new", "r20990504_0000bbbb", lambda path: write_ids(path / RESERVED_IDS, reserved)
    )
    new = releases.add(new.path)
    publish(new, running)
    with item_updates(running, new) as updates, redis.Redis.from_url(running.redis_url) as client:
        assert updates.apply([ItemUpsert(twins["back"], now_ms)]) == []
        only_two = [live for live in LiveItemWriter(client, old.release_id).changes() if live.item == twins["two"]]
        assert updates.carry(only_two) == []
        assert updates.apply([ItemUpsert(twins["one"], now_ms)]) == []
    assert codes_in(new) == given | reserved


def random_item_events(items: Sequence[Item], number: int) -> list[ItemUpsert | ItemRemoval]:
    """Prices, texts, removals, returns, and new items; some twice, some late."""
    chosen, now_ms = random.Random(5), int(time.time() * 1000)
    known = [*items, *(replace(items[n], item_id=f"new-{n}", title=f"light {items[n].title}") for n in range(5))]
    events: list[ItemUpsert | ItemRemoval] = []
    for n in range(number):
        item, time_ms = chosen.choice(known), now_ms - 200_000 + 1_000 * n - chosen.choice([0, 0, 0, 5_000])
        changed = chosen.choice([replace(item, available=False), replace(item, title=f"fresh {item.title}"), item])
        is_removed = chosen.random() < 0.3
        events.append(ItemRemoval(item.item_id, time_ms) if is_removed else ItemUpsert(changed, time_ms))
    return events


def changes_of(endpoints: Endpoints, release_id: str, events: Sequence[ItemUpsert | ItemRemoval]) -> dict[str, object]:
    """Return what is stored of the items of some events; consumers may store others. A new item that was removed again may be
    stored or not."""
    item_ids = {event.item_id for event in events}
    with redis.Redis.from_url(endpoints.redis_url) as client:
        live = LiveItemWriter(client, release_id).changes()
    found = {each.item.item_id: (each.removed, each.time_ms, None if each.removed else each.item) for each in live}
    return {
        item_id: state
        for item_id, state in found.items()
        if item_id in item_ids and not (item_id.startswith("new-") and state[0])
    }


@contextmanager
def item_updates(endpoints: Endpoints, release: Release) -> Iterator[ItemUpdates]:
    with (
        closing(redis.Redis.from_url(endpoints.redis_url)) as client,
        closing(ItemServers.opened(release, endpoints, client)) as servers,
    ):
        yield ItemUpdates(release, servers)


def forget_killed_gateways(endpoints: Endpoints) -> None:
    """Gateways that other tests killed count as serving for another minute."""
    with redis.Redis.from_url(endpoints.redis_url) as client:
        client.delete(served.KEY)


def test_what_nobody_needs_is_pruned_everywhere_and_what_is_served_stays(
    stub, shopper, running: Endpoints, active_release: Release, tmp_path: Path
) -> None:
    """The active release, the one before it, and one that a gateway has open for an experiment stay."""
    store = ReleaseStore(running.releases)
    forget_killed_gateways(running)
    ids = [f"r2099020{number}_0000abcd" for number in range(1, 4)]
    unused, pinned, before = (
        store.add(renamed(active_release, tmp_path / release_id, release_id).path) for release_id in ids
    )
    for release in (unused, pinned):
        publish(release, running)
    activate(store, before.release_id, running)
    activate(store, active_release.release_id, running)
    with redis.Redis.from_url(running.redis_url) as client:
        client.set(f"baguni:{{items:{unused.release_id}}}:sequence", 1)
        HistoryWriter(client).apply(
            {f"items:{unused.release_id}": [HistoryEvent("rye", Action.CLICKED, 1_700_000_000_000)]}
        )
        client.zadd(served.KEY, {f"{pinned.release_id} elsewhere:1": time.time() + 60})
        earlier = f"items_{active_release.release_id}"  # as the version before named it
        with closing(MilvusClient(running.milvus_uri)) as milvus:
            properties = {RELEASE: active_release.release_id}
            milvus.create_collection(earlier, dimension=2, properties=properties, timeout=30)
        removed = prune(store, running, keep=2)
        assert unused.release_id in removed
        assert not {active_release.release_id, pinned.release_id, before.release_id} & set(removed)
        (kept,) = client.keys(f"*{unused.release_id}*")
        assert kept.endswith(b":h")  # the history of a user who is called like the key of a release
        HistoryWriter(client).drop([f"items:{unused.release_id}"])
    models = {name.partition("_r2")[2] for name in loaded_models(running)}
    assert models == {release.release_id[2:] for release in (active_release, pinned, before)}
    collections = dict(collections_of_releases(running.milvus_uri))
    assert earlier not in collections
    assert set(collection_names(active_release.release_id)) < set(collections)
    owners = set(collections.values())
    assert owners == {active_release.release_id, pinned.release_id, before.release_id}
    folders = {path.name for path in running.triton_repository.iterdir()}
    assert not {name for name in folders if unused.release_id in name}
    assert set(store.ids()) == {active_release.release_id, pinned.release_id, before.release_id}
    eventually(lambda: stub.Recommend(pb.RecommendRequest(user_id=shopper)).release_id == active_release.release_id)
    with redis.Redis.from_url(running.redis_url) as client:
        client.zrem(served.KEY, f"{pinned.release_id} elsewhere:1")
        eventually(
            lambda: served.served(client) == {active_release.release_id}, "every process serves the active release"
        )
    assert set(prune(store, running, keep=1)) == {pinned.release_id, before.release_id}
    assert prune(store, running, keep=1) == []


def test_two_activations_at_once_end_with_what_the_later_one_wanted(
    running: Endpoints, active_release: Release, tmp_path: Path
) -> None:
    store = ReleaseStore(running.releases)
    ids = ("r20990301_0000aaaa", "r20990302_0000bbbb")
    others = [store.add(renamed(active_release, tmp_path / release_id, release_id).path) for release_id in ids]
    waited: list[str] = []
    try:
        with ThreadPoolExecutor(2) as pool:
            both = [pool.submit(activate, store, other.release_id, running, waited.append, 0.1) for other in others]
            for each in both:
                each.result(timeout=600)
        assert any(stage.startswith("wait for activate r2099030") for stage in waited)
        (last,) = [other for other in others if other.release_id == store.active_id()]
        assert {name for name in loaded_models(running) if last.release_id in name}
        for model in model_specs(last.signature):
            assert f"{model}_{last.release_id}" in loaded_models(running)
    finally:
        activate(store, active_release.release_id, running)


def test_the_same_models_can_be_loaded_twice_at_once(
    running: Endpoints, active_release: Release, tmp_path: Path
) -> None:
    """An activation waits for what a container that follows the pointer is loading."""
    release = ReleaseStore(running.releases).add(renamed(active_release, tmp_path / "twice", "r20990601_0000aaaa").path)
    copy_models(release, running.triton_repository)
    clients = [SyncInferenceClient(running.triton_url, release.release_id, release.signature) for _ in range(2)]
    try:
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(clients[0].load)
            models = [triton_model_name(name, release.release_id) for name in model_specs(release.signature)]
            eventually(lambda: all(map(clients[1]._state, models)), "the first loads")
            second = pool.submit(clients[1].load)
            for loaded in (first, second):
                loaded.result(timeout=WAIT_S)
        check_golden_queries(release, clients[0])
        clients[0].unload()
    finally:
        for client in clients:
            client.close()


def test_a_lease_that_was_lost_changes_nothing(running: Endpoints, active_release: Release, tmp_path: Path) -> None:
    """Its holder was cut off, another one has moved the pointer since: its number is older, and is refused."""
    store = ReleaseStore(tmp_path / "store")
    first, second = (
        store.add(renamed(active_release, tmp_path / release_id, release_id).path)
        for release_id in ("r20990401_0000aaaa", "r20990402_0000bbbb")
    )
    with redis.Redis.from_url(running.redis_url) as client:
        with held(running.redis_url, "one") as cut_off:
            taken = pytest.raises(LeaseError, match="another process changes what is served: one, by process")
            with taken, held(running.redis_url, "two", wait_s=0):
                raise AssertionError("two at once")
            client.delete(lease.KEY)  # as if it had expired
            with held(running.redis_url, "another") as another:
                assert another.number > cut_off.number
                store.point_to(second.release_id, another.number)
                with pytest.raises(LeaseError, match="lost to another process"):
                    cut_off.renew()
                with pytest.raises(LeaseError):
                    cut_off.check()
                with pytest.raises(ReleaseMismatchError, match="nothing was changed"):
                    store.point_to(first.release_id, cut_off.number)
        assert client.get(lease.KEY) is None
    assert store.active_id() == second.release_id


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
