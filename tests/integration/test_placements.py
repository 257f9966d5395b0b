"""What is clicked where, in a real Redis; and the list of somebody unknown at that placement."""

from __future__ import annotations

import asyncio
import time

import grpc
import pytest
import redis
import redis.asyncio

from baguni.domain.errors import UnavailableError
from baguni.domain.release import Release
from baguni.settings import Endpoints
from baguni.stores.placements import EPOCH_MS, HALF_LIFE_MS, WINDOW_MS, PlacementReader, PlacementWriter
from baguni.v1 import events_pb2
from baguni.v1 import recommendation_pb2 as pb
from baguni.v1 import recommendation_pb2_grpc as pb_grpc
from tests.integration.streams import Shop, timestamp
from tests.waiting import eventually

pytestmark = pytest.mark.stack
NOW_MS = 1_712_000_100_000 // WINDOW_MS * WINDOW_MS


def read(endpoints: Endpoints, placement: str, time_ms: int) -> dict[str, float]:
    async def clicks() -> dict[str, float]:
        async with redis.asyncio.Redis.from_url(endpoints.redis_url) as client:
            return await PlacementReader(client).clicks(placement, time_ms)

    return asyncio.run(clicks())


def count(endpoints: Endpoints, placement: str, *clicks: tuple[str, int]) -> None:
    with redis.Redis.from_url(endpoints.redis_url) as client:
        PlacementWriter(client).count({placement: clicks})


def test_a_click_is_worth_half_after_a_week(stack: Endpoints) -> None:
    count(stack, "halves", ("새우깡", NOW_MS), ("old", NOW_MS - HALF_LIFE_MS), ("old", NOW_MS - 2 * HALF_LIFE_MS))
    found = read(stack, "halves", NOW_MS)
    assert found == pytest.approx({"새우깡": 1.0, "old": 0.75})
    assert list(found) == ["새우깡", "old"]
    later = read(stack, "halves", NOW_MS + HALF_LIFE_MS)
    assert later == pytest.approx({"새우깡": 0.5, "old": 0.375})


def test_everybody_sees_the_same_within_a_window_whatever_is_clicked_meanwhile(stack: Endpoints) -> None:
    now_ms = int(time.time() * 1000) // WINDOW_MS * WINDOW_MS
    count(stack, "window", ("early", now_ms))
    assert read(stack, "window", now_ms) == pytest.approx({"early": 1.0})
    count(stack, "window", ("late", now_ms))
    assert read(stack, "window", now_ms + WINDOW_MS - 1) == pytest.approx({"early": 1.0}, rel=1e-2)
    assert read(stack, "window", now_ms + WINDOW_MS) == pytest.approx({"early": 1.0, "late": 1.0}, rel=1e-2)


def test_reading_stores_nothing_for_moments_and_placements_that_a_caller_makes_up(stack: Endpoints) -> None:
    """g5."""
    stack = stack.model_copy(update={"redis_url": stack.redis_url.replace("/0", "/9")})  # nobody else writes there
    count(stack, "clicked", ("rye", NOW_MS))
    with redis.Redis.from_url(stack.redis_url) as client:
        before = client.dbsize()
        for number in range(50):
            assert read(stack, "clicked", NOW_MS + number * WINDOW_MS)
            assert read(stack, f"made-up-{number}", int(time.time() * 1000)) == {}
        assert client.dbsize() <= before


def test_times_far_from_ours_are_no_error(stack: Endpoints) -> None:
    count(stack, "far", ("first", 1), ("last", 253_402_300_799_999), ("epoch", EPOCH_MS))
    assert set(read(stack, "far", NOW_MS)) == {"first", "last", "epoch"}


def test_a_redis_that_is_away_is_said(stack: Endpoints) -> None:
    away = stack.model_copy(update={"redis_url": "redis://127.0.0.1:1/0"})
    with pytest.raises(UnavailableError, match="redis"):
        count(away, "p", ("a", NOW_MS))
    with pytest.raises(UnavailableError, match="redis"):
        read(away, "p", NOW_MS)


def test_what_is_clicked_at_a_placement_is_what_a_stranger_sees_there(
    running: Endpoints, active_release: Release
) -> None:
    """Through the broker, the consumer and the gateway; another placement stays as it was."""
    unpopular = active_release.catalog.items[int(active_release.popularity.argmin())].item_id
    now_ms = int(time.time() * 1000)
    clicks = [
        events_pb2.ItemClicked(
            user_id=f"clicker-{n}", item_id=unpopular, event_time=timestamp(now_ms), placement="test-shelf"
        )
        for n in range(20)
    ]
    shop = Shop(running)
    for click in clicks:
        shop.send(click)
    shop.close()

    with grpc.insecure_channel(running.gateway_address) as channel:
        stub = pb_grpc.RecommendationServiceStub(channel)

        def first(placement: str, windows: int) -> str:
            request = pb.RecommendRequest(user_id="a-stranger", placement=placement, page_size=3)
            request.now.FromMilliseconds(now_ms + windows * WINDOW_MS)
            return stub.Recommend(request, timeout=30).items[0].item_id

        windows = iter(range(1, 1_000))
        eventually(lambda: first("test-shelf", next(windows)) == unpopular)
        assert first("another-shelf", 1) != unpopular
        assert first("", 1) != unpopular
