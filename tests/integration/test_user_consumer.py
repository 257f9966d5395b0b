"""Orders and clicks through a real broker into a real Redis: quickly, once, and whatever breaks on the way."""

from __future__ import annotations

import signal
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from baguni.clients.topics import Record
from baguni.domain.events import DEAD_LETTER_TOPIC, USER_TOPICS
from baguni.domain.history import Action, HistoryEvent
from baguni.settings import Endpoints
from baguni.stores.redis_client import connect
from deploy.local.settings import free_port
from deploy.local.stack import LocalStack
from streaming.consumer import ConsumerParts, EventConsumer
from streaming.dead_letters import DeadLetters, Quarantine
from streaming.metrics import Metrics
from streaming.settings import StreamingSettings
from tests.integration.streams import (
    ConsumerProcess,
    Shop,
    cancellation,
    click,
    deletion,
    order,
    read_history,
    records_of,
    wait_until_consumed,
)
from tests.waiting import COMMAND_S, eventually

pytestmark = pytest.mark.stack
TIME_MS = 1_700_000_000_000


@pytest.fixture
def endpoints(stack: Endpoints) -> Endpoints:
    """The stack with another Redis database: the stack's own consumers read the same topics."""
    return stack.model_copy(update={"redis_url": stack.redis_url.replace("/0", "/5")})


@pytest.fixture
def shop(stack: Endpoints) -> Iterator[Shop]:
    producing = Shop(stack)
    yield producing
    producing.close()


@pytest.fixture
def user_id() -> str:
    return f"user-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def group_suffix() -> str:
    return f"-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def consumer(endpoints: Endpoints, tmp_path: Path, group_suffix: str) -> Iterator[ConsumerProcess]:
    with ConsumerProcess("user", endpoints, tmp_path, group_suffix) as process:
        yield process


def test_an_order_and_a_click_are_in_the_history(consumer, shop: Shop, endpoints: Endpoints, user_id: str) -> None:
    shop.send(order(user_id, "o1", "rye", "milk", time_ms=TIME_MS))
    shop.send(click(user_id, "jam", TIME_MS + 1))
    eventually(lambda: len(read_history(endpoints, user_id)) == 3)
    assert read_history(endpoints, user_id).events == (
        HistoryEvent("milk", Action.ORDERED, TIME_MS, "o1"),
        HistoryEvent("rye", Action.ORDERED, TIME_MS, "o1"),
        HistoryEvent("jam", Action.CLICKED, TIME_MS + 1),
    )


def test_each_event_is_in_the_history_before_the_next_is_sent(
    consumer, shop: Shop, endpoints: Endpoints, user_id: str
) -> None:
    for number in range(1, 22):
        shop.send(click(user_id, "rye", TIME_MS + number))
        eventually(lambda expected=number: len(read_history(endpoints, user_id)) == expected)


def test_reading_the_topics_again_from_the_beginning_changes_nothing(
    shop: Shop, endpoints: Endpoints, tmp_path: Path, user_id: str, group_suffix: str
) -> None:
    for number in range(20):
        shop.send(order(user_id, f"o{number % 15}", "rye", f"item-{number % 7}", time_ms=TIME_MS + number % 15))
    with ConsumerProcess("user", endpoints, tmp_path, group_suffix):
        wait_until_consumed(endpoints, f"baguni-users{group_suffix}", USER_TOPICS)
    before = read_history(endpoints, user_id)
    assert len({event.order_id for event in before.events}) == 15
    with ConsumerProcess("user", endpoints, tmp_path, f"{group_suffix}-again"):
        wait_until_consumed(endpoints, f"baguni-users{group_suffix}-again", USER_TOPICS)
    assert read_history(endpoints, user_id) == before


def test_a_malformed_message_is_set_aside_whole_and_the_next_is_applied(
    consumer, shop: Shop, endpoints: Endpoints, user_id: str
) -> None:
    headers = [
        ("ce_type", b"baguni.v1.OrderPlaced"),
        ("ce_id", user_id.encode()),
        ("content-type", b"application/json"),
    ]
    shop.send_raw("baguni.orders", user_id.encode(), b'{"userId": 7', headers)
    shop.send_raw("baguni.orders", user_id.encode(), b"", [("ce_type", b"other"), ("ce_id", user_id.encode())])
    shop.send(order(user_id, "o1", "rye"))
    eventually(lambda: len(read_history(endpoints, user_id)) == 1)

    def letters_by_reason() -> dict[bytes, Record]:
        """The stack's own consumer may have set aside the same two: each is there whole, whoever sent it."""
        letters = [r for r in records_of(endpoints, DEAD_LETTER_TOPIC) if ("ce_id", user_id.encode()) in r.headers]
        return {dict(letter.headers)["dead_letter_reason"]: letter for letter in letters}

    eventually(lambda: len(letters_by_reason()) > 1, "both records are dead letters", letters_by_reason)
    by_reason = letters_by_reason()
    assert by_reason.keys() == {b"undecodable", b"unknown_type"}
    undecodable = by_reason[b"undecodable"]
    assert (undecodable.key, undecodable.value) == (user_id.encode(), b'{"userId": 7')
    assert list(undecodable.headers[:3]) == headers
    said = dict(undecodable.headers[3:])
    assert said["dead_letter_topic"] == b"baguni.orders"
    assert b"no OrderPlaced" in said["dead_letter_error"]
    first, second = (int(dict(by_reason[r].headers)["dead_letter_offset"]) for r in (b"undecodable", b"unknown_type"))
    assert second == first + 1
    assert said["dead_letter_partition"].isdigit()


def test_killed_between_write_and_commit_nothing_is_lost_or_doubled(
    shop: Shop, endpoints: Endpoints, tmp_path: Path, user_id: str, group_suffix: str
) -> None:
    crashing = ConsumerProcess("user", endpoints, tmp_path, group_suffix, module="tests.integration.crashing_consumer")
    events = [click(user_id, f"item-{number}", TIME_MS + number) for number in range(10)]
    for event in events:
        shop.send(event)
    assert crashing.process.wait(COMMAND_S) == -signal.SIGKILL
    with ConsumerProcess("user", endpoints, tmp_path, group_suffix):
        wait_until_consumed(endpoints, f"baguni-users{group_suffix}", USER_TOPICS)
        assert [e.item_id for e in read_history(endpoints, user_id).events] == [event.item_id for event in events]


def test_redis_away_during_traffic_loses_nothing_and_sets_a_malformed_record_aside_once(
    consumer: ConsumerProcess,
    shop: Shop,
    endpoints: Endpoints,
    local_stack: LocalStack,
    user_id: str,
    group_suffix: str,
) -> None:
    wait_until_consumed(endpoints, f"baguni-users{group_suffix}", USER_TOPICS)  # other tests' malformed ones are aside
    for number in range(30):
        if number == 10:
            local_stack.stop_process("redis")
        shop.send(order(user_id, f"o{number}", "rye", time_ms=TIME_MS + number))
        if number == 10:  # the letters of a retry must not multiply either
            malformed = shop.send_raw(
                "baguni.orders", user_id.encode(), b"\xff", [("ce_type", b"baguni.v1.OrderPlaced")]
            )
    eventually(lambda: "redis is unavailable" in consumer.log.read_text())
    local_stack.restart("redis")
    eventually(lambda: len(read_history(endpoints, user_id)) == 30)
    eventually(lambda: f"first={malformed} " in consumer.log.read_text())  # it is set aside after the writes
    log = consumer.log.read_text()
    assert "redis is unavailable" in log
    assert log.count(f"first={malformed} ") == 1


def test_a_consumer_that_is_told_to_stop_while_redis_is_away_stops(
    endpoints: Endpoints, shop: Shop, tmp_path: Path, user_id: str, group_suffix: str
) -> None:
    nowhere = endpoints.model_copy(update={"redis_url": "redis://127.0.0.1:1/0"})
    shop.send(click(user_id, "rye", TIME_MS))
    waiting = ConsumerProcess("user", nowhere, tmp_path, group_suffix)  # never ready: it makes no progress
    eventually(lambda: "redis is unavailable" in waiting.log.read_text())
    waiting.stop()
    with ConsumerProcess("user", endpoints, tmp_path, group_suffix):
        eventually(lambda: len(read_history(endpoints, user_id)) == 1)


def test_two_consumers_of_a_group_share_the_work_and_one_takes_over(
    consumer: ConsumerProcess, endpoints: Endpoints, shop: Shop, tmp_path: Path, user_id: str, group_suffix: str
) -> None:
    users = [f"{user_id}-{number}" for number in range(24)]
    with ConsumerProcess("user", endpoints, tmp_path, group_suffix) as second:
        for user in users:
            shop.send(click(user, "rye", TIME_MS))
        eventually(lambda: all(len(read_history(endpoints, user)) == 1 for user in users))
        second.process.kill()
        second.process.wait()
    for user in users:
        shop.send(click(user, "milk", TIME_MS + 1))
    eventually(lambda: all(len(read_history(endpoints, user)) == 2 for user in users))
    assert consumer.process.poll() is None


def test_a_cancelled_order_leaves_and_a_deleted_user_is_forgotten(
    consumer, shop: Shop, endpoints: Endpoints, user_id: str
) -> None:
    shop.send(cancellation(user_id, "o1", TIME_MS + 5))  # before its order: topics keep no order between partitions
    shop.send(order(user_id, "o1", "rye", "milk", time_ms=TIME_MS))
    shop.send(click(user_id, "jam", TIME_MS + 1))
    shop.send(click(user_id, "tea", TIME_MS + 9))
    eventually(lambda: [event.item_id for event in read_history(endpoints, user_id).events] == ["jam", "tea"])
    before = read_history(endpoints, user_id).version
    shop.send(deletion(user_id, TIME_MS + 6))
    eventually(lambda: [event.item_id for event in read_history(endpoints, user_id).events] == ["tea"])
    shop.send(click(user_id, "jam", TIME_MS + 2))  # late
    shop.send(click(user_id, "salt", TIME_MS + 10))
    eventually(lambda: [event.item_id for event in read_history(endpoints, user_id).events] == ["tea", "salt"])
    assert read_history(endpoints, user_id).version > before


def test_what_the_consumer_says_of_itself(
    endpoints: Endpoints, shop: Shop, tmp_path: Path, user_id: str, group_suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("BAGUNI_METRICS_ADDRESS", address)

    def said() -> dict[str, float]:
        page = urllib.request.urlopen(f"http://{address}/metrics", timeout=30).read().decode()
        families = text_string_to_metric_families(page)
        samples = [sample for family in families for sample in family.samples]
        return {" ".join((sample.name, *sorted(sample.labels.values()))): sample.value for sample in samples}

    with ConsumerProcess("user", endpoints, tmp_path, group_suffix):
        wait_until_consumed(endpoints, f"baguni-users{group_suffix}", USER_TOPICS)
        before = said()
        now_ms = int(time.time() * 1000)
        for time_ms in (now_ms, now_ms, now_ms - 60_000):
            shop.send(click(user_id, "rye", time_ms))
        shop.send_raw("baguni.clicks", b"k", b"\xff", [("ce_type", b"baguni.v1.ItemClicked")])
        eventually(lambda: len(read_history(endpoints, user_id)) == 2)
        eventually(
            lambda: (
                said().get("baguni_dead_letters_total undecodable", 0)
                > before.get("baguni_dead_letters_total undecodable", 0)
            )
        )
        after = said()
    grown = {name: value - before.get(name, 0) for name, value in after.items()}
    assert grown["baguni_records_total baguni.clicks"] == 4
    outcomes = ("new", "duplicate", "late")
    assert [grown[f"baguni_history_changes_total {outcome}"] for outcome in outcomes] == [1, 1, 1]
    assert 1 <= grown["baguni_event_visible_lag_seconds_count clicked"] <= 3  # the longest of each batch
    assert 60 <= grown["baguni_event_visible_lag_seconds_sum clicked"] < 70
    assert 1 <= grown["baguni_history_bytes_count"] <= 2
    assert all(value == 0 for name, value in after.items() if name.startswith("baguni_consumer_lag_records "))


def test_a_consumer_that_its_group_does_not_let_in_joins_again(
    endpoints: Endpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = StreamingSettings(**endpoints.model_dump(), group_suffix=f"-{uuid.uuid4().hex[:8]}")
    with connect(settings.redis_url) as client:
        parts = ConsumerParts(client, DeadLetters(settings.kafka_bootstrap, Quarantine(client)), Metrics())

        def made() -> EventConsumer:
            return EventConsumer(settings, USER_TOPICS, "joins-again", lambda events: [], parts, 10)

        monkeypatch.setattr("streaming.consumer.JOIN_S", -1.0)
        made().run(lambda: False)  # returns: whoever runs it makes another one
        monkeypatch.undo()
        second = made()
        second.run(lambda: second._members.has_joined)
        assert second._members.has_joined
        parts.dead_letters.close()
