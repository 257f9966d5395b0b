"""The list of users to forget, in a Redis of its own: a deletion that is read again takes nothing that came after it."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import redis
import redis.asyncio

from baguni.domain.events import UserEvents
from baguni.domain.history import Action, Deletion, HistoryEvent
from baguni.domain.signed_tokens import TokenSigner, new_key
from baguni.stores.forgotten import APPLIED_WITHIN_MS, KEPT_S, KEY, OVERLAP_MS, ForgottenFollower, ForgottenUsers
from baguni.stores.history_store import HistoryWriter
from baguni.stores.placements import PlacementWriter
from baguni.v1 import recommendation_pb2 as pb
from crm.forgetting import forget_listed
from crm.state import CampaignState, Push, PushedItem
from server.lists.users import UserCache
from server.process.forgetting import Forgetting
from server.settings import ServerSettings
from server.telemetry.capture import Capture, Recorded, captured_of
from server.telemetry.metrics import Metrics
from streaming import metrics as streaming_metrics
from streaming.attribution import Attribution
from streaming.user_updates import UserUpdates

DAY_MS = 86_400_000


@pytest.fixture
def state(tmp_path: Path) -> Iterator[CampaignState]:
    with closing(CampaignState(tmp_path)) as opened:
        yield opened


def now_ms() -> int:
    return int(time.time() * 1000)


def user_updates(client: redis.Redis) -> UserUpdates:
    metrics = streaming_metrics.Metrics()
    attribution = Attribution(metrics, TokenSigner([new_key()]))
    return UserUpdates(HistoryWriter(client), PlacementWriter(client), ForgottenUsers(client), metrics, attribution)


def push(state: CampaignState, user_id: str, time_ms: int) -> None:
    """Push something to a user in a run that begins at this time."""
    run = state.begin(f"run-{time_ms}-{user_id}", "bread", "digest", time_ms)
    pushes = [Push(user_id, (PushedItem("rye", -1.0),), "r")]
    state.select(run.run_id, [user_id])
    state.prepare(run.run_id, pushes, {})
    state.sent(run, "braze", pushes, {}, {user_id: {"favourite": "rye"}})


@pytest.mark.parametrize("is_emptied", [False, True], ids=["offsets lost", "Redis emptied"])
def test_a_user_who_came_back_keeps_what_is_new_although_the_deletion_is_read_again(
    client: redis.Redis, state: CampaignState, is_emptied: bool
) -> None:
    deleted_ms = now_ms() - 10 * DAY_MS
    records = [UserEvents("u", (Deletion(deleted_ms),))]
    push(state, "u", deleted_ms - DAY_MS)
    user_updates(client).apply(records)
    forget_listed(state, ForgottenUsers(client))
    assert state.rows_of("u") == {}
    push(state, "u", deleted_ms + 2 * DAY_MS)
    before = state.rows_of("u")
    if is_emptied:
        client.flushdb()
    user_updates(client).apply(records)
    num_entries = forget_listed(state, ForgottenUsers(client))
    assert num_entries == int(is_emptied)  # the same entry, or one of the same deletion
    assert state.rows_of("u") == before == dict.fromkeys(("delivery", "sent", "push", "told"), 1)


@pytest.mark.parametrize("behind_ms", [0, 5_000, OVERLAP_MS - 10_000])
def test_campaigns_forget_whom_a_new_primary_with_a_clock_behind_has(
    client: redis.Redis, state: CampaignState, behind_ms: int
) -> None:
    push(state, "u", now_ms() - DAY_MS)
    user_updates(client).apply([UserEvents("other", (Deletion(now_ms()),))])
    assert forget_listed(state, ForgottenUsers(client)) == 1
    client.flushdb()  # the new primary has lost the entry, and gives positions anew
    user_updates(client).apply([UserEvents("u", (Deletion(now_ms()),))])
    client.zadd(KEY, {"u": state.forgotten_until - behind_ms})
    forget_listed(state, ForgottenUsers(client))
    assert state.rows_of("u") == {}


def test_lists_that_were_made_before_the_deletion_was_applied_go_too(client: redis.Redis, state: CampaignState) -> None:
    """The consumer is some hours behind: a campaign has pushed what the history contained."""
    deleted_ms = now_ms() - APPLIED_WITHIN_MS // 2
    push(state, "u", deleted_ms + 1_000)
    user_updates(client).apply([UserEvents("u", (Deletion(deleted_ms),))])
    forget_listed(state, ForgottenUsers(client))
    assert state.rows_of("u") == {}


@pytest.mark.parametrize("seed", range(10))
def test_whatever_is_lost_and_read_again_only_what_is_older_than_a_deletion_goes(
    client: redis.Redis, state: CampaignState, seed: int
) -> None:
    """Users are pushed to, delete themselves and come back, while offsets and Redis are lost."""
    chosen, start_ms = random.Random(seed), now_ms() - 100 * DAY_MS
    topic: list[UserEvents] = []
    pushed: dict[str, set[int]] = {"a": set(), "b": set(), "c": set()}
    for time_ms in range(start_ms, now_ms() - 5 * DAY_MS, 3 * DAY_MS):
        user_id = chosen.choice("abc")
        what = chosen.choice(["push", "push", "delete", "click", "rewind", "empty"])
        if what == "push":
            push(state, user_id, time_ms)
            pushed[user_id].add(time_ms)
        elif what in ("rewind", "empty"):
            if what == "empty":
                client.flushdb()
            user_updates(client).apply(topic[chosen.randrange(len(topic) + 1) if what == "rewind" else 0 :])
        else:
            is_deletion = what == "delete"
            change = Deletion(time_ms) if is_deletion else HistoryEvent("rye", Action.CLICKED, time_ms)
            topic.append(UserEvents(user_id, (change,)))
            user_updates(client).apply(topic[-1:])
            if is_deletion:
                pushed[user_id].clear()
        forget_listed(state, ForgottenUsers(client))
        left = {each: state.times_pushed([each], 0).get(each, 0) for each in pushed}
        assert left == {each: len(times) for each, times in pushed.items()}, what


def test_a_later_deletion_gets_a_later_position_and_any_other_none(client: redis.Redis) -> None:
    forgotten = ForgottenUsers(client)
    forgotten.note({"a": 1_000, "b": 1_000})
    last = forgotten.since(0)[-1].position
    forgotten.note({"a": 1_000, "b": 999})
    assert forgotten.since(last) == []
    forgotten.note({"a": 1_001})
    assert [(entry.user_id, entry.deleted_ms) for entry in forgotten.since(last)] == [("a", 1_001)]


def test_an_entry_of_an_earlier_version_counts_up_to_its_position(client: redis.Redis) -> None:
    position = now_ms() - DAY_MS
    client.zadd(KEY, {"a": position})
    forgotten = ForgottenUsers(client)
    forgotten.note({"a": position - 1})  # read again after the upgrade
    (entry,) = forgotten.since(0)
    assert (entry.position, entry.until_ms) == (position, position)
    forgotten.note({"a": position + 1})
    (entry,) = forgotten.since(0)
    assert entry.deleted_ms == position + 1


def test_positions_grow_although_the_clock_goes_back_and_entries_expire_whole(client: redis.Redis) -> None:
    forgotten = ForgottenUsers(client)
    forgotten.note({"a": 1, "b": 1})
    last = forgotten.since(0)[-1].position
    client.zadd(KEY, {"b": last + 3_600_000})  # as if it had been an hour later
    forgotten.note({"c": 1, "a": 2})
    assert [entry.user_id for entry in forgotten.since(last + 3_600_000)] == ["c", "a"]
    forgotten.note({"old": 1})
    client.zadd(KEY, {"old": last - KEPT_S * 1000 - 1})
    forgotten.note({})
    forgotten.note({"d": 1})
    assert [entry.user_id for entry in forgotten.since(0)] == ["b", "c", "a", "d"]
    assert set(client.hgetall(f"{KEY}:times")) == {b"a", b"b", b"c", b"d"}


async def test_a_gateway_that_starts_again_keeps_requests_of_who_came_back(
    client: redis.Redis, lone_redis: str, tmp_path: Path
) -> None:
    """A process that starts reads the whole list, and the files of the one before it."""
    deleted_ms = now_ms() - 3 * DAY_MS
    ForgottenUsers(client).note({"u": deleted_ms})
    capture = Capture(tmp_path, "host.online-0", ServerSettings(capture_share=1.0), Metrics([]))
    for user_id, written_ms in (("u", deleted_ms), ("u", now_ms()), ("other", deleted_ms)):
        request = pb.RecommendRequest(user_id=user_id)
        capture.add(Recorded(request, "q", "r", 1, 0, False, "FULL", ("rye",), 1.0, {}, written_ms=written_ms))
    async with redis.asyncio.Redis.from_url(lone_redis) as connected:
        for _ in range(2):
            await Forgetting(ForgottenFollower(connected, "gateway"), UserCache(10), capture)._step()
            assert [(path.name[:13], count) for path, count in captured_of(tmp_path, "u")] == [("host.online-0", 1)]
    assert sum(count for _, count in captured_of(tmp_path, "other")) == 1
    capture.close()


async def test_a_gateway_reads_the_same_entries(client: redis.Redis, lone_redis: str) -> None:
    ForgottenUsers(client).note({"소금": 5, "b": 6})
    async with redis.asyncio.Redis.from_url(lone_redis) as connected:
        follower = ForgottenFollower(connected, "gateway")
        assert await follower.new() == ForgottenUsers(client).since(0)
        assert await follower.new() == []
