"""Records that will never be applied, kept whole in the dead-letter topic with the reason and their source. A record that not
even that topic takes is quarantined: Redis keeps its coordinates, and the record stays in its own topic until that forgets it.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import redis
from kafka import KafkaProducer
from kafka.errors import KafkaError

from baguni.clients.topics import RECORD_REFUSALS, Record
from baguni.domain.errors import UnavailableError
from baguni.domain.events import DEAD_LETTER_TOPIC, MAX_ERROR_LENGTH, MalformedEvent
from baguni.stores.redis_client import shared_redis_errors

log = logging.getLogger(__name__)
SEND_TIMEOUT_S = 5.0
MAX_REQUEST_BYTES = 10 << 20  # a record as big as the broker takes, and what is added to it
ADDED = "dead_letter_"  # begins the names of the headers that are added

QUARANTINE_KEY = "baguni:quarantine"
MAX_QUARANTINED = 10_000  # entries; the oldest leave


def original(letter: Record) -> Record:
    """The record that a dead letter keeps, as it was. Raises MalformedEvent if it does not say where it came from."""
    said = {name: value.decode(errors="replace") for name, value in letter.headers if name.startswith(ADDED)}
    try:
        topic, partition = said[f"{ADDED}topic"], int(said[f"{ADDED}partition"])
        offset = int(said[f"{ADDED}offset"])
    except (KeyError, ValueError) as error:
        raise MalformedEvent("no_source", f"a dead letter that does not say where it came from: {error}") from error
    headers = tuple((name, value) for name, value in letter.headers if not name.startswith(ADDED))
    return Record(topic, partition, offset, letter.key, letter.value, headers, letter.timestamp)


@dataclass(frozen=True)
class Quarantined:
    """Coordinates of a record that could be neither applied nor kept as a dead letter; `time_s`: when, since 1970."""

    topic: str
    partition: int
    offset: int
    reason: str
    error: str
    time_s: float


class Quarantine:
    """Coordinates of such records, in Redis. Every call raises UnavailableError if Redis does not answer."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client

    def add(self, entries: Sequence[Quarantined]) -> None:
        """Keep entries; the newest MAX_QUARANTINED stay."""
        with shared_redis_errors():
            pipeline = self._client.pipeline(transaction=True)
            pipeline.rpush(QUARANTINE_KEY, *[json.dumps(asdict(entry)) for entry in entries])
            pipeline.ltrim(QUARANTINE_KEY, -MAX_QUARANTINED, -1)
            pipeline.execute()

    def entries(self) -> list[Quarantined]:
        """Return all entries, oldest first."""
        with shared_redis_errors():
            stored = cast("list[bytes]", self._client.lrange(QUARANTINE_KEY, 0, -1))
        return [Quarantined(**json.loads(entry)) for entry in stored]


class DeadLetters:
    """Sends records to the dead-letter topic. Connects at the first."""

    def __init__(self, bootstrap: str, quarantine: Quarantine) -> None:
        self._bootstrap, self.quarantine = bootstrap, quarantine
        self._producer: KafkaProducer | None = None

    def send(self, dead: Sequence[tuple[Record, MalformedEvent]]) -> int:
        """Keep records aside; returns only when the broker has them, or Redis the coordinates of those that no broker takes:
        how many of these there are. Their own headers stay; those that begin with ADDED say what happened. Raises
        UnavailableError."""
        if not dead:
            return 0
        refused = self._refused(dead)
        if refused:
            self.quarantine.add(refused)
            first = refused[0]
            where = f"{first.topic}/{first.partition}@{first.offset}"
            log.error("quarantined count=%d first=%s error=%s", len(refused), where, first.error)
        counts = Counter(error.reason for _, error in dead)
        for record, error in dead:  # a line for each reason: a producer gone wrong would fill the log
            if count := counts.pop(error.reason, 0):
                where = f"{record.topic}/{record.partition}@{record.offset}"
                log.warning("dead letters reason=%s count=%d first=%s error=%s", error.reason, count, where, error)
        return len(refused)

    def close(self) -> None:
        """Flush and close."""
        if self._producer is not None:
            self._producer.close(timeout=SEND_TIMEOUT_S)

    def _refused(self, dead: Sequence[tuple[Record, MalformedEvent]]) -> list[Quarantined]:
        """Send everything; return what is refused for good."""
        sent: list[tuple[Record, MalformedEvent, Any]] = []
        refused = []
        try:
            if self._producer is None:
                self._producer = self._connect()
            for record, error in dead:
                try:
                    value = b"" if record.key is None and record.value is None else record.value  # the client wants one
                    future = self._producer.send(
                        DEAD_LETTER_TOPIC, key=record.key, value=value, headers=_headers(record, error)
                    )
                except (
                    *RECORD_REFUSALS,
                    AssertionError,
                    TypeError,
                    ValueError,
                ) as refusal:  # the client does not even send it
                    refused.append(_quarantined(record, error, refusal))
                else:
                    sent.append((record, error, future))
            self._producer.flush(timeout=SEND_TIMEOUT_S)
            for record, error, future in sent:
                try:
                    future.get(timeout=SEND_TIMEOUT_S)
                except RECORD_REFUSALS as refusal:
                    refused.append(_quarantined(record, error, refusal))
        except KafkaError as failure:
            raise UnavailableError("kafka", f"dead letters not stored: {failure}") from failure
        return refused

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


def _quarantined(record: Record, error: MalformedEvent, refusal: Exception) -> Quarantined:
    told = f"{error}; as a dead letter: {type(refusal).__name__} {refusal}"
    return Quarantined(
        record.topic, record.partition, record.offset, error.reason, told[:MAX_ERROR_LENGTH], time.time()
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
