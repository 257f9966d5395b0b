"""Reading topics from one end to the other, outside any group: for tools, which leave the consumers' offsets alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from baguni.errors import NotFoundError, UnavailableError

POLL_MS = 1_000
BOOTSTRAP_MS = 5_000
MAX_SILENCE = 10  # polls without a record before the broker counts as away

Offsets = dict[TopicPartition, int]


@dataclass(frozen=True)
class Record:
    """A Kafka record, without the client's classes."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]


class TopicReader:
    """Iterates once over records up to where the topics ended when it began. `ends` is where the next reading begins."""

    def __init__(self, bootstrap: str, topics: Sequence[str], since: Mapping[TopicPartition, int]) -> None:
        self._bootstrap, self._topics, self._since = bootstrap, topics, since
        self.ends: Offsets = {}

    def __iter__(self) -> Iterator[Record]:
        try:
            with closing(self._consumer()) as consumer:
                yield from self._records(consumer)
        except KafkaError as error:
            raise UnavailableError("kafka", f"{self._bootstrap}: {error}") from error

    def _consumer(self) -> KafkaConsumer:
        return KafkaConsumer(
            bootstrap_servers=self._bootstrap,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            bootstrap_timeout_ms=BOOTSTRAP_MS,
        )

    def _records(self, consumer: KafkaConsumer) -> Iterator[Record]:
        partitions = [
            TopicPartition(topic, number) for topic in self._topics for number in self._partitions(consumer, topic)
        ]
        consumer.assign(partitions)
        self.ends = dict(consumer.end_offsets(partitions))
        begins = consumer.beginning_offsets(partitions)
        for partition in partitions:
            consumer.seek(partition, max(self._since.get(partition, 0), begins[partition]))
        left = {partition for partition in partitions if consumer.position(partition) < self.ends[partition]}
        silence, unseen = 0, set(left)
        while left:
            polled = consumer.poll(timeout_ms=POLL_MS, max_records=5_000)
            silence = 0 if polled else silence + 1
            if silence >= MAX_SILENCE:
                raise UnavailableError("kafka", f"nothing came of {len(left)} partitions for {MAX_SILENCE} s")
            for partition in (
                unseen & polled.keys()
            ):  # some brokers count the last batch as one record until it is fetched
                self.ends[partition] = max(self.ends[partition], consumer.highwater(partition) or 0)
            unseen -= polled.keys()
            for partition, raws in polled.items():
                yield from (record_of(raw) for raw in raws if raw.offset < self.ends[partition])
            left = {partition for partition in left if consumer.position(partition) < self.ends[partition]}

    @staticmethod
    def _partitions(consumer: KafkaConsumer, topic: str) -> list[int]:
        found = consumer.partitions_for_topic(topic)
        if not found:
            raise NotFoundError(f"topic {topic!r} does not exist")
        return sorted(found)


def record_of(raw: Any) -> Record:
    """A consumer's record without the client's classes."""
    return Record(raw.topic, raw.partition, raw.offset, raw.key, raw.value, tuple(raw.headers))
