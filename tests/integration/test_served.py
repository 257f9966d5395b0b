"""The register of what is served, written by machines whose clocks differ."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio
import redis

from baguni.stores.redis_client import connect_async
from baguni.stores.served import KEY, VALID_S, ServedTeller, keeper_name, kept_open, processes, served
from deploy.local.settings import free_port
from tests.redis_server import redis_server

pytestmark = pytest.mark.stack
HOUR_S = 3_600.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[redis.Redis]:
    with redis_server(free_port(), tmp_path_factory.mktemp("redis")) as client:
        yield client


@pytest.fixture
def url(server: redis.Redis) -> str:
    server.flushall()
    return f"redis://127.0.0.1:{server.get_connection_kwargs()['port']}/0"


@pytest_asyncio.fixture
async def client(url: str) -> AsyncIterator[Any]:
    opened = connect_async(url)
    yield opened
    await opened.aclose()


def set_clock(monkeypatch: pytest.MonkeyPatch, wrong_by_s: float) -> None:
    right = time.time
    monkeypatch.setattr(time, "time", lambda: right() + wrong_by_s)


@pytest.mark.parametrize("wrong_by_s", [-HOUR_S, -VALID_S - 1, VALID_S + 1, HOUR_S])
async def test_a_clock_that_is_wrong_removes_and_hides_nothing(
    server: redis.Redis, client: Any, monkeypatch: pytest.MonkeyPatch, wrong_by_s: float
) -> None:
    await ServedTeller(client, "right:1").tell(["r1"])
    with monkeypatch.context() as elsewhere:
        set_clock(elsewhere, wrong_by_s)
        await ServedTeller(client, "wrong:1").tell(["r2"])
        assert served(server) == {"r1", "r2"}
        assert processes(server) == {"right:1", "wrong:1"}
    assert served(server) == {"r1", "r2"}


@pytest.mark.parametrize("wrong_by_s", [-2 * 86_400, 2 * 86_400])
async def test_what_is_kept_open_under_a_wrong_clock_is_served(
    url: str, server: redis.Redis, client: Any, monkeypatch: pytest.MonkeyPatch, wrong_by_s: float
) -> None:
    with monkeypatch.context() as elsewhere:
        set_clock(elsewhere, wrong_by_s)
        opened = kept_open(url, "r1")
        opened.__enter__()
    await ServedTeller(client, "right:1").tell(["r2"])
    assert served(server) == {"r1", "r2"}
    assert processes(server) == {"right:1"}
    opened.__exit__(None, None, None)
    assert served(server) == {"r2"}


async def test_a_process_tells_what_it_has_open_now_and_no_other(server: redis.Redis, client: Any) -> None:
    teller = ServedTeller(client, "host:1")
    for release_ids in ({"r1"}, {"r1", "r2"}, {"r2", "r3"}, set(), {"r1"}):
        await teller.tell(release_ids)
        assert served(server) == release_ids


async def test_what_is_told_no_more_expires(server: redis.Redis, client: Any) -> None:
    server.zadd(KEY, {"r1 gone:1": time.time() - 1, "r2 there:1": time.time() + VALID_S})
    assert served(server) == {"r2"}
    await ServedTeller(client, "host:1").tell(["r3"])
    assert {member.split()[0] for member in server.zrange(KEY, 0, -1)} == {b"r2", b"r3"}


async def test_a_release_is_needed_by_others_when_another_process_has_it(
    url: str, server: redis.Redis, client: Any
) -> None:
    with kept_open(url, "r1"):
        assert served(server, besides=keeper_name()) == set()
        await ServedTeller(client, "host:1").tell(["r1"])
        assert served(server, besides=keeper_name()) == {"r1"}
