"""A shop's clicks, carts and orders, as many a second as wanted:

python -m benchmarks.streaming.traffic BOOTSTRAP PER_S SECONDS
"""

from __future__ import annotations

import random
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from typing import Any

from confluent_kafka import Producer
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from kafka import KafkaProducer

from baguni.domain.events import producible
from baguni.v1 import events_pb2 as pb

USERS, ITEMS, MAX_LINES = 20_000, 12_000, 12
ORDERED, CARTED = 0.1, 0.2  # of all events; the others are clicks
TICK_S = 0.01
PREPARED = 20_000
LINGER_MS = 100  # the local broker is slower with every batch that it holds, however small


def traffic(seed: int) -> Iterator[Message]:
    """Events of now, without an end. Users and items are numbers, as many shops have them."""
    rng = random.Random(seed)  # noqa: S311 - no secret
    while True:
        user_id, kind = str(10**6 + rng.randrange(USERS)), rng.random()
        item_ids = [str(10**6 + rng.randrange(ITEMS)) for _ in range(rng.randrange(1, MAX_LINES + 1))]
        now = Timestamp()
        now.FromMilliseconds(int(time.time() * 1000))
        if kind < ORDERED:
            lines = [pb.OrderLine(item_id=item_id, quantity=1) for item_id in item_ids]
            order_id = str(rng.randrange(10**10, 10**11))
            yield pb.OrderPlaced(user_id=user_id, order_id=order_id, lines=lines, event_time=now)
        elif kind < ORDERED + CARTED:
            yield pb.CartAdded(user_id=user_id, item_id=item_ids[0], quantity=1, event_time=now)
        else:
            yield pb.ItemClicked(user_id=user_id, item_id=item_ids[0], event_time=now)


def produce(bootstrap: str, messages: Iterator[Message], count: int) -> None:
    """Send so many; returns when the broker has all of them."""
    with closing(KafkaProducer(bootstrap_servers=bootstrap, linger_ms=5, acks=1)) as producer:
        for message in islice(messages, count):
            send(producer, message)
        producer.flush()


def send(producer: KafkaProducer, message: Message) -> None:
    """One event as its contract says."""
    producer.send(**_record(message))


def load(bootstrap: str, per_s: float, seconds: float) -> None:
    """The same events over and over, made beforehand, by a producer in C: load that takes little of the machine itself."""
    records = [_record(message) for message in islice(traffic(int(time.time())), PREPARED)]
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": LINGER_MS, "acks": 1})
    started = time.monotonic()
    for number in range(int(per_s * seconds)):
        producer.produce(**records[number % PREPARED])
        if number % max(int(per_s * TICK_S), 1) == 0:
            producer.poll(0)
            time.sleep(max(started + number / per_s - time.monotonic(), 0))
    producer.flush(10)


def _record(message: Message) -> dict[str, Any]:
    return producible(message, uuid.uuid4().hex, "baguni/benchmark")


if __name__ == "__main__":
    load(sys.argv[1], float(sys.argv[2]), float(sys.argv[3]))
