"""A Redis primary that becomes a replica, and keeps its connections, is left for the server where the address leads by then."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import pytest_asyncio
import redis

from baguni.domain.catalog import Item
from baguni.domain.errors import RefusedError, UnavailableError
from baguni.stores.forgotten import KEY, ForgottenFollower, ForgottenUsers
from baguni.stores.live_items import LiveItem, LiveItemReader, LiveItemWriter
from baguni.stores.redis_client import connect, connect_async, redis_errors
from baguni.stores.served import ServedTeller, served
from deploy.local.settings import free_port
from tests.faults.proxy import Proxy
from tests.redis_server import redis_server
from tests.waiting import eventually

pytestmark = pytest.mark.stack
NOWHERE = 1  # a port on which nothing listens
SCRIPT = "return redis.call('SET', KEYS[1], ARGV[1])"


class Pair(NamedTuple):
    """Two servers, and an address that leads to the first until it is told otherwise."""

    url: str
    first: redis.Redis
    second: redis.Redis
    proxy: Proxy
    second_port: int

    def fail_over(self) -> None:
        """Demote the first without breaking its connections, and lead new ones to the second."""
        self.first.replicaof("127.0.0.1", NOWHERE)
        self.proxy.lead_to(self.second_port)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with ExitStack() as opened:
        ports = free_port(), free_port()
        first, second = (opened.enter_context(redis_server(port, tmp_path)) for port in ports)
        proxy = Proxy(ports[0])
        opened.callback(proxy.close)
        yield Pair(f"redis://127.0.0.1:{proxy.port}/0", first, second, proxy, ports[1])


def set_plainly(client: redis.Redis) -> None:
    client.set("key", "b")


def set_by_script(client: redis.Redis) -> None:
    client.register_script(SCRIPT)(keys=["key"], args=["b"])


def set_in_pipeline(client: redis.Redis) -> None:
    client.pipeline(transaction=False).get("other").set("key", "b").execute()


def set_in_transaction(client: redis.Redis) -> None:
    client.pipeline(transaction=True).get("other").set("key", "b").execute()


def set_with_errors_as_values(client: redis.Redis) -> None:
    assert client.pipeline(transaction=False).set("key", "b").execute(raise_on_error=False) == [True]


WRITES = [set_plainly, set_by_script, set_in_pipeline, set_in_transaction, set_with_errors_as_values]


@pytest.mark.parametrize("write", WRITES)
def test_what_is_written_after_a_failover_reaches_the_new_primary(
    pair: Pair, write: Callable[[redis.Redis], None]
) -> None:
    with connect(pair.url) as client:
        write(client)
        pair.first.set("key", "a")
        pair.fail_over()
        with redis_errors():
            write(client)
    assert pair.second.get("key") == b"b"


@pytest.mark.parametrize("setting", ["replica-serve-stale-data no", "min-replicas-to-write 1"])
def test_a_server_that_was_cut_off_is_left(pair: Pair, setting: str) -> None:
    with connect(pair.url) as client:
        client.set("key", "a")
        pair.first.config_set(*setting.split())
        if "stale" in setting:
            pair.first.replicaof("127.0.0.1", NOWHERE)
        pair.proxy.lead_to(pair.second_port)
        pair.second.set("key", "b")
        with redis_errors():
            assert client.getset("key", "c") == b"b"


def test_as_long_as_the_address_leads_to_a_replica_redis_is_unavailable(pair: Pair) -> None:
    with connect(pair.url) as client:
        client.ping()
        pair.first.replicaof("127.0.0.1", NOWHERE)
        before = pair.first.info("stats")["total_connections_received"]
        for _ in range(3):
            with pytest.raises(UnavailableError, match="the server may not be the primary any more"), redis_errors():
                client.set("key", "a")
        assert pair.first.info("stats")["total_connections_received"] >= before + 3
        pair.proxy.lead_to(pair.second_port)
        with redis_errors():
            client.set("key", "b")
    assert pair.second.get("key") == b"b"


def test_a_primary_in_need_keeps_its_connections(pair: Pair) -> None:
    with connect(pair.url) as client:
        client.lpush("list", "a")
        before = pair.first.info("stats")["total_connections_received"]
        with pytest.raises(RefusedError), redis_errors():
            client.get("list")
        pair.first.config_set("maxmemory", 1)
        with pytest.raises(UnavailableError), redis_errors():
            client.set("key", "a")
        assert pair.first.info("stats")["total_connections_received"] == before


def live_item(item_id: str, time_ms: int) -> LiveItem:
    return LiveItem(Item(item_id, item_id), (0, 0), np.zeros(2, np.float32), np.zeros(2, np.float32), time_ms)


def write_items(server: redis.Redis, first: int, stop: int) -> None:
    items = [live_item(f"item-{number}", number) for number in range(first, stop)]
    assert LiveItemWriter(server, "r").write(items) == {}


@pytest.mark.parametrize("again", [4, 10, 16])
@pytest.mark.parametrize("how", ["new connections", "the old server follows the new one"])
async def test_no_item_is_missed_whose_sequence_was_given_twice(pair: Pair, again: int, how: str) -> None:
    """The primary dies with its last ten changes; as many others, fewer or more are written before the reader asks again."""
    write_items(pair.first, 0, 20)
    write_items(pair.second, 0, 10)  # what had reached the replica
    reading = connect_async(pair.url)
    reader = LiveItemReader(reading, "r")
    assert len(await reader.changes()) == 20
    assert await reader.changes() == []
    write_items(pair.second, 100, 100 + again)
    if how == "new connections":
        pair.first.client_kill_filter(_type="normal")
        pair.proxy.lead_to(pair.second_port)
    else:  # the reader keeps its connection
        pair.first.replicaof("127.0.0.1", pair.second_port)
        eventually(lambda: pair.first.info("replication")["master_link_status"] == "up", "it follows")
    found = {live.item.item_id for live in await eventually_async(reader.changes)}
    assert found >= {f"item-{number}" for number in range(100, 100 + again)}
    await reading.aclose()


@pytest.mark.parametrize("behind_ms", [0, 5_000])
async def test_nobody_is_missed_who_is_to_be_forgotten(pair: Pair, behind_ms: int) -> None:
    """The new primary's clock may be behind, so that positions are given twice."""
    ForgottenUsers(pair.first).note({"early": 1, "lost": 2})
    ForgottenUsers(pair.second).note({"early": 1})
    reading = connect_async(pair.url)
    follower = ForgottenFollower(reading, "host:1")
    assert {entry.user_id for entry in await follower.new()} == {"early", "lost"}
    pair.first.client_kill_filter(_type="normal")
    pair.proxy.lead_to(pair.second_port)
    ForgottenUsers(pair.second).note({"late": 3})
    position = int(pair.second.zscore(KEY, "late"))
    pair.second.zadd(KEY, {"late": position - behind_ms})
    assert "late" in {entry.user_id for entry in await eventually_async(follower.new)}
    await reading.aclose()


async def eventually_async(read: Callable[[], Awaitable[list[Any]]]) -> list[Any]:
    """Return the first answer that comes while connections are made anew."""
    for _ in range(100):
        try:
            return await read()
        except UnavailableError:
            await asyncio.sleep(0.05)
    return await read()


@pytest_asyncio.fixture
async def client(pair: Pair) -> AsyncIterator[Any]:
    opened = connect_async(pair.url)
    yield opened
    await opened.aclose()


async def test_one_failed_write_moves_every_connection_of_a_client(pair: Pair, client: Any) -> None:
    """Readers get no error from a replica that is cut off: only old values."""
    pair.first.set("key", "a")
    assert await asyncio.gather(*(client.get("key") for _ in range(8))) == [b"a"] * 8
    num_open = sum(entry["cmd"] == "get" for entry in pair.first.client_list())
    assert num_open > 1
    pair.fail_over()
    pair.second.set("key", "b")
    with redis_errors():
        await client.set("other", "b")
        assert await asyncio.gather(*(client.get("key") for _ in range(8))) == [b"b"] * 8


@pytest.mark.parametrize("transaction", [False, True])
async def test_an_asynchronous_pipeline_reaches_the_new_primary(pair: Pair, client: Any, transaction: bool) -> None:
    await client.ping()
    pair.fail_over()
    with redis_errors():
        await client.pipeline(transaction=transaction).set("key", "b").execute()
    assert pair.second.get("key") == b"b"


async def test_a_gateway_goes_on_to_tell_what_it_serves(pair: Pair, client: Any) -> None:
    teller = ServedTeller(client, "host:1")
    await teller.tell(["r1"])
    pair.fail_over()
    await teller.tell(["r1", "r2"])
    assert served(pair.second) == {"r1", "r2"}
