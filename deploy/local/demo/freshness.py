"""Play a household's events into Kafka, and measure how quickly they change an answer."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from kafka import KafkaProducer

from baguni.clients.gateway import GatewayClient
from baguni.domain.errors import BaguniError, NotFoundError
from baguni.domain.events import producible
from baguni.v1 import events_pb2, recommendation_pb2
from deploy.local.demo.households import NextOrder

LIST_LENGTH = 10
VISIBLE_WITHIN_S = 10.0
MINUTE_MS = 60_000


@dataclass(frozen=True)
class Freshness:
    """Seconds that events took to change an answer: clicks and orders of each timed household, and a new item."""

    clicks_s: list[float]
    orders_s: list[float]
    new_item_searchable_s: float
    new_item_recommended_s: float


def recommend(gateway: GatewayClient, user_id: str, now_ms: int) -> recommendation_pb2.RecommendResponse:
    """Return the list of a household as of a moment."""
    request = recommendation_pb2.RecommendRequest(
        user_id=user_id, placement="home", page_size=LIST_LENGTH, now=_timestamp(now_ms)
    )
    return gateway.recommend(request)


def ids(response: recommendation_pb2.RecommendResponse) -> list[str]:
    """Return the items of a list, best first."""
    return [item.item_id for item in response.items]


def clicks(order: NextOrder) -> list[Message]:
    """Return clicks of the household on two of the items that it will order."""
    return [
        events_pb2.ItemClicked(
            user_id=order.user_id, item_id=item_id, event_time=_timestamp(order.time_ms - (2 - n) * MINUTE_MS)
        )
        for n, item_id in enumerate(order.item_ids[:2])
    ]


def order_placed(order: NextOrder) -> events_pb2.OrderPlaced:
    """Return the event of the order."""
    lines = [events_pb2.OrderLine(item_id=item_id) for item_id in order.item_ids]
    when = _timestamp(order.time_ms)
    return events_pb2.OrderPlaced(user_id=order.user_id, order_id=order.order_id, lines=lines, event_time=when)


def send_and_wait(
    producer: KafkaProducer, gateway: GatewayClient, order: NextOrder, messages: Sequence[Message]
) -> float:
    """Return the seconds from handing the events to Kafka until `Recommend` returns another list because of them. Raises
    BaguniError after VISIBLE_WITHIN_S."""
    now_ms = order.time_ms + MINUTE_MS
    before = recommend(gateway, order.user_id, now_ms)
    started = time.monotonic()
    for message in messages:
        _send(producer, message)
    while time.monotonic() - started < VISIBLE_WITHIN_S:
        after = recommend(gateway, order.user_id, now_ms)
        if after.history_version > before.history_version and after.items != before.items:
            return time.monotonic() - started
        time.sleep(0.005)
    raise BaguniError(f"the events of household {order.user_id} did not show within {VISIBLE_WITHIN_S:.0f} s")


def new_item(producer: KafkaProducer, gateway: GatewayClient, order: NextOrder) -> tuple[float, float]:
    """Return the seconds until an item that training never saw has neighbours, and until it is in a list. Raises BaguniError
    after VISIBLE_WITHIN_S."""
    unseen = uuid.uuid4().hex[:8]  # by an earlier demo either
    message = events_pb2.ItemUpserted(
        item_id=f"demo-{unseen}",
        title="Oat drink barista edition, unsweetened, 33 oz",
        category_path=["Grocery", "Fluid milk products", "Oat drink"],
        attributes={"brand": events_pb2.AttributeValue(string_value=f"Demo {unseen}")},
        event_time=_timestamp(int(time.time() * 1000)),
    )
    started = time.monotonic()
    _send(producer, message)
    searchable = _wait_for(lambda: _neighbours(gateway, message.item_id), started)
    only_new = recommendation_pb2.Filter(
        attribute="brand", any_of=recommendation_pb2.StringSet(values=[message.attributes["brand"].string_value])
    )
    request = recommendation_pb2.RecommendRequest(
        user_id=order.user_id, page_size=LIST_LENGTH, filters=[only_new], now=_timestamp(order.time_ms)
    )
    recommended = _wait_for(lambda: message.item_id in ids(gateway.recommend(request)), started)
    return searchable, recommended


def _neighbours(gateway: GatewayClient, item_id: str) -> bool:
    request = recommendation_pb2.SimilarItemsRequest(
        item_id=item_id, space=recommendation_pb2.SPACE_CONTENT, page_size=LIST_LENGTH
    )
    try:
        return len(gateway.similar_items(request).items) > 0
    except NotFoundError:
        return False


def _wait_for(condition: Callable[[], bool], started: float) -> float:
    while not condition():
        if time.monotonic() - started > VISIBLE_WITHIN_S:
            raise BaguniError(f"the new item did not show within {VISIBLE_WITHIN_S:.0f} s")
        time.sleep(0.02)
    return time.monotonic() - started


def _send(producer: KafkaProducer, message: Message) -> None:
    producer.send(**producible(message, uuid.uuid4().hex, "baguni/demo")).get(timeout=10)


def _timestamp(time_ms: int) -> Timestamp:
    return Timestamp(seconds=time_ms // 1000, nanos=time_ms % 1000 * 1_000_000)
