"""The gateway under experiments: what they choose is what is served, and who was in which is said with the list."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import redis
from aiohttp import web

from baguni.clients.topics import TopicReader
from baguni.domain.events import EXPOSURE_TOPIC
from baguni.domain.history import Action, HistoryEvent
from baguni.domain.release import Release, ReleaseStore
from baguni.releases.activation import published
from baguni.settings import Endpoints
from baguni.stores.history_store import HistoryWriter
from baguni.v1 import events_pb2, exposures_pb2
from baguni.v1 import recommendation_pb2 as pb
from baguni.v1 import recommendation_pb2_grpc as pb_grpc
from deploy.local.settings import free_port
from server.experiments.choices import Experiments
from tests.gateway_process import environment, gateway_process
from tests.tiny_release import renamed
from tests.waiting import COMMAND_S, eventually

pytestmark = [pytest.mark.stack, pytest.mark.slow]
USERS = [f"experimental-{number}" for number in range(12)]
CONTROL = ["soap-rye", "beer-aged", "milk-white"]
Ask = Callable[..., pb.RecommendResponse]


@pytest.fixture(scope="module", autouse=True)
def shoppers(running: Endpoints) -> None:
    now_ms = int(time.time() * 1000)
    orders = [
        HistoryEvent(item_id, Action.ORDERED, now_ms - 86_400_000, "o") for item_id in ("bread-rye", "milk-fresh")
    ]
    with redis.Redis.from_url(running.redis_url) as client:
        HistoryWriter(client).apply(dict.fromkeys(USERS, orders))


def payload(**named: Any) -> dict[str, Any]:
    return {"features": {f"baguni.{name}": feature for name, feature in named.items()}}


def split(key: str, *variations: Any, **more: Any) -> dict[str, Any]:
    return {
        "defaultValue": None,
        "rules": [{"key": key, "variations": list(variations), "hashAttribute": "id", **more}],
    }


@contextmanager
def asking(address: str) -> Iterator[Ask]:
    with grpc.insecure_channel(address) as channel:
        stub = pb_grpc.RecommendationServiceStub(channel)

        def ask(user_id: str = "", **fields: Any) -> pb.RecommendResponse:
            request = pb.RecommendRequest(page_size=5, **fields)
            if user_id:
                request.user_id = user_id
            return stub.Recommend(request, timeout=30)

        yield ask


def ids(response: pb.RecommendResponse) -> list[str]:
    return [item.item_id for item in response.items]


def said(response: pb.RecommendResponse) -> dict[str, str]:
    return {each.experiment_key: each.variation_key for each in response.experiment_assignments}


def test_controls_targets_and_exposures(running: Endpoints, tmp_path: Path) -> None:
    """A control of popular items, one of a list of one's own, and the model, on one placement in one country."""
    where = {"placement": "sale", "country": "KR"}
    features = payload(list=split("sale-test", "model", "popular", CONTROL, condition=where))
    (tmp_path / "features.json").write_text(json.dumps(features))
    expected = Experiments(features)
    korea = {"country": events_pb2.AttributeValue(string_value="KR")}
    with (
        gateway_process(running, tmp_path, experiments=tmp_path / "features.json") as gateway,
        asking(gateway.address) as ask,
    ):
        tokens, seen = {}, set()
        for user_id in USERS:
            elsewhere = ask(user_id, placement="home", attributes=korea)
            assert said(elsewhere) == {}
            assert said(ask(user_id, placement="sale")) == {}
            response = ask(user_id, placement="sale", attributes=korea)
            (assigned,) = expected.choose({"id": user_id, **where}).assignments
            assert said(response) == {"sale-test": assigned.variation}
            seen.add(assigned.variation)
            tokens[response.exposure_token] = assigned.variation
            sources = {source for item in response.items for source in item.sources}
            if assigned.variation == "0":
                assert ids(response) == ids(elsewhere)
            elif assigned.variation == "1":
                assert sources == {pb.SOURCE_POPULAR}
            else:
                assert ids(response)[:3] == CONTROL
            assert response.degradation_tier == pb.DEGRADATION_TIER_FULL
        assert seen == {"0", "1", "2"}
        excluding = ask(
            next_in("2", expected, where), placement="sale", attributes=korea, exclude_item_ids=["soap-rye"]
        )
        assert ids(excluding)[:2] == CONTROL[1:]  # rules hold for controls too
        visitor = pb.AnonymousUser(anonymous_id="a-visitor")
        assert set(said(ask(anonymous=visitor, placement="sale", attributes=korea))) == {"sale-test"}
        assert said(ask(anonymous=pb.AnonymousUser(), placement="sale", attributes=korea)) == {}
    records = [record for record in TopicReader(running.kafka_bootstrap, [EXPOSURE_TOPIC], {}) if record.headers]
    served = [exposures_pb2.ListServed.FromString(record.value or b"") for record in records]
    exposed = {
        one.exposure_token: one.experiment_assignments[0].variation_key
        for one in served
        if one.exposure_token in tokens
    }
    assert exposed == tokens


def test_order_and_width_are_chosen(running: Endpoints, tmp_path: Path) -> None:
    features = payload(
        rescored=split("order", True, False), diversity=split("mix", 0, 0.9), num_retrieved=split("width", 50, 60)
    )
    (tmp_path / "features.json").write_text(json.dumps(features))
    expected = Experiments(features)
    with (
        gateway_process(running, tmp_path, experiments=tmp_path / "features.json") as gateway,
        asking(gateway.address) as ask,
        asking(running.gateway_address) as ask_plain,
    ):
        changed = 0
        for user_id in USERS:
            choices, response = expected.choose({"id": user_id}), ask(user_id)
            assert said(response) == {each.experiment: each.variation for each in choices.assignments}
            plain = ids(ask_plain(user_id, diversity=choices.diversity))
            if choices.rescored:
                assert ids(response) == plain
            changed += ids(response) != plain
        assert changed  # without the generative head's say the order is another


def test_two_releases_beside_each_other(running: Endpoints, active_release: Release, tmp_path: Path) -> None:
    store = ReleaseStore(running.releases)
    candidate = store.add(renamed(active_release, tmp_path / "candidate", "r20240501_cand0001").path)
    features = payload(release=split("candidate", active_release.release_id, candidate.release_id))
    file = tmp_path / "features.json"
    file.write_text(json.dumps(features))
    expected = Experiments(features)
    both = {active_release.release_id, candidate.release_id}
    with (
        published(store, candidate, running),
        gateway_process(running, tmp_path, experiments=file) as gateway,
        asking(gateway.address) as ask,
    ):
        eventually(lambda: {ask(user_id).release_id for user_id in USERS} == both)
        for user_id in USERS:
            response = ask(user_id)
            assert response.release_id == expected.choose({"id": user_id}).release_id
            following = ask(user_id, page_token=response.next_page_token)
            assert following.release_id == response.release_id
        # A release that nobody has is nobody's: the active one answers, and nobody is in the experiment.
        file.write_text(json.dumps(payload(release=split("candidate", "r20000101_00000000", "r20000101_00000000"))))
        eventually(lambda: not any(said(ask(user_id)) for user_id in USERS), "no user is in the experiment")
        assert {ask(user_id).release_id for user_id in USERS} == {active_release.release_id}
        counted = 'baguni_experiment_arms_not_served_total{release="r20000101_00000000"}'
        assert counted in gateway.get("/metrics")[1]


def test_features_that_are_not_valid(running: Endpoints, tmp_path: Path) -> None:
    """At the start they are an error; later they leave what was there."""
    file = tmp_path / "features.json"
    file.write_text(json.dumps(payload(diversity={"defaultValue": 7})))
    refused = subprocess.run(
        [sys.executable, "-m", "server.worker", "online-0"],
        env=environment(running, tmp_path, experiments=file),
        stdin=subprocess.PIPE,
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
        check=False,
    )
    assert refused.returncode == 1
    assert "baguni.diversity is 7, expected a number from 0 to 1" in refused.stderr
    file.write_text(json.dumps(payload(list={"defaultValue": "popular"})))
    with gateway_process(running, tmp_path, experiments=file) as gateway, asking(gateway.address) as ask:

        def is_popular() -> bool:
            return {source for item in ask(USERS[0]).items for source in item.sources} == {pb.SOURCE_POPULAR}

        assert is_popular()
        file.write_text("{")
        eventually(lambda: "no JSON" in gateway.log.read_text(), "the log names the file that is no JSON")
        assert is_popular()
        file.write_text(json.dumps(payload(list={"defaultValue": "model"})))
        eventually(lambda: not is_popular(), "lists come from the model again")


def test_features_of_an_endpoint_are_asked_for_by_etag_and_stay_when_it_fails(
    running: Endpoints, tmp_path: Path
) -> None:
    with FeatureServer() as server:
        server.payload = payload(list={"defaultValue": "popular"})
        url = f"http://127.0.0.1:{server.port}/api/features/sdk-key"
        with (
            gateway_process(running, tmp_path, experiments=url, experiments_refresh_s=1) as gateway,
            asking(gateway.address) as ask,
        ):

            def is_popular() -> bool:
                return {source for item in ask(USERS[0]).items for source in item.sources} == {pb.SOURCE_POPULAR}

            assert is_popular()
            eventually(lambda: 304 in server.answered, "the gateway asks with its ETag")
            server.status = 500
            eventually(lambda: server.answered[-1] == 500, "the gateway is answered 500", lambda: server.answered)
            assert is_popular()


def test_features_of_an_endpoint_are_asked_for_when_it_announces_a_change(running: Endpoints, tmp_path: Path) -> None:
    """The gateway would ask again by itself in an hour only."""
    with FeatureServer() as server:
        server.payload = payload(list={"defaultValue": "popular"})
        url = f"http://127.0.0.1:{server.port}/api/features/sdk-key"
        with (
            gateway_process(running, tmp_path, experiments=url, experiments_refresh_s=3_600) as gateway,
            asking(gateway.address) as ask,
        ):

            def is_popular() -> bool:
                return {source for item in ask(USERS[0]).items for source in item.sources} == {pb.SOURCE_POPULAR}

            assert is_popular()
            eventually(lambda: server.num_listening, "the gateway listens to the endpoint's events")
            server.payload = payload(list={"defaultValue": "model"})
            server.say_so()
            eventually(lambda: not is_popular(), "lists follow the announced change")


class FeatureServer:
    """GrowthBook's SDK endpoint, as far as it is documented: features with an ETag, and a stream of events."""

    def __init__(self) -> None:
        self.port, self.payload, self.status = free_port(), payload(), 200
        self.answered: list[int] = []
        self.num_listening = 0
        self._changed: asyncio.Event
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._ready = threading.Event()

    def __enter__(self) -> FeatureServer:
        self._thread.start()
        assert self._ready.wait(COMMAND_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(COMMAND_S)

    def say_so(self) -> None:
        self._loop.call_soon_threadsafe(self._changed.set)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._changed = asyncio.Event()
        app = web.Application()
        app.router.add_get("/api/features/sdk-key", self._features)
        app.router.add_get("/sub/sdk-key", self._stream)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        self._loop.run_until_complete(runner.setup())
        self._loop.run_until_complete(web.TCPSite(runner, "127.0.0.1", self.port).start())
        self._ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.close()

    async def _features(self, request: web.Request) -> web.Response:
        etag = f'W/"{hash(json.dumps(self.payload))}"'
        is_known = request.headers.get("If-None-Match") == etag
        status = 304 if is_known and self.status == 200 else self.status
        self.answered.append(status)
        headers = {"ETag": etag, "x-sse-support": "enabled"}
        body = None if status == 304 else json.dumps(self.payload)
        return web.Response(status=status, text=body, headers=headers)

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        self.num_listening += 1
        while True:
            await self._changed.wait()
            self._changed.clear()
            await response.write(b"event: features\ndata: {}\n\n")


def next_in(variation: str, expected: Experiments, where: dict[str, str]) -> str:
    return next(u for u in USERS if expected.choose({"id": u, **where}).assignments[0].variation == variation)
