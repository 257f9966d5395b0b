"""Polling: what kafka-python cannot decode is named with its place, and never taken again and again."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import pytest
from kafka import TopicPartition
from kafka.errors import CorruptRecordError, TopicAuthorizationFailedError

from baguni.clients.topics import UnreadableError, poll
from baguni.domain.errors import UnavailableError

PARTITION = TopicPartition("baguni.clicks", 2)
PutOff = namedtuple("PutOff", ["partition", "fetched_offset", "exception"])


class Failed:
    """Stands for what kafka-python keeps of a partition whose records it failed to decode."""

    topic_partition, next_fetch_offset = PARTITION, 7

    def __init__(self, is_exhausted: bool = False) -> None:
        self._is_drained = is_exhausted

    def __bool__(self) -> bool:
        return not self._is_drained

    def drain(self) -> None:
        self._is_drained = True


class Consumer:
    """A consumer whose polls have these outcomes."""

    def __init__(self, kept: Failed | None, *outcomes: Any) -> None:
        self._outcomes, self.at = list(outcomes), 7
        self._fetcher = type("Fetcher", (), {})()
        self._fetcher._next_partition_records, self._fetcher._next_in_line_exception_metadata = kept, None

    def position(self, partition: TopicPartition, timeout_ms: int) -> int:
        assert partition == PARTITION
        return self.at

    def poll(self, **_: object) -> Any:
        outcome = self._outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        records, put_off = outcome
        self._fetcher._next_in_line_exception_metadata = put_off
        return records


@pytest.mark.parametrize(
    "error", [CorruptRecordError("crc"), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no"), ValueError()]
)
def test_what_cannot_be_decoded_is_named_and_dropped(error: Exception) -> None:
    consumer = Consumer(Failed(), error)
    with pytest.raises(UnreadableError, match=r"baguni\.clicks/2@7 cannot be read") as caught:
        poll(consumer, 1)  # type: ignore[arg-type]
    assert (caught.value.partition, caught.value.offset) == (PARTITION, 7)
    assert consumer._fetcher._next_partition_records is None


def test_an_error_that_was_put_off_is_raised_by_the_next_poll_whatever_is_paused_meanwhile() -> None:
    """kafka-python would forget it where the partition is paused then, and take of what is left for ever."""
    sound = {TopicPartition("baguni.orders", 0): ["a record"]}
    consumer = Consumer(Failed(), (sound, PutOff(PARTITION, 7, CorruptRecordError("crc"))), ({}, None))
    assert poll(consumer, 1) == sound  # type: ignore[arg-type]
    assert consumer._fetcher._next_partition_records is None
    assert consumer._fetcher._next_in_line_exception_metadata is None
    with pytest.raises(UnreadableError, match=r"baguni\.clicks/2@7"):
        poll(consumer, 1)  # type: ignore[arg-type]
    assert poll(consumer, 1) == {}  # type: ignore[arg-type]


def test_an_error_that_was_put_off_is_dropped_where_the_caller_has_gone_back() -> None:
    """Otherwise the caller would skip what lies between: it takes the error for what is at its position."""
    sound = {PARTITION: ["5", "6"]}
    consumer = Consumer(Failed(), (sound, PutOff(PARTITION, 7, CorruptRecordError("crc"))), (sound, None))
    assert poll(consumer, 1) == sound  # type: ignore[arg-type]
    consumer.at = 5
    assert poll(consumer, 1) == sound  # type: ignore[arg-type]


def test_what_a_broker_refuses_is_no_records_fault() -> None:
    for kept in (None, Failed(), Failed(is_exhausted=True)):
        with pytest.raises(UnavailableError, match="TopicAuthorizationFailedError"):
            poll(Consumer(kept, TopicAuthorizationFailedError("clicks")), 1)  # type: ignore[arg-type]
    with pytest.raises(UnavailableError):  # the broker's own copy is damaged: nobody knows which record it is
        poll(Consumer(Failed(is_exhausted=True), CorruptRecordError("disk")), 1)  # type: ignore[arg-type]
