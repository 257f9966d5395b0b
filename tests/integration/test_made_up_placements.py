"""However many placements a shop makes up, Redis keeps a bounded number, and the counts of the real ones."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis
import redis.asyncio

from baguni.stores.placements import MAX_PLACEMENTS, PlacementReader, PlacementWriter

REAL = ("home", "pdp", "장바구니 {x} %s")
MADE_UP = (
    lambda n, chosen: f"pdp/{n}",
    lambda n, chosen: f"session-{chosen.getrandbits(64):x}",
    lambda n, chosen: f"/{'}:h{%s'[n % 6]}/{n}",
    lambda n, chosen: f"{n % 3_000}",  # that come again and again
)


def now_ms() -> int:
    return int(time.time() * 1000)


def counts(lone_redis: str, placement: str) -> dict[str, float]:
    """Clicks at a placement as a gateway reads them."""

    async def read() -> dict[str, float]:
        async with redis.asyncio.Redis.from_url(lone_redis) as connected:
            return await PlacementReader(connected).clicks(placement, now_ms())

    return asyncio.run(read())


def flood(
    kind: int, seed: int, batches: int = 30, made_up_in_batch: int = 130
) -> list[dict[str, list[tuple[str, int]]]]:
    """Batches of clicks, each with some at real placements between made-up ones."""
    chosen, number, found = random.Random(seed), 0, []
    for _ in range(batches):
        batch: dict[str, list[tuple[str, int]]] = {}
        for _ in range(made_up_in_batch):
            number += 1
            batch.setdefault(MADE_UP[kind](number, chosen), []).append(("rye", now_ms()))
        for _ in range(20):
            batch.setdefault(chosen.choice(REAL), []).append((chosen.choice(["rye", "milk"]), now_ms()))
        found.append(dict(chosen.sample(sorted(batch.items()), len(batch))))
    return found


def real_clicks(batches: list[dict[str, list[tuple[str, int]]]], placement: str) -> Counter[str]:
    return Counter(item_id for batch in batches for item_id, _ in batch.get(placement, ()))


@pytest.mark.parametrize("configured", [(), REAL], ids=["by their clicks", "configured"])
@pytest.mark.parametrize("kind", range(len(MADE_UP)))
def test_a_flood_of_made_up_placements_leaves_the_real_ones_their_counts(
    client: redis.Redis, lone_redis: str, kind: int, configured: tuple[str, ...]
) -> None:
    """Two consumers at once, since every consumer decides by what all have counted."""
    halves = [flood(kind, seed) for seed in (1, 2)]

    def count(batches: list[dict[str, list[tuple[str, int]]]]) -> int:
        with redis.Redis.from_url(lone_redis) as connected:
            writer = PlacementWriter(connected, configured)
            return sum(writer.count(batch) for batch in batches)

    with ThreadPoolExecutor(2) as pool:
        left_out = sum(pool.map(count, halves))
    assert left_out > 0
    assert client.dbsize() <= MAX_PLACEMENTS + len(configured) + 1
    for placement in REAL:
        expected = real_clicks(halves[0], placement) + real_clicks(halves[1], placement)
        assert counts(lone_redis, placement) == pytest.approx(expected, rel=1e-2)


def test_a_configured_placement_stays_however_few_its_clicks(client: redis.Redis, lone_redis: str) -> None:
    PlacementWriter(client, most=4).count({"footer": [("rye", now_ms())]})
    writer = PlacementWriter(client, ["footer"], most=4)  # it is configured from now on
    writer.count({f"heavy-{n}": [("rye", now_ms())] * 10 for n in range(9)})
    assert len(client.keys("baguni:clicked:{*")) == 5
    assert counts(lone_redis, "footer") == pytest.approx({"rye": 1}, rel=1e-2)


def test_a_placement_that_is_no_longer_configured_keeps_its_counts_as_weight(
    client: redis.Redis, lone_redis: str
) -> None:
    """The same holds for counts of an earlier version, which kept every placement."""
    PlacementWriter(client, ["home"], most=2).count({"home": [("rye", now_ms())] * 50})
    writer = PlacementWriter(client, most=2)
    writer.count({"a": [("rye", now_ms())] * 9, "b": [("rye", now_ms())] * 8, "home": [("milk", now_ms())]})
    assert counts(lone_redis, "home") == pytest.approx({"rye": 50, "milk": 1}, rel=1e-2)
    assert counts(lone_redis, "b") == {}


def test_a_placement_that_becomes_frequent_takes_the_place_of_the_least_frequent(
    client: redis.Redis, lone_redis: str
) -> None:
    writer = PlacementWriter(client, most=2)
    assert writer.count({"a": [("rye", now_ms())] * 3, "b": [("rye", now_ms())] * 2}) == 0
    assert writer.count({"new": [("milk", now_ms())]}) == 1
    assert writer.count({"new": [("milk", now_ms())] * 4}) == 0
    assert counts(lone_redis, "new") == pytest.approx({"milk": 4}, rel=1e-2)
    assert counts(lone_redis, "a") == pytest.approx({"rye": 3}, rel=1e-2)
    assert counts(lone_redis, "b") == {}
