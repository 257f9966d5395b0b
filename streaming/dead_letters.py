"""The dead-letter topic: records that will never parse, kept whole, with the reason and where they came from."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

from kafka import KafkaProducer
from kafka.errors import KafkaError

from baguni.errors import UnavailableError
from baguni.events import DEAD_LETTER_TOPIC, MalformedEvent
from baguni.topics import Record

log = logging.getLogger(__name__)
SEND_TIMEOUT_S = 5.0
MAX_ERROR_LENGTH = 1_000
MAX_REQUEST_BYTES = 10 << 20  # a record as big as the broker takes, and what is added to it
ADDED = "dead_letter_"  # begins the names of the headers that are added


def original(letter: Record) -> Record:
    """The record that a dead letter keeps, as it was. Raises MalformedEvent if it does not say where it came from."""
    said = {name: value.decode(errors="replace") for name, value in letter.headers if name.startswith(ADDED)}
    try:
        topic, partition = said[f"{ADDED}topic"], int(said[f"{ADDED}partition"])
        offset = int(said[f"{ADDED}offset"])
    except (KeyError, ValueError) as error:
        raise MalformedEvent("no_source", f"a dead letter that does not say where it came from: {error}") from error
    headers = tuple((name, value) for name, value in letter.headers if not name.startswith(ADDED))
    return Record(topic, partition, offset, letter.key, letter.value, headers)


class DeadLetters:
    """Sends records to the dead-letter topic. Connects at the first."""

    def __init__(self, bootstrap: str) -> None:
        self._bootstrap = bootstrap
        self._producer: KafkaProducer | None = None

    def send(self, dead: Sequence[tuple[Record, MalformedEvent]]) -> None:
        """Keep records aside; returns only when the broker has them. Their own headers stay; those that begin with ADDED say
        what happened. Raises UnavailableError."""
        if not dead:
            return
        try:
            if self._producer is None:
                self._producer = self._connect()
            sent = [
                self._producer.send(
                    DEAD_LETTER_TOPIC, key=record.key, value=record.value, headers=_headers(record, error)
                )
                for record, error in dead
            ]
            self._producer.flush(timeout=SEND_TIMEOUT_S)
            for future in sent:
                future.get(timeout=SEND_TIMEOUT_S)
        except KafkaError as failure:
            raise UnavailableError("kafka", f"dead letters not stored: {failure}") from failure
        counts = Counter(error.reason for _, error in dead)
        for record, error in dead:  # a line for each reason: a producer gone wrong would fill the log
            if count := counts.pop(error.reason, 0):
                where = f"{record.topic}/{record.partition}@{record.offset}"
                log.warning("dead letters reason=%s count=%d first=%s error=%s", error.reason, count, where, error)

    def close(self) -> None:
        """Flush and close."""
        if self._producer is not None:
            self._producer.close(timeout=SEND_TIMEOUT_S)

    def _connect(self) -> KafkaProducer:
        milliseconds = int(SEND_TIMEOUT_S * 1000)
        return KafkaProducer(
            bootstrap_servers=self._bootstrap,
            acks="all",
            linger_ms=0,
            bootstrap_timeout_ms=milliseconds,
            max_block_ms=milliseconds,
            max_request_size=MAX_REQUEST_BYTES,
        )


def _headers(record: Record, error: MalformedEvent) -> list[tuple[str, bytes]]:
    added = {
        "reason": error.reason,
        "error": str(error)[:MAX_ERROR_LENGTH],
        "topic": record.topic,
        "partition": str(record.partition),
        "offset": str(record.offset),
    }
    return [*record.headers, *((f"{ADDED}{name}", value.encode(errors="replace")) for name, value in added.items())]
