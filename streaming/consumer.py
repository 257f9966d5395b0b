"""The Kafka loop: poll, apply, commit. What applying means is given; this knows offsets, groups and patience.

Offsets are committed after the write, so a crash redelivers; what is applied must not mind. A record that will never
parse goes to the dead letters and the loop goes on. While a server is away the position goes back to the first record
that is not applied, the partitions are paused, and polling goes on, so that the group keeps its member: nothing is
skipped, whatever partitions come and go meanwhile.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kafka import ConsumerRebalanceListener, KafkaConsumer, OffsetAndMetadata, TopicPartition
from kafka.errors import KafkaError

from baguni.errors import UnavailableError
from baguni.events import Event, MalformedEvent, parse
from streaming.dead_letters import DeadLetters, Record
from streaming.settings import StreamingSettings

log = logging.getLogger(__name__)
POLL_MS = 200  # also how long a stop waits at most while nothing arrives
FETCH_WAIT_MS = 50  # how long the broker holds an empty fetch: an event waits for the one before it, at most
BOOTSTRAP_MS = 5_000
COMMIT_MS = 5_000
FIRST_RETRY_S, LONGEST_RETRY_S = 0.1, 5.0

Apply = Callable[[Sequence[Event]], Sequence[tuple[int, MalformedEvent]]]
"""Applies events and returns those it rejects for good, by position. Raises UnavailableError to be called again."""

Polled = Mapping[TopicPartition, Sequence[Any]]


class EventConsumer:
    """One member of a consumer group. Raises UnavailableError if no broker answers at the start."""

    def __init__(
        self,
        settings: StreamingSettings,
        topics: Sequence[str],
        group_id: str,
        apply: Apply,
        dead_letters: DeadLetters,
        batch_records: int,
    ) -> None:
        self._apply, self._dead_letters = apply, dead_letters
        self._retry_s = FIRST_RETRY_S
        try:
            self._consumer = KafkaConsumer(
                bootstrap_servers=settings.kafka_bootstrap,
                group_id=group_id + settings.group_suffix,
                enable_auto_commit=False,
                auto_offset_reset="earliest",
                session_timeout_ms=settings.session_timeout_ms,
                heartbeat_interval_ms=settings.session_timeout_ms // 3,
                max_poll_records=batch_records,
                fetch_max_wait_ms=FETCH_WAIT_MS,
                bootstrap_timeout_ms=BOOTSTRAP_MS,
            )
        except KafkaError as error:
            raise UnavailableError("kafka", f"{settings.kafka_bootstrap}: {error}") from error
        self._consumer.subscribe(topics, listener=_Readiness(settings.ready_file))

    def run(self, should_stop: Callable[[], bool]) -> None:
        """Consume until told to stop; leaves the group on the way out."""
        try:
            while not should_stop():
                polled = self._consumer.poll(timeout_ms=POLL_MS)
                if polled:
                    self._step(polled, should_stop)
        finally:
            self._consumer.close()

    def _step(self, polled: Polled, should_stop: Callable[[], bool]) -> None:
        records = [_record(raw) for partition in polled.values() for raw in partition]
        started = time.monotonic()
        try:
            num_dead = self._apply_all(records)
        except UnavailableError as error:
            log.warning("waiting retry_s=%.1f records=%d error=%s", self._retry_s, len(records), error)
            self._return(polled)
            self._pause(should_stop)
            self._retry_s = min(self._retry_s * 2, LONGEST_RETRY_S)
            return
        self._retry_s = FIRST_RETRY_S
        self._commit(polled)
        took_ms = (time.monotonic() - started) * 1000
        log.info("applied records=%d dead=%d took_ms=%.1f", len(records), num_dead, took_ms)

    def _apply_all(self, records: Sequence[Record]) -> int:
        """Apply what parses, then set aside what does not: in that order, a retry repeats no dead letter."""
        events, sources, dead = [], [], []
        for record in records:
            try:
                events.append(parse(dict(record.headers), record.key, record.value))
                sources.append(record)
            except MalformedEvent as error:
                dead.append((record, error))
        dead += [(sources[position], rejection) for position, rejection in self._apply(events)] if events else []
        for record, malformed in dead:
            self._dead_letters.send(record, malformed)
        return len(dead)

    def _return(self, polled: Polled) -> None:
        """Take back what was polled: the next poll begins with it. A partition that has moved on is its owner's."""
        for partition, raws in self._still_ours(polled):
            self._consumer.seek(partition, raws[0].offset)

    def _pause(self, should_stop: Callable[[], bool]) -> None:
        """Keep the membership for a while and take nothing."""
        until = time.monotonic() + self._retry_s
        while time.monotonic() < until and not should_stop():
            self._consumer.pause(*self._consumer.assignment())
            remaining_ms = max(int((until - time.monotonic()) * 1000), 0)
            self._return(self._consumer.poll(timeout_ms=min(remaining_ms, POLL_MS)))  # of partitions just assigned
        self._consumer.resume(*self._consumer.paused())

    def _commit(self, polled: Polled) -> None:
        """Commit exactly what was applied. A commit that fails costs a redelivery, which changes nothing."""
        offsets = {
            partition: OffsetAndMetadata(raws[-1].offset + 1, "", -1) for partition, raws in self._still_ours(polled)
        }
        try:
            self._consumer.commit(offsets, timeout_ms=COMMIT_MS)
        except KafkaError as error:
            log.warning("commit failed error=%s", error)

    def _still_ours(self, polled: Polled) -> Iterator[tuple[TopicPartition, Sequence[Any]]]:
        ours = self._consumer.assignment()
        return ((partition, raws) for partition, raws in polled.items() if partition in ours)


class _Readiness(ConsumerRebalanceListener):  # type: ignore[misc]
    """Touches the ready file when partitions are assigned. Nothing is to be flushed when they are revoked: that happens
    inside a poll, when all that was polled before is either committed or returned."""

    def __init__(self, ready_file: Path | None) -> None:
        self._ready_file = ready_file

    def on_partitions_revoked(self, revoked: Any) -> None:
        log.info("revoked partitions=%d", len(revoked))

    def on_partitions_assigned(self, assigned: Any) -> None:
        log.info("assigned partitions=%d", len(assigned))
        if self._ready_file is not None:
            self._ready_file.touch()


def stop_on_signals() -> threading.Event:
    """An event that SIGTERM and SIGINT set."""
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    return stopping


def _record(raw: Any) -> Record:
    return Record(raw.topic, raw.partition, raw.offset, raw.key, raw.value, tuple(raw.headers))
