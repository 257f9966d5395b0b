"""One server alone, for tests that need no stack."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from tests.faults.streams import own_servers


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
