"""What the tests of streaming share: a shop that produces events, and consumers as processes."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import redis.asyncio
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from baguni.clients.topics import Record, TopicReader
from baguni.domain.events import producible
from baguni.domain.history import History
from baguni.settings import Endpoints
from baguni.stores.history_store import HistoryReader
from baguni.v1 import events_pb2 as pb
from tests.waiting import WAIT_S, eventually


class Shop:
    """Produces events, each stored by the broker when the call returns."""

    def __init__(self, endpoints: Endpoints) -> None:
        self._producer = KafkaProducer(bootstrap_servers=endpoints.kafka_bootstrap, linger_ms=0)

    def send(self, message: Message) -> None:
        """Produce a message as its contract says."""
        self.send_raw(**producible(message, uuid.uuid4().hex, "test"))

    def send_raw(self, topic: str, key: bytes | None, value: bytes, headers: Sequence[tuple[str, bytes]]) -> str:
        """Produce any record; returns where it stands, as the consumers' log says it."""
        stored = self._producer.send(topic, key=key, value=value, headers=list(headers)).get(timeout=WAIT_S)
        return f"{topic}/{stored.partition}@{stored.offset}"

    def close(self) -> None:
        """Close the producer."""
        self._producer.close(timeout=5)


class ConsumerProcess:
    """`python -m streaming user|item`, ready when entered, stopped by SIGTERM at the end."""

    def __init__(
        self, kind: str, endpoints: Endpoints, work_dir: Path, group_suffix: str, module: str = "streaming"
    ) -> None:
        self._ready_file = work_dir / f"{kind}-{uuid.uuid4().hex[:8]}.ready"
        self.log = self._ready_file.with_suffix(".log")
        environment = endpoints.environment()
        environment |= {
            "BAGUNI_FETCH_WAIT_MS": "50",
            "BAGUNI_GROUP_SUFFIX": group_suffix,
            "BAGUNI_READY_FILE": str(self._ready_file),
        }
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, kind], env={**os.environ, **environment}, stdout=log, stderr=log
            )

    def __enter__(self) -> Self:
        try:
            eventually(
                lambda: self._ready_file.is_file() or self.process.poll() is not None,
                f"{self._ready_file.stem} is ready",
                self.log.read_text,
            )
            assert self.process.poll() is None, self.log.read_text()
        except BaseException:
            self.process.kill()  # one that is left alone changes what other tests see
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop it by SIGTERM, if it runs."""
        if self.process.poll() is None:
            self.process.terminate()
            assert self.process.wait(WAIT_S) == 0, self.log.read_text()


def wait_until_consumed(endpoints: Endpoints, group: str, topics: Sequence[str]) -> None:
    """Return when the group has committed everything that is in the topics now."""
    consumer = KafkaConsumer(bootstrap_servers=endpoints.kafka_bootstrap, group_id=group, enable_auto_commit=False)
    try:
        partitions = [TopicPartition(t, p) for t in topics for p in consumer.partitions_for_topic(t) or ()]
        ends = {partition: end for partition, end in consumer.end_offsets(partitions).items() if end}

        def left() -> dict[TopicPartition, int]:
            committed = {partition: consumer.committed(partition) or 0 for partition in ends}
            return {p: end - committed[p] for p, end in ends.items() if committed[p] < end}

        eventually(lambda: not left(), f"{group} has committed all of {', '.join(topics)}", left)
    finally:
        consumer.close()


def records_of(endpoints: Endpoints, topic: str) -> list[Record]:
    """Every record that the topic holds now."""
    return list(TopicReader(endpoints.kafka_bootstrap, [topic], {}))


def read_history(endpoints: Endpoints, user_id: str) -> History:
    """A user's history as the gateway would read it."""

    async def read() -> History:
        client = redis.asyncio.Redis.from_url(endpoints.redis_url)
        try:
            return (await HistoryReader(client).read([user_id]))[0]
        finally:
            await client.aclose()

    return asyncio.run(read())


def order(user_id: str, order_id: str, *item_ids: str, time_ms: int = 1_700_000_000_000) -> pb.OrderPlaced:
    """An order."""
    lines = [pb.OrderLine(item_id=item_id) for item_id in item_ids]
    return pb.OrderPlaced(user_id=user_id, order_id=order_id, lines=lines, event_time=timestamp(time_ms))


def click(user_id: str, item_id: str, time_ms: int) -> pb.ItemClicked:
    """A click."""
    return pb.ItemClicked(user_id=user_id, item_id=item_id, event_time=timestamp(time_ms))


def cancellation(user_id: str, order_id: str, time_ms: int) -> pb.OrderCancelled:
    """The end of an order."""
    return pb.OrderCancelled(user_id=user_id, order_id=order_id, event_time=timestamp(time_ms))


def deletion(user_id: str, time_ms: int) -> pb.UserDeleted:
    """A user who is to be forgotten."""
    return pb.UserDeleted(user_id=user_id, event_time=timestamp(time_ms))


def item(
    item_id: str, title: str, time_ms: int = 1_700_000_000_000, price: float = 1.0, available: bool = True
) -> pb.ItemUpserted:
    """An item of the tiny shop."""
    return pb.ItemUpserted(
        item_id=item_id,
        title=title,
        category_path=["GROCERY", "BREAD"],
        attributes={"price": pb.AttributeValue(number_value=price), "brand": pb.AttributeValue(string_value="own")},
        available=available,
        event_time=timestamp(time_ms),
    )


def timestamp(time_ms: int) -> Timestamp:
    """Milliseconds as protobuf has it."""
    return Timestamp(seconds=time_ms // 1000, nanos=time_ms % 1000 * 1_000_000)
