"""The dead-letter topic: records that will never parse, kept whole, with the reason and where they came from."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from kafka import KafkaProducer

from baguni.errors import UnavailableError
from baguni.events import DEAD_LETTER_TOPIC, MalformedEvent

log = logging.getLogger(__name__)
SEND_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Record:
    """A Kafka record, without the client's classes."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]


class DeadLetters:
    """Sends records to the dead-letter topic; returns only when the broker has them."""

    def __init__(self, bootstrap: str) -> None:
        self._producer = KafkaProducer(bootstrap_servers=bootstrap, acks="all", linger_ms=0)

    def send(self, record: Record, error: MalformedEvent) -> None:
        """Keep a record aside. Its own headers stay; those that begin with `dead_letter_` say what happened."""
        headers = [
            *record.headers,
            ("dead_letter_reason", error.reason.encode()),
            ("dead_letter_error", str(error).encode()),
            ("dead_letter_topic", record.topic.encode()),
            ("dead_letter_partition", str(record.partition).encode()),
            ("dead_letter_offset", str(record.offset).encode()),
        ]
        future = self._producer.send(DEAD_LETTER_TOPIC, key=record.key, value=record.value, headers=headers)
        try:
            future.get(timeout=SEND_TIMEOUT_S)
        except Exception as failure:  # the client raises its own and built-in errors alike; all mean: not stored
            raise UnavailableError("kafka", f"dead letter not stored: {failure}") from failure
        where = f"{record.topic}/{record.partition}@{record.offset}"
        log.warning("dead letter reason=%s source=%s error=%s", error.reason, where, error)

    def close(self) -> None:
        """Flush and close."""
        self._producer.close(timeout=SEND_TIMEOUT_S)
