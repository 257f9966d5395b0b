"""From Kafka to the next answer, through the supervised processes."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator

import grpc
import pytest
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from kafka import KafkaConsumer, KafkaProducer

from baguni.domain.events import DEAD_LETTER_TOPIC, TOPICS, cloud_event_headers
from baguni.settings import Endpoints
from baguni.v1 import events_pb2, recommendation_pb2
from baguni.v1 import recommendation_pb2_grpc as pb_grpc
from tests.waiting import WAIT_S, eventually

pytestmark = pytest.mark.stack
START_S = 1_712_000_000


@pytest.fixture
def stub(running: Endpoints) -> Iterator[pb_grpc.RecommendationServiceStub]:
    with grpc.insecure_channel(running.gateway_address) as channel:
        yield pb_grpc.RecommendationServiceStub(channel)


@pytest.fixture
def send(running: Endpoints) -> Iterator[Callable[[Message, str], None]]:
    producer = KafkaProducer(bootstrap_servers=running.kafka_bootstrap, acks="all", linger_ms=0)

    def produce(message: Message, key: str) -> None:
        headers = cloud_event_headers(message, uuid.uuid4().hex, "tests")
        topic = TOPICS[type(message).__name__]
        producer.send(topic, key=key.encode(), value=message.SerializeToString(), headers=headers).get(timeout=WAIT_S)

    yield produce
    producer.close()


def order(user_id: str, number: int, *item_ids: str) -> events_pb2.OrderPlaced:
    return events_pb2.OrderPlaced(
        user_id=user_id,
        order_id=f"{user_id}-{number}",
        lines=[events_pb2.OrderLine(item_id=item_id) for item_id in item_ids],
        event_time=Timestamp(seconds=START_S + number),
    )


def test_every_order_changes_what_is_recommended(stub, send) -> None:
    user = f"user-{uuid.uuid4().hex[:8]}"

    def version() -> int:
        request = recommendation_pb2.RecommendRequest(user_id=user, now=Timestamp(seconds=START_S + 3600))
        return int(stub.Recommend(request).history_version)

    for number in range(1, 6):
        before = version()
        send(order(user, number, "beer-aged", "cheese-fresh"), user)
        eventually(lambda before=before: version() > before, f"order {number} is in the history", version)


@pytest.mark.parametrize("name", ["new-", "men's-tee-", "x'] or item_id not in ['"])
def test_a_new_item_is_found_and_recommended_and_gone_when_removed(stub, send, local_stack, name: str) -> None:
    """e1: whatever its id is, and no other item goes with it."""
    item_id = f"{name}{uuid.uuid4().hex[:8]}"
    item = events_pb2.ItemUpserted(
        item_id=item_id,
        title="fresh light milk",
        category_path=["GROCERY", "MILK"],
        attributes={"brand": events_pb2.AttributeValue(string_value=item_id)},
        event_time=Timestamp(seconds=int(time.time())),
    )
    send(item, item_id)

    def has_neighbours() -> bool:
        request = recommendation_pb2.SimilarItemsRequest(item_id=item_id, space=recommendation_pb2.SPACE_CONTENT)
        try:
            return len(stub.SimilarItems(request).items) > 0
        except grpc.RpcError:
            return False

    def is_recommended() -> bool:
        only = recommendation_pb2.Filter(attribute="brand", any_of=recommendation_pb2.StringSet(values=[item_id]))
        visitor = recommendation_pb2.AnonymousUser(
            recent_events=[
                recommendation_pb2.HistoryEvent(
                    item_id="milk-fresh", action=events_pb2.ACTION_CLICKED, event_time=Timestamp(seconds=START_S)
                )
            ]
        )
        response = stub.Recommend(recommendation_pb2.RecommendRequest(anonymous=visitor, filters=[only]))
        found = [i for i in response.items if i.item_id == item_id]
        return bool(found) and recommendation_pb2.SOURCE_RETRIEVAL in found[0].sources

    log = local_stack.log_dir / "item-consumer.log"
    eventually(has_neighbours, "the new item has neighbours", lambda: log.read_text()[-3000:])
    eventually(is_recommended, "the new item is recommended")
    send(events_pb2.ItemRemoved(item_id=item_id, event_time=Timestamp(seconds=int(time.time()) + 1)), item_id)
    eventually(lambda: not has_neighbours(), "the removed item has no neighbours")
    eventually(lambda: not is_recommended(), "the removed item is not recommended")
    similar = recommendation_pb2.SimilarItemsRequest(item_id="milk-fresh", space=recommendation_pb2.SPACE_CONTENT)
    assert len(stub.SimilarItems(similar).items) == 20


def test_attributes_that_the_release_does_not_declare_stop_no_item(stub, send, local_stack) -> None:
    """The shop has renamed an attribute and sends prices as text: more records in a row than a broken schema may have."""
    item_id = f"resized-{uuid.uuid4().hex[:8]}"
    start_s = int(time.time()) - 200
    for number in range(150):
        text = {"brand": item_id, "pack_size": f"{number} g", "price": f"{number}.99"}
        item = events_pb2.ItemUpserted(
            item_id=item_id,
            title="fresh light milk",
            category_path=["GROCERY", "MILK"],
            attributes={name: events_pb2.AttributeValue(string_value=value) for name, value in text.items()},
            event_time=Timestamp(seconds=start_s + number),
        )
        send(item, item_id)
    log = local_stack.log_dir / "item-consumer.log"
    similar = recommendation_pb2.SimilarItemsRequest(item_id=item_id, space=recommendation_pb2.SPACE_CONTENT)

    def has_neighbours() -> bool:
        try:
            return len(stub.SimilarItems(similar).items) > 0
        except grpc.RpcError:
            return False

    eventually(has_neighbours, "the item has neighbours", lambda: log.read_text()[-3000:])
    send(events_pb2.ItemRemoved(item_id=item_id, event_time=Timestamp(seconds=int(time.time()) + 1)), item_id)
    eventually(lambda: not has_neighbours(), "the item is gone", lambda: log.read_text()[-3000:])
    assert log.read_text().count("attributes['pack_size'] is not declared") == 1
    assert "attributes['price'] is a string, expected a number" in log.read_text()


def test_a_malformed_message_is_set_aside_with_its_reason_and_the_next_is_applied(running, stub, send) -> None:
    user = f"user-{uuid.uuid4().hex[:8]}"
    send(events_pb2.OrderPlaced(user_id=user, order_id="no-lines", event_time=Timestamp(seconds=START_S)), user)
    send(order(user, 1, "beer-aged"), user)

    def applied() -> bool:
        request = recommendation_pb2.RecommendRequest(user_id=user, now=Timestamp(seconds=START_S + 3600))
        return stub.Recommend(request).history_version > 0

    eventually(applied, "the order after the malformed message is in the history")
    consumer = KafkaConsumer(
        DEAD_LETTER_TOPIC,
        bootstrap_servers=running.kafka_bootstrap,
        auto_offset_reset="earliest",
        consumer_timeout_ms=60_000,
    )
    headers = next(dict(record.headers) for record in consumer if record.key == user.encode())
    consumer.close()
    assert headers["dead_letter_reason"] == b"invalid_field"
    assert b"lines is empty" in headers["dead_letter_error"]
    assert headers["dead_letter_topic"] == b"baguni.orders"
