"""One server alone, for tests that need no stack; and what holds before each test of the whole system."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator

import pytest
import redis
from prometheus_client.parser import text_string_to_metric_families

from baguni.domain.release import ReleaseStore
from deploy.local.stack import LocalStack
from tests.faults.streams import own_servers
from tests.waiting import eventually


@pytest.fixture(autouse=True)
def the_pointed_release_is_served(request: pytest.FixtureRequest) -> None:
    """Wait until the gateway of `running` serves what the pointer names: a test before may have switched releases."""
    if "running" not in request.fixturenames:
        return
    store = ReleaseStore(request.getfixturevalue("running").releases)
    stack: LocalStack = request.getfixturevalue("local_stack")
    port = stack.settings.gateway_metrics_port
    eventually(
        lambda: served_releases(port) == {store.active_id()}, seen=lambda: (served_releases(port), store.active_id())
    )


def served_releases(metrics_port: int) -> set[str]:
    """Return the ids of the releases that some process of a gateway serves."""
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics", timeout=30) as reply:
        families = text_string_to_metric_families(reply.read().decode())
    samples = (sample for family in families if family.name == "baguni_release_info" for sample in family.samples)
    return {sample.labels["release"] for sample in samples if sample.value > 0}


@pytest.fixture(scope="session")
def lone_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the URL of a Redis that tests share: one that writes to it uses `client`, which empties it."""
    with own_servers(tmp_path_factory.mktemp("redis"), ["redis"]) as own:
        yield own.endpoints.redis_url


@pytest.fixture
def client(lone_redis: str) -> Iterator[redis.Redis]:
    """Return a client of the Redis, which is emptied afterwards."""
    with redis.Redis.from_url(lone_redis) as connected:
        yield connected
        connected.flushdb()


@pytest.fixture(scope="session")
def lone_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the address of a broker."""
    with own_servers(tmp_path_factory.mktemp("broker"), ["broker"]) as own:
        yield own.endpoints.kafka_bootstrap
