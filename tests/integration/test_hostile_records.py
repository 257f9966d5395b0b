"""Records as nobody should send them, through a real broker: each is applied, skipped or set aside, and the next is applied.
Redis and broker are the module's own: some of these records stop any other consumer of their topic.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any
from urllib.request import urlopen

import confluent_kafka
import pytest
import redis
from kafka import KafkaProducer
from prometheus_client.parser import text_string_to_metric_families

from baguni.clients.topics import TopicReader
from baguni.domain.events import USER_TOPICS, cloud_event_headers, producible
from baguni.domain.exposure_token import KIND
from baguni.domain.history import Action, HistoryEvent
from baguni.domain.signed_tokens import TokenSigner
from baguni.stores.history_store import HistoryWriter
from baguni.v1 import events_pb2 as pb
from deploy.local.settings import free_port
from streaming.dead_letters import Quarantine
from tests.faults.streams import Consumers, Own, dead_letters, own_servers
from tests.integration.streams import Shop, click, order, read_history, timestamp
from tests.signing import sign
from tests.waiting import WAIT_S, eventually

KEY = "the key of these tests"
TIME_MS = 1_700_000_000_000
FUTURE_MS = 1_925_000_000_000  # 2031


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Own]:
    with own_servers(tmp_path_factory.mktemp("own")) as servers:
        yield servers


@pytest.fixture(scope="module")
def metrics_port() -> int:
    return free_port()


@pytest.fixture(scope="module", autouse=True)
def consumer(own: Own, metrics_port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Consumers]:
    """One consumer for all of these tests: a second start would hide that it had ended."""
    settings = {
        "BAGUNI_METRICS_ADDRESS": f"127.0.0.1:{metrics_port}",
        "BAGUNI_MAX_DEAD_SHARE": "1",
        "BAGUNI_TOKEN_KEYS": KEY,
    }
    with Consumers(own.endpoints, tmp_path_factory.mktemp("consumer"), 1, **settings) as running:
        yield running
        (process,) = running.processes
        assert process is not None
        assert process.poll() is None, running.logs[0].read_text()[-3000:]


@pytest.fixture
def shop(own: Own) -> Iterator[Shop]:
    producing = Shop(own.endpoints)
    yield producing
    producing.close()


@pytest.fixture
def user_id() -> str:
    return f"user-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def goes_on(own: Own, shop: Shop, user_id: str) -> Callable[[], None]:
    """Call it after the hostile record: the consumer applies the next record of every partition."""

    def check() -> None:
        users = [f"{user_id}-{number}" for number in range(8)]  # several partitions
        for user in users:
            shop.send(order(user, "after", "rye"))
            shop.send(click(user, "milk", TIME_MS))
        for user in users:
            eventually(lambda user=user: len(read_history(own.endpoints, user)) == 2, f"the history of {user}")

    return check


def count(port: int, name: str) -> float:
    """A metric of the consumer, over all labels."""
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as reply:
        families = text_string_to_metric_families(reply.read().decode())
    return sum(sample.value for family in families for sample in family.samples if sample.name == name)


def letters(own: Own, reason: str, event_id: str) -> list[dict[str, bytes]]:
    """Dead letters of one test."""
    return [
        letter
        for letter in dead_letters(own.endpoints)
        if (letter["dead_letter_reason"], letter.get("ce_id")) == (reason.encode(), event_id.encode())
    ]


def headers_of(message: Any, event_id: str, **changed: bytes | None) -> list[tuple[str, bytes | None]]:
    named = {name.replace("-", "_"): (name, value) for name, value in cloud_event_headers(message, event_id, "test")}
    return [*((name, changed.pop(key, value)) for key, (name, value) in named.items()), *changed.items()]


def send_foreign(own: Own, topic: str, key: bytes, value: bytes, headers: list[tuple[str, bytes | None]]) -> None:
    """Produce with librdkafka, which most shops use; kafka-python refuses to send null headers."""
    producer = confluent_kafka.Producer({"bootstrap.servers": own.endpoints.kafka_bootstrap})
    producer.produce(topic, key=key, value=value, headers=headers)
    assert producer.flush(WAIT_S) == 0


@pytest.mark.parametrize(
    ("reason", "changed"),
    [
        ("unknown_type", {"ce_type": None}),
        ("unknown_type", {"ce_type": None, "content_type": None, "other": None}),
        ("undecodable", {"other": None}),
        ("content_type", {"content_type": b"\xff\x00"}),
    ],
)
def test_null_and_foreign_headers(own, shop, user_id, goes_on, reason: str, changed: dict[str, bytes | None]) -> None:
    """e2 and e3."""
    value = b"\xff" if reason == "undecodable" else click(user_id, "rye", TIME_MS).SerializeToString()
    headers = headers_of(click(user_id, "rye", TIME_MS), user_id, **changed)
    send_foreign(own, "baguni.clicks", user_id.encode(), value, headers)
    goes_on()
    eventually(lambda: letters(own, reason, user_id), f"the record is a dead letter: {reason}")


def test_a_null_content_type_is_the_default(own, shop, user_id) -> None:
    message = click(user_id, "rye", TIME_MS)
    headers = headers_of(message, user_id, content_type=None)
    send_foreign(own, "baguni.clicks", user_id.encode(), message.SerializeToString(), headers)
    eventually(lambda: len(read_history(own.endpoints, user_id)) == 1)


def test_a_record_with_neither_key_nor_value(own, shop, user_id, goes_on) -> None:
    header = ("ce_id", user_id.encode())
    shop.send_raw("baguni.orders", None, b"", [header])
    goes_on()
    eventually(lambda: letters(own, "unknown_type", user_id))


def test_tombstones_are_skipped_and_no_broken_schema(own, shop, user_id, goes_on, metrics_port: int) -> None:
    """e10: a compacted topic has them by the hundred."""
    before = count(metrics_port, "baguni_tombstones_total")
    for number in range(150):
        shop.send_raw("baguni.users", f"{user_id}-{number}".encode(), None, [])  # type: ignore[arg-type]
    goes_on()
    eventually(lambda: count(metrics_port, "baguni_tombstones_total") == before + 150)


def test_gaps_that_transactions_leave_in_offsets(own, user_id, goes_on) -> None:
    """Each ends with a marker that has an offset and is no record, also the last in the topic. So it is with compaction."""
    producer = confluent_kafka.Producer(
        {"bootstrap.servers": own.endpoints.kafka_bootstrap, "transactional.id": user_id, "log_level": 0}
    )
    producer.init_transactions(WAIT_S)
    for number in range(5):
        producer.begin_transaction()
        message = producible(click(user_id, f"i{number}", TIME_MS + number), "1" * 20, "test")
        producer.produce(**message)
        producer.produce("baguni.users", key=f"{user_id}-{number}", value=None)  # a tombstone
        producer.commit_transaction(WAIT_S)
    eventually(lambda: len(read_history(own.endpoints, user_id)) == 5)
    read = TopicReader(own.endpoints.kafka_bootstrap, USER_TOPICS, {})
    assert sum(record.key == user_id.encode() for record in read) == 5
    goes_on()


@pytest.mark.parametrize("codec", ["gzip", "lz4", "snappy", "zstd"])
def test_compressed_batches(own, user_id, codec: str) -> None:
    """e7; the batch is larger than a megabyte."""
    producer = KafkaProducer(
        bootstrap_servers=own.endpoints.kafka_bootstrap, compression_type=codec, linger_ms=200, batch_size=4 << 20
    )
    for number in range(4_000):
        producer.send(**producible(order(user_id, f"o{number % 200}", f"item-{number % 200:0>250}"), "1" * 200, "test"))
    producer.close(timeout=WAIT_S)
    eventually(lambda: len(read_history(own.endpoints, user_id)) == 200)


def test_a_header_that_is_no_text_is_quarantined(own, shop, user_id, goes_on, metrics_port: int) -> None:
    """The client decodes header names before anybody can look at them: it fails for the partition, whoever asks."""

    class Undecodable(str):
        def encode(self, *_: str) -> bytes:  # type: ignore[override]
            return b"\xff\xfe"

    before = count(metrics_port, "baguni_quarantined_total")
    message = click(user_id, "rye", TIME_MS)
    shop.send(click(user_id, "before", TIME_MS))
    where = shop.send_raw("baguni.clicks", user_id.encode(), message.SerializeToString(), [(Undecodable("x"), b"")])
    shop.send(click(user_id, "after", TIME_MS + 1))
    eventually(lambda: [event.item_id for event in read_history(own.endpoints, user_id).events] == ["before", "after"])
    goes_on()
    with redis.Redis.from_url(own.endpoints.redis_url) as client:
        (entry,) = (e for e in Quarantine(client).entries() if f"{e.topic}/{e.partition}@{e.offset}" == where)
    assert entry.reason == "unreadable"
    assert "cannot be read" in entry.error
    eventually(lambda: count(metrics_port, "baguni_quarantined_total") == before + 1)


@pytest.mark.parametrize(
    "fields",
    [
        {"time_ms": float("inf")},
        {"time_ms": -1},
        {"placement": "\ud800"},
        {"placement": ["home"]},
        {"release_id": None},
    ],
    ids=str,
)
def test_a_token_whose_fields_are_foreign_costs_no_click(own, shop, user_id, metrics_port: int, fields: Any) -> None:
    """e4 and e5: signed with the right key, as an insider could. The click applies, and metrics can be read."""
    page = {"request_id": "q", "release_id": "r", "placement": "home", "time_ms": 5}
    before = count(metrics_port, "baguni_unreadable_exposure_tokens_total")
    token = sign(KIND, page | fields, TokenSigner([KEY]))
    shop.send(pb.ItemClicked(user_id=user_id, item_id="rye", event_time=timestamp(TIME_MS), exposure_token=token))
    eventually(lambda: len(read_history(own.endpoints, user_id)) == 1)
    eventually(lambda: count(metrics_port, "baguni_unreadable_exposure_tokens_total") == before + 1)


def test_an_order_of_thirty_thousand_lines_is_cut(own, shop, user_id, goes_on, metrics_port: int) -> None:
    """e6: the lines that a history would keep are kept."""
    before = count(metrics_port, "baguni_cut_orders_total")
    items = [f"item-{number:05d}" for number in range(30_000)]
    shop.send(order(user_id, "o1", *items))
    eventually(lambda: len(read_history(own.endpoints, user_id)) == 2_048)
    assert read_history(own.endpoints, user_id).events[-1].item_id == items[-1]
    eventually(lambda: count(metrics_port, "baguni_cut_orders_total") == before + 1)
    goes_on()


def test_times_that_our_clock_does_not_allow(own, shop, user_id, goes_on) -> None:
    """e8 and e9: neither refuses a user's events for years, nor leads a placement's list."""
    now_ms = int(time.time() * 1000)
    ahead = pb.ItemClicked(user_id=user_id, item_id="rye", event_time=timestamp(FUTURE_MS), placement=user_id)
    for message in (pb.UserDeleted(user_id=user_id, event_time=timestamp(FUTURE_MS)), ahead):
        shop.send_raw(**(producible(message, user_id, "test")))
    shop.send(click(user_id, "milk", now_ms + 60_000))  # a clock that is a minute ahead
    eventually(lambda: [event.item_id for event in read_history(own.endpoints, user_id).events] == ["milk"])
    goes_on()
    eventually(lambda: len(letters(own, "future_time", user_id)) == 2)
    with redis.Redis.from_url(own.endpoints.redis_url) as client:
        assert not [key for key in client.scan_iter("baguni:clicked:*") if user_id.encode() in key]


def test_an_order_that_is_corrected_is_replaced(own, shop, user_id) -> None:
    """e11."""
    shop.send(order(user_id, "o1", "rye", "milk", time_ms=TIME_MS))
    shop.send(order(user_id, "o1", "rye", time_ms=TIME_MS + 60_000))
    expected = (HistoryEvent("rye", Action.ORDERED, TIME_MS + 60_000, "o1"),)
    eventually(lambda: read_history(own.endpoints, user_id).events == expected)


def test_a_negative_quantity_is_no_purchase(own, shop, user_id, goes_on) -> None:
    """e12."""
    message = order(user_id, "o1", "rye")
    message.lines[0].quantity = -2
    shop.send_raw(**producible(message, user_id, "test"))
    goes_on()
    (letter,) = eventually(lambda: letters(own, "invalid_field", user_id))
    assert b"lines[0].quantity is -2" in letter["dead_letter_error"]
    assert len(read_history(own.endpoints, user_id)) == 0


@pytest.mark.parametrize(
    "stored", [b"", b"\x00" * 5, bytes(28) + b"\xc1\xff", bytes(28) + b"\x01\x09\x01", "a list"], ids=repr
)
def test_a_damaged_history_is_set_aside_and_begun_anew(own, shop, user_id, goes_on, stored: bytes | str) -> None:
    key = f"baguni:{{{user_id}}}:h"
    with redis.Redis.from_url(own.endpoints.redis_url) as client:
        client.rpush(key, stored) if isinstance(stored, str) else client.set(key, stored)
        assert len(read_history(own.endpoints, user_id)) == 0  # for the gateway, too
        shop.send(click(user_id, "newest", TIME_MS))  # may be appended, which does not look at what is there
        shop.send(click(user_id, "late", TIME_MS - 1))  # has to be merged, which does
        eventually(lambda: "late" in {event.item_id for event in read_history(own.endpoints, user_id).events})
        shop.send(click(user_id, "next", TIME_MS + 1))
        eventually(lambda: "next" in {event.item_id for event in read_history(own.endpoints, user_id).events})
        goes_on()
        assert client.exists(f"{key}:damaged") == 1 or stored == b""
        HistoryWriter(client).drop([user_id])
