"""Histories in a real Redis equal histories in memory, in any delivery order with any redelivery."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Iterator

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from baguni.errors import UnavailableError
from baguni.history import Action, History, HistoryEvent, append
from baguni.history_store import HistoryReader, HistoryWriter
from baguni.settings import Endpoints
from tests.integration.streams import read_history
from tests.strategies import history_events

pytestmark = pytest.mark.stack


@pytest.fixture
def client(stack: Endpoints) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(stack.redis_url) as connected:
        yield connected


def test_what_was_written_is_read_in_the_order_of_the_question(client: redis.Redis, stack: Endpoints) -> None:
    rye = HistoryEvent("rye", Action.ORDERED, 2, "o|1")
    milk = HistoryEvent("우유", Action.CLICKED, 1)
    users = [f"{name}-{uuid.uuid4().hex}" for name in ("a", "}b{", "unknown")]
    assert HistoryWriter(client).apply({users[0]: [rye, milk], users[1]: [milk]}) == {users[0]: 1, users[1]: 1}

    async def read() -> list[History]:
        async with redis.asyncio.Redis.from_url(stack.redis_url) as connected:
            return await HistoryReader(connected).read(users[::-1])

    assert asyncio.run(read()) == [History(), History((milk,), 1), History((milk, rye), 1)]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    events=st.lists(history_events(), max_size=15),
    max_events=st.integers(1, 6),
    cuts=st.lists(st.integers(1, 4), max_size=10),
    shuffle=st.randoms(use_true_random=False),
)
def test_redis_and_memory_agree_on_every_step(
    client: redis.Redis,
    stack: Endpoints,
    events: list[HistoryEvent],
    max_events: int,
    cuts: list[int],
    shuffle: random.Random,
) -> None:
    user_id, writer = uuid.uuid4().hex, HistoryWriter(client, max_events)
    rest = [*events, *events]
    shuffle.shuffle(rest)
    expected = History()
    for size in [*cuts, len(rest)]:
        batch, rest = rest[:size], rest[size:]
        expected = append(expected, batch, max_events)
        assert writer.apply({user_id: batch}) == {user_id: expected.version}
        assert read_history(stack, user_id) == expected
    assert expected.events == append(History(), events, max_events).events


def test_a_redelivered_event_beside_a_new_one_raises_the_version(client: redis.Redis, stack: Endpoints) -> None:
    """The old one is pushed out by the new one: the set changed, though of what came one stayed and one went."""
    first, second, third = (HistoryEvent("rye", Action.CLICKED, time_ms) for time_ms in (1, 2, 3))
    user_id, writer = uuid.uuid4().hex, HistoryWriter(client, max_events=2)
    writer.apply({user_id: [first, second]})
    assert writer.apply({user_id: [first, third]}) == {user_id: 2}
    assert read_history(stack, user_id) == History((second, third), 2)


def test_a_history_expires_and_a_new_event_renews_it(client: redis.Redis) -> None:
    user_id, writer = uuid.uuid4().hex, HistoryWriter(client, ttl_s=1000)
    writer.apply({user_id: [HistoryEvent("rye", Action.CLICKED, 1)]})
    keys = [key for key in client.keys("*") if user_id.encode() in key]
    assert len(keys) == 2
    for key in keys:
        assert 990 < client.ttl(key) <= 1000
        client.expire(key, 10)
    writer.apply({user_id: [HistoryEvent("rye", Action.CLICKED, 2)]})
    assert all(client.ttl(key) > 990 for key in keys)


def test_the_longest_history_is_stored_compactly_enough(client: redis.Redis) -> None:
    """2,048 events of realistic length: what one of the heaviest shoppers costs."""
    user_id = uuid.uuid4().hex
    events = [HistoryEvent(f"{n:07d}", Action.ORDERED, 1_700_000_000_000 + n, f"{n // 9:011d}") for n in range(2048)]
    HistoryWriter(client).apply({user_id: events})
    size = client.memory_usage(f"baguni:{{{user_id}}}:history")
    assert size is not None
    assert size < 2048 * 64


def test_a_forgotten_user_is_unknown_again(client: redis.Redis, stack: Endpoints) -> None:
    writer = HistoryWriter(client)
    writer.apply({"forgotten": [HistoryEvent("rye", Action.CLICKED, 1_700_000_000_000)]})
    writer.forget(["forgotten", "never-there"])
    assert not client.keys("baguni:{forgotten}*")


def test_redis_away_is_said_by_name(stack: Endpoints) -> None:
    nobody = redis.Redis(host="127.0.0.1", port=1)
    with pytest.raises(UnavailableError, match="redis is unavailable"):
        HistoryWriter(nobody).apply({"u": [HistoryEvent("rye", Action.CLICKED, 1)]})
    with pytest.raises(UnavailableError, match="redis is unavailable"):
        read_history(stack.model_copy(update={"redis_url": "redis://127.0.0.1:1/0"}), "u")
