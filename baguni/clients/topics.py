"""Read topics from one end to the other, outside any group: for tools, which leave the consumers' offsets alone."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, cast
from weakref import WeakKeyDictionary

from kafka import KafkaConsumer, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient
from kafka.errors import (
    CorruptRecordError,
    InvalidRecordError,
    KafkaError,
    MessageSizeTooLargeError,
    RecordListTooLargeError,
)

from baguni.domain.errors import NotFoundError, UnavailableError

log = logging.getLogger(__name__)
POLL_MS, READ_RECORDS = 1_000, 5_000
BOOTSTRAP_MS = 5_000
MAX_SILENCE = 10  # polls without a record before the broker counts as away

ISOLATION = "read_committed"  # what a producer took back never happened

RECORD_REFUSALS = (MessageSizeTooLargeError, InvalidRecordError, RecordListTooLargeError)
"""Errors of a broker, or of the client in its place, for a record that it will never take."""

Offsets = dict[TopicPartition, int]


class UnreadableError(Exception):
    """The client cannot decode what stands in a partition at an offset."""

    def __init__(self, partition: TopicPartition, offset: int, error: Exception) -> None:
        super().__init__(f"{partition.topic}/{partition.partition}@{offset} cannot be read: {error}")
        self.partition, self.offset = partition, offset


@dataclass(frozen=True)
class Record:
    """A Kafka record, without the client's classes."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]  # a null value is empty here
    timestamp: int = field(default=-1, compare=False)  # ms, by the producer or the broker


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
            isolation_level=ISOLATION,
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
            polled = self._polled(consumer)
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
    def _polled(consumer: KafkaConsumer) -> dict[TopicPartition, list[Any]]:
        """Poll; skip what nobody can read."""
        try:
            return poll(consumer, POLL_MS, READ_RECORDS)
        except UnreadableError as error:
            log.warning("skipped error=%s", error)
            consumer.seek(error.partition, error.offset + 1)
            return {}

    @staticmethod
    def _partitions(consumer: KafkaConsumer, topic: str) -> list[int]:
        found = consumer.partitions_for_topic(topic)
        if not found:
            raise NotFoundError(f"topic {topic!r} does not exist")
        return sorted(found)


def poll(consumer: KafkaConsumer, timeout_ms: int, max_records: int | None = None) -> dict[TopicPartition, list[Any]]:
    """Poll. Raises UnreadableError for what the client cannot decode: the next poll reads it again, unless the caller seeks
    beyond it. Raises UnavailableError for any other error of Kafka."""
    if (deferred := _deferred.pop(consumer, None)) is not None:
        failed, position = deferred
        # A caller that has gone back reads again what came before it, and meets it then.
        if position is not None and position == _position(consumer, failed.partition):
            raise failed
    try:
        polled = dict(consumer.poll(timeout_ms=timeout_ms, max_records=max_records))
    except Exception as error:  # a decoder may raise anything for what others wrote
        unreadable = None
        if not isinstance(error, KafkaError) or isinstance(error, CorruptRecordError):
            unreadable = _dropped(consumer, error)
        if unreadable is None:
            raise UnavailableError("kafka", f"{type(error).__name__} {error}") from error
        raise unreadable from error
    put_off = (
        consumer._fetcher._next_in_line_exception_metadata
    )  # what failed after other records: it would be raised next
    if put_off is not None:
        consumer._fetcher._next_in_line_exception_metadata = None
        if (unreadable := _dropped(consumer, put_off.exception)) is not None:
            _deferred[consumer] = unreadable, _position(consumer, unreadable.partition)
    return polled


# What is raised by the next poll, if the consumer is still at this offset.
_deferred: WeakKeyDictionary[KafkaConsumer, tuple[UnreadableError, int | None]] = WeakKeyDictionary()


def _position(consumer: KafkaConsumer, partition: TopicPartition) -> int | None:
    """Return the offset where the next poll begins, None if that is not known: the partition may have moved away."""
    try:
        return cast("int | None", consumer.position(partition, timeout_ms=POLL_MS))
    except KafkaError:
        return None


def _dropped(consumer: KafkaConsumer, error: Exception) -> UnreadableError | None:
    """Drop what kafka-python failed on: it keeps that, and would try for ever to take more of it; nothing public tells what it
    was. None if it failed on no records."""
    failed = consumer._fetcher._next_partition_records
    if not failed:
        return None
    consumer._fetcher._next_partition_records = None
    failed.drain()
    return UnreadableError(failed.topic_partition, failed.next_fetch_offset, error)


def record_of(raw: Any) -> Record:
    """A consumer's record without the client's classes."""
    headers = tuple((name, value or b"") for name, value in raw.headers)
    return Record(raw.topic, raw.partition, raw.offset, raw.key, raw.value, headers, raw.timestamp)


def retentions(bootstrap: str, topics: Sequence[str]) -> dict[str, float | None]:
    """Return how long each topic keeps a record that nothing replaces, in s; inf for ever, None where the broker does not tell.
    Raises UnavailableError."""
    try:
        with closing(KafkaAdminClient(bootstrap_servers=bootstrap, bootstrap_timeout_ms=BOOTSTRAP_MS)) as client:
            resources = [ConfigResource(ConfigResourceType.TOPIC, topic) for topic in topics]
            described = client.describe_configs(resources, config_filter="all")
    except KafkaError as error:
        raise UnavailableError("kafka", f"{bootstrap}: {error}") from error
    by_topic: Mapping[str, Any] = next(iter(described.values()), {})
    return {topic: _retention_s(by_topic.get(topic, {})) for topic in topics}


def _retention_s(configs: Mapping[str, Any]) -> float | None:
    values = {
        name: str(config.get("value") if isinstance(config, dict) else config) for name, config in configs.items()
    }
    if values.get("cleanup.policy") == "compact" or values.get("retention.ms") == "-1":
        return math.inf
    text = values.get("retention.ms", "")
    return int(text) / 1000 if text.isdecimal() else None
