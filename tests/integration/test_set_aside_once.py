"""A malformed record is set aside once: neither the next release's group nor one that has lost its offsets does so again, and
what was let through stops neither. Redis and broker are the module's own.
"""

from __future__ import annotations

import math
import random
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager

import pytest
import redis
from kafka import KafkaConsumer, KafkaProducer
from kafka.admin import KafkaAdminClient

from baguni.domain.errors import SchemaBreakError
from baguni.domain.events import ITEM_TOPIC, Event, MalformedEvent, producible
from baguni.stores.redis_client import connect
from streaming.consumer import OF_THIS_GROUP, Apply, ConsumerParts, EventConsumer
from streaming.dead_letters import DeadLetters, Quarantine
from streaming.metrics import Metrics
from streaming.settings import StreamingSettings
from tests.faults.streams import Own, dead_letters, own_servers
from tests.integration.streams import Shop, item
from tests.waiting import WAIT_S, eventually

FAMILY = "baguni-items"
Sent = list[tuple[str, bool]]  # item ids, and whether the record is malformed


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Own]:
    with own_servers(tmp_path_factory.mktemp("own")) as servers:
        yield servers


@pytest.fixture
def family(own: Own) -> Iterator[str]:
    """A suffix of groups; the topic is empty, and so is Redis."""
    yield f"-{uuid.uuid4().hex[:8]}"
    with closing(KafkaAdminClient(bootstrap_servers=own.endpoints.kafka_bootstrap)) as admin:
        admin.delete_topics([ITEM_TOPIC])
    eventually(lambda: ITEM_TOPIC not in topics(own), "the topic is gone")
    own.create_topics()
    with redis.Redis.from_url(own.endpoints.redis_url) as client:
        client.flushdb()


def topics(own: Own) -> set[str]:
    with closing(KafkaConsumer(bootstrap_servers=own.endpoints.kafka_bootstrap)) as consumer:
        return set(consumer.topics())


def send(own: Own, num_good: int, num_malformed: int, seed: int = 0) -> Sent:
    """Send records of items in random order; returns their keys."""
    records = [(f"item-{uuid.uuid4().hex[:12]}", n >= num_good) for n in range(num_good + num_malformed)]
    random.Random(seed).shuffle(records)
    with closing(KafkaProducer(bootstrap_servers=own.endpoints.kafka_bootstrap)) as producer:
        for item_id, is_malformed in records:
            record = producible(item(item_id, "bread"), item_id, "test")
            producer.send(**(record | {"value": b"\xff"} if is_malformed else record))
        producer.flush(WAIT_S)
    return records


@contextmanager
def consumer(
    own: Own, suffix: str, group: str, apply: Apply, **settings: float
) -> Iterator[tuple[EventConsumer, Metrics]]:
    """A consumer of the items' family in this process."""
    chosen = StreamingSettings(**own.endpoints.model_dump(), group_suffix=suffix, fetch_wait_ms=20, **settings)
    metrics = Metrics()
    with connect(chosen.redis_url) as client:
        parts = ConsumerParts(client, DeadLetters(chosen.kafka_bootstrap, Quarantine(client)), metrics)
        with closing(parts.dead_letters):
            yield EventConsumer(chosen, [ITEM_TOPIC], group, apply, parts, 64, family=FAMILY), metrics


def consume(
    own: Own, suffix: str, group: str, num_records: float = math.inf, reject: str = "", **settings: float
) -> tuple[list[str], Metrics]:
    """Let a group read so many records; returns the items that it applied. Raises what the consumer raises."""
    applied: list[str] = []

    def apply(events: Iterator[Event]) -> Sequence[tuple[int, MalformedEvent]]:
        ids = [event.item_id for event in events]  # type: ignore[union-attr]
        applied.extend(ids)
        return [(n, MalformedEvent(reject, "it is rejected")) for n in range(len(ids)) if reject]

    with consumer(own, suffix, group, apply, **settings) as (member, metrics):
        read = metrics.records.labels(ITEM_TOPIC)._value
        give_up = time.monotonic() + WAIT_S
        member.run(lambda: read.get() >= num_records or time.monotonic() > give_up)
        assert read.get() == num_records
    return applied, metrics


def set_aside(own: Own, records: Sent) -> Counter[str]:
    """Return how often each of some records is in the dead letters."""
    sent = {item_id for item_id, _ in records}
    ids = [letter.get("ce_id", b"").decode() for letter in dead_letters(own.endpoints)]
    return Counter(item_id for item_id in ids if item_id in sent)


def malformed(records: Sent) -> Counter[str]:
    return Counter(item_id for item_id, is_malformed in records if is_malformed)


def test_the_next_releases_group_applies_everything_and_sets_nothing_aside_again(own: Own, family: str) -> None:
    first = send(own, 60, 30, seed=1)
    consume(own, family, "baguni-items-r1", 90)
    assert set_aside(own, first) == malformed(first)
    second = send(own, 20, 10, seed=2)
    applied, metrics = consume(own, family, "baguni-items-r2", 120)
    assert set(applied) == {item_id for item_id, is_malformed in first + second if not is_malformed}
    assert set_aside(own, first + second) == malformed(first + second)
    assert metrics.dead_letters_again._value.get() == 30
    with redis.Redis.from_url(own.endpoints.redis_url) as client:  # as `baguni release prune` does
        client.delete(*client.keys("baguni:positions:*"))
    consume(own, family, "baguni-items-r3", 120)
    assert set_aside(own, first + second) == malformed(first + second)


def test_a_bad_patch_that_was_let_through_stops_no_later_release_and_a_new_one_does(own: Own, family: str) -> None:
    bad = send(own, 0, 500)
    for group in ("baguni-items-r1", "baguni-items-r2"):  # what one passes before it notices is less than a hundred
        with pytest.raises(SchemaBreakError):
            consume(own, family, group)
    consume(own, family, "baguni-items-r3", 500, max_dead_share=1.0)
    later = send(own, 10, 20)
    applied, _ = consume(own, family, "baguni-items-r4", 530)
    assert len(applied) == 10
    assert set_aside(own, bad + later) == malformed(bad + later)
    send(own, 0, 500)
    with pytest.raises(SchemaBreakError):
        consume(own, family, "baguni-items-r5")


def test_a_topic_that_is_made_anew_has_nothing_that_was_set_aside(own: Own, family: str) -> None:
    first = send(own, 10, 50)
    consume(own, family, "baguni-items-r1", 60)
    with closing(KafkaAdminClient(bootstrap_servers=own.endpoints.kafka_bootstrap)) as admin:
        admin.delete_topics([ITEM_TOPIC])
    eventually(lambda: ITEM_TOPIC not in topics(own), "the topic is gone")
    own.create_topics()
    second = send(own, 10, 50)
    consume(own, family, "baguni-items-r2", 60)
    assert set_aside(own, first + second) == malformed(first + second)


@pytest.mark.parametrize("reason", sorted({"wrong_topic", *OF_THIS_GROUP}))
def test_what_depends_on_the_release_is_set_aside_by_each(own: Own, family: str, reason: str) -> None:
    """The group before may have applied such a record."""
    records = send(own, 40, 0)
    for number in range(2):
        consume(own, family, f"baguni-items-r{number}", 40, reject=reason)
    times = 2 if reason in OF_THIS_GROUP else 1
    assert set_aside(own, records) == dict.fromkeys((item_id for item_id, _ in records), times)


def test_items_without_a_free_id_are_no_broken_schema(own: Own, family: str) -> None:
    records = send(own, 150, 0)
    consume(own, family, "baguni-items-r1", 150, reject="no_free_id")
    assert len(set_aside(own, records)) == 150


def test_a_record_that_nobody_can_read_is_quarantined_once(own: Own, family: str) -> None:
    class Undecodable(str):
        def encode(self, *_: str) -> bytes:  # type: ignore[override]
            return b"\xff\xfe"

    send(own, 10, 0)
    with closing(Shop(own.endpoints)) as shop:
        where = shop.send_raw(ITEM_TOPIC, b"rye", b"", [(Undecodable("x"), b"")])
    send(own, 40, 0)  # in every partition: who has read them is beyond it
    for number in range(2):
        consume(own, family, f"baguni-items-r{number}", 50)
    with redis.Redis.from_url(own.endpoints.redis_url) as client:
        entries = Quarantine(client).entries()
    assert [f"{entry.topic}/{entry.partition}@{entry.offset}" for entry in entries] == [where]
