"""A gateway that remembers lists answers what one answers that makes every list anew, while items change."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
import redis
from google.protobuf.timestamp_pb2 import Timestamp

from baguni.domain.events import ItemUpsert
from baguni.domain.history import Action, HistoryEvent
from baguni.domain.release import Release
from baguni.releases.item_updates import ItemServers, ItemUpdates
from baguni.settings import Endpoints
from baguni.stores.history_store import HistoryWriter
from baguni.v1 import recommendation_pb2 as pb
from baguni.v1 import recommendation_pb2_grpc as pb_grpc
from tests.gateway_process import gateway_process
from tests.waiting import eventually

pytestmark = [pytest.mark.stack, pytest.mark.slow]
NUM_USERS, ROUNDS = 8, 6
NOW_MS = 1_713_000_000_000
OWN = pb.Filter(attribute="brand", any_of=pb.StringSet(values=["own"]))
IN_STOCK = pb.Filter(attribute="available", **{"is": True})
RULES: list[dict[str, object]] = [
    {},
    {"exclude_purchased": True},
    {"exclude_purchased": True, "filters": [IN_STOCK]},
    {"filters": [OWN, IN_STOCK], "diversity": 0.3},
]


@pytest.fixture
def users(running: Endpoints, active_release: Release) -> list[str]:
    """Users who ordered some items each."""
    rng, items = np.random.default_rng(0), active_release.catalog.items
    histories = {}
    for number in range(NUM_USERS):
        chosen = rng.choice(len(items), 4, replace=False)
        histories[f"remembered-{number}"] = [
            HistoryEvent(items[n].item_id, Action.ORDERED, NOW_MS - 86_400_000 * (1 + k), f"order-{k}")
            for k, n in enumerate(chosen)
        ]
    with redis.Redis.from_url(running.redis_url) as client:
        HistoryWriter(client).apply(histories)
    return list(histories)


@pytest.fixture
def updates(running: Endpoints, active_release: Release) -> Iterator[ItemUpdates]:
    """Item updates of the active release; every item is as it was when the test ends."""
    with (
        redis.Redis.from_url(running.redis_url) as client,
        closing(ItemServers.opened(active_release, running, client)) as servers,
    ):
        found = ItemUpdates(active_release, servers, lambda name, problem: None)
        yield found
        found.apply(ItemUpsert(item, int(time.time() * 1000)) for item in active_release.catalog.items)


def test_lists_are_the_same_with_and_without_memory(
    running: Endpoints, active_release: Release, users: list[str], updates: ItemUpdates, tmp_path: Path
) -> None:
    for name in ("remembering", "anew"):
        (tmp_path / name).mkdir()
    few = {"bulk_processes": 0, "num_retrieved": 5}
    with (
        gateway_process(running, tmp_path / "remembering", **few) as remembering,
        gateway_process(running, tmp_path / "anew", **few, remembered_lists=0) as anew,
        grpc.insecure_channel(remembering.address) as one,
        grpc.insecure_channel(anew.address) as other,
    ):
        stubs = [pb_grpc.RecommendationServiceStub(channel) for channel in (one, other)]

        def lists(stub: pb_grpc.RecommendationServiceStub) -> list[tuple[str, ...]]:
            requests = [
                pb.RecommendRequest(user_id=user_id, page_size=4, now=Timestamp(seconds=NOW_MS // 1000), **rules)
                for user_id in users
                for rules in RULES
            ]
            return [tuple(item.item_id for item in stub.Recommend(request, timeout=60).items) for request in requests]

        rng, items = np.random.default_rng(1), list(active_release.catalog.items)
        seen = set()
        for _ in range(ROUNDS):
            eventually(
                lambda: lists(stubs[0]) == lists(stubs[1]),
                "both gateways answer the same lists",
                lambda: [pair for pair in zip(*map(lists, stubs), strict=True) if pair[0] != pair[1]],
            )
            seen.add(tuple(lists(stubs[0])))
            chosen = rng.choice(len(items), 3, replace=False).tolist()
            for n in chosen:
                items[n] = replace(items[n], available=not items[n].available)
            updates.apply(ItemUpsert(items[n], int(time.time() * 1000)) for n in chosen)
        assert len(seen) > 1  # the changes mattered to some lists
        assert 'baguni_searches_total{path="remembered"}' in remembering.get("/metrics")[1]
        assert 'baguni_searches_total{path="remembered"}' not in anew.get("/metrics")[1]
