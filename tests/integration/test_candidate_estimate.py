"""What a candidate would have earned, from a real gateway's lists: exposures and clicks in Kafka, requests written down, and
the candidate asked of them. Whoever is shown a liked item clicks it, so what the candidate would have earned is known."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pyarrow.parquet as pq
import pytest
import redis
from google.protobuf.timestamp_pb2 import Timestamp
from kafka import KafkaProducer

from baguni.domain.events import producible
from baguni.domain.history import Action, HistoryEvent
from baguni.domain.release import Release, ReleaseStore
from baguni.settings import Endpoints
from baguni.stores.history_store import HistoryWriter
from baguni.v1 import events_pb2
from baguni.v1 import recommendation_pb2 as pb
from baguni.v1 import recommendation_pb2_grpc as pb_grpc
from tests.gateway_process import gateway_process
from tests.tiny_release import renamed

pytestmark = pytest.mark.stack
USERS = [f"explored-{number}" for number in range(20)]
MOMENTS, PAGE, SHARE, AMONG = 20, 4, 0.5, 12  # a sale page of twelve items, of which any can stand anywhere
START_S = 1_764_547_200  # fixed, and with it every order by chance
APART_S = 3_600  # a user keeps an embedding, and with it a list, for less than that
FEATURES = {"features": {"baguni.explore": {"defaultValue": {"share": SHARE, "among": AMONG}}}}


@dataclass(frozen=True)
class Log:
    """What a gateway has served, as it answered, and where it wrote requests down."""

    pages: dict[str, list[str]]  # exposure token → item ids
    as_ranked: dict[str, list[str]]  # the same without chance, of the first pages
    liked: frozenset[str]
    captured: Path


@pytest.fixture(scope="module")
def log(running: Endpoints, active_release: Release, tmp_path_factory: pytest.TempPathFactory) -> Log:
    items = [item.item_id for item in active_release.catalog.items]
    ordered = [
        [HistoryEvent(items[(n + k) % len(items)], Action.ORDERED, 1000 * (START_S - 86_400), "o") for k in (0, 9)]
        for n in range(len(USERS))
    ]
    with redis.Redis.from_url(running.redis_url) as client:
        HistoryWriter(client).apply(dict(zip(USERS, ordered, strict=True)))
    folder = tmp_path_factory.mktemp("gateway")
    (folder / "features.json").write_text(json.dumps(FEATURES))
    options = {"experiments": folder / "features.json", "capture_dir": folder / "captured", "capture_share": 1.0}
    liked = frozenset(items[::3])
    pages, as_ranked, clicks = {}, {}, []
    with (
        gateway_process(running, folder, **options) as gateway,
        grpc.insecure_channel(gateway.address) as channel,
        grpc.insecure_channel(running.gateway_address) as plain_channel,
    ):
        stub, plain = pb_grpc.RecommendationServiceStub(channel), pb_grpc.RecommendationServiceStub(plain_channel)
        for user_id in USERS:
            for moment in range(MOMENTS):
                request = pb.RecommendRequest(user_id=user_id, page_size=PAGE, placement="sale_page")
                request.candidate_item_ids.extend(items[:AMONG])
                request.now.CopyFrom(Timestamp(seconds=START_S + APART_S * moment))
                without = plain.Recommend(request, timeout=30)
                for number in range(2):
                    response = stub.Recommend(request, timeout=30)
                    shown = [item.item_id for item in response.items]
                    pages[response.exposure_token] = shown
                    if number == 0:
                        as_ranked[response.exposure_token] = [item.item_id for item in without.items]
                    clicks += [(user_id, item_id, response.exposure_token) for item_id in shown if item_id in liked]
                    request.page_token = response.next_page_token
    with closing(KafkaProducer(bootstrap_servers=running.kafka_bootstrap)) as producer:
        for number, (user_id, item_id, token) in enumerate(clicks):
            at = Timestamp(seconds=START_S + 60)
            click = events_pb2.ItemClicked(user_id=user_id, item_id=item_id, event_time=at, exposure_token=token)
            producer.send(**producible(click, f"off-policy-{number}", "test"))
        producer.flush()
    return Log(pages, as_ranked, liked, folder / "captured")


@pytest.fixture(scope="module")
def shown(running: Endpoints, log: Log, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shown")
    done = command(running, "experiment", "export", str(folder))
    assert done.returncode == 0, done.stderr
    assert "pages ordered by chance" in done.stdout
    return folder / "shown.parquet"


@pytest.fixture(scope="module")
def candidate(running: Endpoints, active_release: Release, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A release whose lists are others."""

    def rolled(path: Path) -> None:
        np.save(path / "item_vectors.npy", np.roll(active_release.item_vectors, 1, axis=0))

    copied = renamed(active_release, tmp_path_factory.mktemp("candidate") / "r", "r20990401_0000cafe", rolled)
    store = ReleaseStore(running.releases)
    yield store.add(copied.path).release_id
    shutil.rmtree(store.root / copied.release_id)


def command(endpoints: Endpoints, *arguments: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "baguni.cli", *arguments]
    return subprocess.run(words, env={**os.environ, **endpoints.environment()}, capture_output=True, text=True)


def test_the_log_says_with_what_probability_each_item_stood_at_its_place(log: Log, shown: Path) -> None:
    rows = [row for row in pq.read_table(shown).to_pylist() if row["exposure_token"] in log.pages]
    assert len(rows) == 2 * PAGE * MOMENTS * len(USERS)
    shuffled = set()
    for row in rows:
        token, place = row["exposure_token"], row["position"]
        assert log.pages[token][place % PAGE] == row["item_id"]
        assert row["clicked"] is (row["item_id"] in log.liked)
        assert (row["carted"], row["ordered"]) == (False, False)
        if token in log.as_ranked:
            is_own = log.as_ranked[token][place] == row["item_id"]
            expected = SHARE / AMONG + (1 - SHARE) * is_own
            assert row["propensity"] == pytest.approx(expected, rel=1e-5)
            shuffled |= {token} if row["shuffled"] else set()
            assert row["shuffled"] or is_own
    assert len(shuffled) / len(log.as_ranked) == pytest.approx(SHARE, abs=0.08)


def test_what_a_candidate_would_have_earned(running: Endpoints, log: Log, shown: Path, candidate: str) -> None:
    lists = shown.with_name("candidate.parquet")
    done = command(
        running, "release", "replay", "--log", str(log.captured), "--candidate", candidate, "--lists", str(lists)
    )
    assert done.returncode == 0, done.stderr
    rows = pq.read_table(lists).to_pylist()
    assert {row["exposure_token"] for row in rows} == log.pages.keys()
    truth = sum(row["item_id"] in log.liked for row in rows) / len(log.pages)
    proposed: dict[str, list[str]] = {}
    for row in rows:
        proposed.setdefault(row["exposure_token"], []).append(row["item_id"])
    assert sum(proposed[token] != page for token, page in log.as_ranked.items()) > len(log.as_ranked) / 2
    found = json.loads(estimated(running, shown, lists).stdout)
    assert found["num_pages"] == len(log.pages)
    assert found["num_users"] == len(USERS)
    assert found["mean_places"] == PAGE
    for name in ("ips", "snips", "dr"):
        value, high = found["candidate"][name]["value"], found["candidate"][name]["high"]
        assert abs(value - truth) <= 2 * (high - value), (name, truth, found)  # four errors: the simulation has two
    assert found["support"]["low"] <= 1 <= found["support"]["high"]
    page = command(running, "experiment", "estimate", "--shown", str(shown), "--lists", str(lists)).stdout
    assert "candidate, dr" in page
    assert found["conclusion"] in " ".join(page.split())


def estimated(running: Endpoints, shown: Path, lists: Path) -> subprocess.CompletedProcess[str]:
    done = command(running, "experiment", "estimate", "--shown", str(shown), "--lists", str(lists), "--json")
    assert done.returncode == 0, done.stderr
    return done


def test_bad_files_are_named(running: Endpoints, shown: Path, tmp_path: Path) -> None:
    def refused(*arguments: str) -> str:
        done = command(running, "experiment", "estimate", *arguments)
        assert done.returncode != 0
        return done.stderr

    error = refused("--shown", str(shown.with_name("actions.parquet")), "--lists", str(shown))
    assert "has no column exposure_token, position, item_id" in error
    table = pq.read_table(shown)
    table = table.set_column(table.column_names.index("propensity"), "propensity", [[0.0] * len(table)])
    pq.write_table(table, tmp_path / "zero.parquet")
    assert "propensity is 0.0, expected above 0, at most 1" in refused(
        "--shown", str(tmp_path / "zero.parquet"), "--lists", str(shown)
    )
