"""The Kafka loop: poll, apply, commit. What applying means is given; this knows offsets, groups and patience.

Offsets are committed after the write, so a crash redelivers; what is applied must not mind. A record that will never parse
goes to the dead letters and the loop goes on. While a server is down the partitions are paused, polling goes on, so that
the group keeps its member, and the same batch is tried again: nothing is skipped.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kafka import ConsumerRebalanceListener, KafkaConsumer
from kafka.errors import CommitFailedError, KafkaError

from baguni.errors import UnavailableError
from baguni.events import Event, MalformedEvent, parse
from streaming.dead_letters import DeadLetters, Record
from streaming.settings import StreamingSettings

log = logging.getLogger(__name__)
POLL_MS = 200
FIRST_RETRY_S, LONGEST_RETRY_S = 0.1, 5.0

Apply = Callable[[Sequence[Event]], Sequence[tuple[int, MalformedEvent]]]
"""Applies events and returns those it rejects for good, by position. Raises UnavailableError to be called again."""


class EventConsumer:
    """One member of a consumer group."""

    def __init__(
        self, settings: StreamingSettings, topics: Sequence[str], group_id: str, apply: Apply, dead_letters: DeadLetters
    ) -> None:
        self._apply, self._dead_letters, self._settings = apply, dead_letters, settings
        self._consumer = KafkaConsumer(
            bootstrap_servers=settings.kafka_bootstrap,
            group_id=group_id + settings.group_suffix,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            session_timeout_ms=settings.session_timeout_ms,
            heartbeat_interval_ms=settings.session_timeout_ms // 3,
            max_poll_records=settings.batch_records,
            fetch_max_wait_ms=50,
        )
        self._consumer.subscribe(topics, listener=_Readiness(settings.ready_file))

    def run(self, should_stop: Callable[[], bool]) -> None:
        """Consume until told to stop; leaves the group on the way out."""
        try:
            while not should_stop():
                polled = self._consumer.poll(timeout_ms=POLL_MS)
                records = [_record(raw) for partition in polled.values() for raw in partition]
                if records and self._apply_patiently(records, should_stop):
                    self._commit()
        finally:
            self._consumer.close()

    def _apply_patiently(self, records: Sequence[Record], should_stop: Callable[[], bool]) -> bool:
        """Apply a batch, however long a server is away. False if told to stop before it was applied."""
        retry_s = FIRST_RETRY_S
        paused = False
        while not should_stop():
            try:
                self._apply_once(records)
            except UnavailableError as error:
                log.warning("waiting retry_s=%.1f records=%d error=%s", retry_s, len(records), error)
                self._consumer.pause(*self._consumer.assignment())
                paused = True
                self._consumer.poll(timeout_ms=int(retry_s * 1000))
                retry_s = min(retry_s * 2, LONGEST_RETRY_S)
                continue
            if paused:
                self._consumer.resume(*self._consumer.paused())
            return True
        return False

    def _apply_once(self, records: Sequence[Record]) -> None:
        events, sources = [], []
        for record in records:
            try:
                events.append(parse(dict(record.headers), record.key, record.value))
                sources.append(record)
            except MalformedEvent as error:
                self._dead_letters.send(record, error)
        for position, rejection in self._apply(events):
            self._dead_letters.send(sources[position], rejection)

    def _commit(self) -> None:
        try:
            self._consumer.commit()
        except CommitFailedError as error:  # the partitions moved on: their new owner applies the records again
            log.warning("commit refused error=%s", error)
        except KafkaError as error:
            log.warning("commit failed error=%s", error)


class _Readiness(ConsumerRebalanceListener):  # type: ignore[misc]
    """Touches the ready file when partitions are assigned."""

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
    import signal

    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    return stopping


def _record(raw: Any) -> Record:
    return Record(raw.topic, raw.partition, raw.offset, raw.key, raw.value, tuple(raw.headers))
