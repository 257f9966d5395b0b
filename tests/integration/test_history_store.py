"""Histories in a real Redis equal histories built at once, in any delivery order with any redelivery."""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import Iterator

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from baguni.domain.errors import UnavailableError
from baguni.domain.history import CLOCK_SKEW_MS, Action, Cancellation, Change, Deletion, History, HistoryEvent, build
from baguni.settings import Endpoints
from baguni.stores.history_store import HistoryReader, HistoryWriter, Outcome, keys_of
from tests.integration.streams import read_history
from tests.strategies import history_changes

pytestmark = pytest.mark.stack


@pytest.fixture
def client(stack: Endpoints) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(stack.redis_url) as connected:
        yield connected


def test_what_was_written_is_read_in_the_order_of_the_question(client: redis.Redis, stack: Endpoints) -> None:
    rye = HistoryEvent("rye", Action.ORDERED, 2, "o|1")
    milk = HistoryEvent("우유", Action.CLICKED, 1)
    users = [f"{name}-{uuid.uuid4().hex}" for name in ("a", "}b{", "unknown")]
    applied = HistoryWriter(client).apply({users[0]: [rye, milk], users[1]: [milk]})

    async def read() -> list[History]:
        async with redis.asyncio.Redis.from_url(stack.redis_url) as connected:
            return await HistoryReader(connected).read(users[::-1])

    versions = [applied[user_id].version for user_id in users[:2]]
    expected = [History(), History((milk,), versions[1]), History((milk, rye), versions[0])]
    assert asyncio.run(read()) == expected == HistoryWriter(client).read(users[::-1])
    assert {*users[:2]} <= set(HistoryWriter(client).user_ids())


def test_reads_that_wait_together_are_each_answered_for_their_own(client: redis.Redis, stack: Endpoints) -> None:
    """Users whose history the reader has, lacks or has in an older version; users without one; a key of another type."""
    names = [f"together-{uuid.uuid4().hex}" for _ in range(60)]
    events = {name: [HistoryEvent(name, Action.CLICKED, number + 1)] for number, name in enumerate(names[:40])}
    versions = {name: applied.version for name, applied in HistoryWriter(client).apply(events).items()}
    client.rpush(keys_of(names[59])[0], "no history")
    known = [
        versions.get(name) if number % 3 == 0 else (7 if number % 3 == 1 else None) for number, name in enumerate(names)
    ]
    known[59] = 7

    async def read() -> list[History | None]:
        async with redis.asyncio.Redis.from_url(stack.redis_url) as connected:
            reader = HistoryReader(connected)
            asked = zip(names, known, strict=True)
            return await asyncio.gather(*(reader.read_newer(name, version, 30.0) for name, version in asked))

    for number, (name, found) in enumerate(zip(names, asyncio.run(read()), strict=True)):
        if name not in versions:
            assert found == History()
        elif number % 3 == 0:
            assert found is None
        else:
            assert found == History(tuple(events[name]), versions[name])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(history_changes(), max_size=20),
    max_events=st.integers(1, 6),
    cuts=st.lists(st.integers(1, 4), max_size=10),
    shuffle=st.randoms(use_true_random=False),
)
def test_redis_and_the_batch_build_agree_on_every_step(
    client: redis.Redis,
    changes: list[Change],
    max_events: int,
    cuts: list[int],
    shuffle: random.Random,
) -> None:
    user_id, writer = uuid.uuid4().hex, HistoryWriter(client, max_events)
    rest = [*changes, *changes]
    shuffle.shuffle(rest)
    done: list[Change] = []
    before = History()
    for size in [*cuts, len(rest)]:
        batch, rest = rest[:size], rest[size:]
        done += batch
        applied = writer.apply({user_id: batch})[user_id]
        (after,) = writer.read([user_id])
        assert after.events == build(done, max_events)
        assert after.version >= before.version
        if after.events != before.events:
            assert after.version > before.version
        if not set(applied.outcomes.values()) - {Outcome.DUPLICATE, Outcome.FORGOTTEN}:
            assert (after, applied.size) == (before, 0)
        before = after


def test_what_became_of_each_change_is_said(client: redis.Redis) -> None:
    user_id, writer = uuid.uuid4().hex, HistoryWriter(client)
    rye, milk = (HistoryEvent(item_id, Action.ORDERED, 5, "o1") for item_id in ("rye", "milk"))
    first, second = (HistoryEvent("jam", Action.CLICKED, time_ms) for time_ms in (4, 6))

    def outcomes(*changes: Change) -> dict[int, Outcome]:
        return writer.apply({user_id: changes})[user_id].outcomes

    assert outcomes(rye, milk, second) == {0: Outcome.NEW, 2: Outcome.NEW}
    assert outcomes(second, first, rye) == {0: Outcome.DUPLICATE, 1: Outcome.LATE, 2: Outcome.DUPLICATE}
    assert outcomes(Deletion(5), rye, second) == {0: Outcome.NEW, 1: Outcome.FORGOTTEN, 2: Outcome.DUPLICATE}


def test_a_version_never_comes_again_though_everything_was_lost(client: redis.Redis) -> None:
    """A gateway remembers what it made of a version."""
    user_id, writer = uuid.uuid4().hex, HistoryWriter(client)
    before = writer.apply({user_id: [HistoryEvent("rye", Action.CLICKED, 1)]})[user_id].version
    writer.drop([user_id])
    assert writer.read([user_id]) == [History()]
    time.sleep(1.1)
    assert writer.apply({user_id: [HistoryEvent("jam", Action.CLICKED, 1)]})[user_id].version > before


def test_a_full_history_takes_thousands_of_events_and_stays_the_newest(client: redis.Redis) -> None:
    user_id, writer = uuid.uuid4().hex, HistoryWriter(client, max_events=100)
    events = [HistoryEvent(str(number), Action.CLICKED, number + 1) for number in range(1_000)]
    for first in range(0, 1_000, 3):
        writer.apply({user_id: events[first : first + 3]})
        assert client.strlen(f"baguni:{{{user_id}}}:h") < 100 * 16 + 150 * 16
    assert writer.read([user_id])[0].events == tuple(events[-100:])


def test_a_cancellation_stays_as_long_as_an_order_may_come_that_it_is_about(client: redis.Redis) -> None:
    user_id, writer = uuid.uuid4().hex, HistoryWriter(client, max_events=2)
    cancelled = Cancellation("o1", 10)
    writer.apply({user_id: [cancelled]})
    clicks = [HistoryEvent("jam", Action.CLICKED, 10 + CLOCK_SKEW_MS + number) for number in range(200)]
    done: list[Change] = [cancelled]
    for batch in (clicks[:1], [HistoryEvent("rye", Action.ORDERED, 10 + CLOCK_SKEW_MS, "o1")], clicks[1:]):
        writer.apply({user_id: batch})
        done += batch
        assert writer.read([user_id])[0].events == build(done, 2)
    late = HistoryEvent("rye", Action.ORDERED, clicks[-1].time_ms + 1, "o1")  # another order by its time
    writer.apply({user_id: [late, HistoryEvent("jam", Action.CLICKED, 1)]})
    assert writer.read([user_id])[0].events == (clicks[-1], late)


def test_a_history_expires_and_a_new_event_renews_it(client: redis.Redis) -> None:
    user_id, writer = uuid.uuid4().hex, HistoryWriter(client, ttl_s=1000)
    writer.apply({user_id: [HistoryEvent("rye", Action.CLICKED, 1)]})
    (key,) = [key for key in client.keys("*") if user_id.encode() in key]
    assert 990 < client.ttl(key) <= 1000
    client.expire(key, 10)
    writer.apply({user_id: [HistoryEvent("rye", Action.CLICKED, 2)]})
    assert client.ttl(key) > 990


def test_two_hundred_events_take_less_than_two_and_a_half_kilobytes(client: redis.Redis) -> None:
    """Half of them order lines, ten an order, half clicks; `make bench-streaming` measures it with 100,000 users."""
    user_id, day = uuid.uuid4().hex, 86_400_000
    events = []
    for n in range(100):
        events.append(HistoryEvent(f"{1_000_000 + n}", Action.CLICKED, 1_700_000_000_000 + n * day))
        events.append(
            HistoryEvent(f"{2_000_000 + n}", Action.ORDERED, 1_700_000_000_000 + n // 10 * day, f"{n // 10 + 10**10}")
        )
    HistoryWriter(client).apply({user_id: events})
    size = client.memory_usage(f"baguni:{{{user_id}}}:h")
    assert size is not None
    assert size < 2_500


def test_redis_away_is_said_by_name(stack: Endpoints) -> None:
    nobody = redis.Redis(host="127.0.0.1", port=1)
    with pytest.raises(UnavailableError, match="redis is unavailable"):
        HistoryWriter(nobody).apply({"u": [HistoryEvent("rye", Action.CLICKED, 1)]})
    with pytest.raises(UnavailableError, match="redis is unavailable"):
        read_history(stack.model_copy(update={"redis_url": "redis://127.0.0.1:1/0"}), "u")
