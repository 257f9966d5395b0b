"""A CampaignPush a user into a topic."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from contextlib import closing
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.timestamp_pb2 import Timestamp
from kafka import KafkaAdminClient, KafkaProducer
from kafka.errors import KafkaError, KafkaTimeoutError

from baguni.clients.topics import RECORD_REFUSALS, TopicReader
from baguni.domain.errors import NotFoundError, UnavailableError
from baguni.domain.events import cloud_event_headers
from baguni.v1 import campaigns_pb2
from baguni.v1 import recommendation_pb2 as pb
from crm.campaign import KafkaSink
from crm.sinks import Sent, UncertainError
from crm.state import Push, Run

TIMEOUT_S = 10.0
TIMEOUT_MS = int(TIMEOUT_S * 1000)
SOURCE = "baguni/crm"


class PushTopic:
    """Each push has an id of its own, so after an interruption the topic itself says which of them arrived."""

    batch = 500
    is_repeatable = False

    def __init__(self, sink: KafkaSink, bootstrap: str) -> None:
        self.name = f"kafka {sink.topic}"
        self._topic, self._bootstrap = sink.topic, bootstrap
        self._producer: KafkaProducer | None = None

    def check(self) -> None:
        """Whether the broker answers and has the topic; a producer that asked would make many brokers create it."""
        try:
            with closing(
                KafkaAdminClient(bootstrap_servers=self._bootstrap, bootstrap_timeout_ms=TIMEOUT_MS)
            ) as client:
                if self._topic not in client.list_topics():
                    raise NotFoundError(f"sink kafka: topic {self._topic!r} does not exist")
        except KafkaError as error:
            raise UnavailableError("kafka", f"{self._bootstrap}: {error}") from error

    def send(self, run: Run, pushes: Sequence[Push]) -> Sent:
        """Send them and wait until the broker has them. What it refuses for good fails alone."""
        try:
            producer = self._connected()
        except KafkaError as error:
            raise UnavailableError("kafka", f"{self._bootstrap}: {error}") from error
        records = [(push.user_id, self._record(run, push)) for push in pushes]
        failed: dict[str, str] = {}
        arrived: set[str] = set()
        problem: Exception | None = None
        futures = {}
        for user_id, record in records:
            try:
                futures[user_id] = producer.send(self._topic, **record)
            except RECORD_REFUSALS as error:
                failed[user_id] = f"kafka refused it: {error}"
            except Exception as error:  # those before it are on their way, whatever this is
                problem = error
                break
        try:
            producer.flush(timeout=TIMEOUT_S)
        except Exception as error:
            problem = error
        for user_id, future in futures.items():
            if future.succeeded():
                arrived.add(user_id)
            elif isinstance(future.exception, RECORD_REFUSALS):
                failed[user_id] = f"kafka refused it: {future.exception}"
            else:
                problem = problem or future.exception or KafkaTimeoutError("no answer")
        if problem is not None:
            self.close()
            raise UncertainError(f"kafka: {problem}", arrived, failed) from problem
        return Sent(failed)

    def names(self, push: Push) -> Collection[str]:
        """Return none: a topic remembers nothing of users."""
        return ()

    def arrived(self, run: Run, pushes: Sequence[Push]) -> set[str]:
        """Reads the whole topic, which only an interruption is worth."""
        by_id = {_event_id(run, push).encode(): push.user_id for push in pushes}
        reader = TopicReader(self._bootstrap, [self._topic], {})
        seen = (dict(record.headers).get("ce_id", b"") for record in reader)
        return {by_id[event_id] for event_id in seen if event_id in by_id}

    def preview(self, run: Run, pushes: Sequence[Push]) -> list[Any]:
        """The messages."""
        return [MessageToDict(_message(run, push)) for push in pushes]

    def close(self) -> None:
        """Close the connection."""
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.close(timeout=TIMEOUT_S)

    def _record(self, run: Run, push: Push) -> dict[str, Any]:
        message = _message(run, push)
        headers = cloud_event_headers(message, _event_id(run, push), SOURCE)
        return {"key": push.user_id.encode(), "value": message.SerializeToString(), "headers": headers}

    def _connected(self) -> KafkaProducer:
        if self._producer is None:
            self._producer = KafkaProducer(
                bootstrap_servers=self._bootstrap,
                acks="all",
                enable_idempotence=True,  # what is tried again is there once
                linger_ms=5,
                max_block_ms=TIMEOUT_MS,
                bootstrap_timeout_ms=TIMEOUT_MS,
            )
        return self._producer


def _event_id(run: Run, push: Push) -> str:
    return json.dumps([run.run_id, push.user_id])


def _message(run: Run, push: Push) -> campaigns_pb2.CampaignPush:
    event_time = Timestamp()
    event_time.FromMilliseconds(run.started_ms)
    source = pb.SOURCE_POPULAR if push.cold_start else pb.SOURCE_GENERATIVE
    return campaigns_pb2.CampaignPush(
        user_id=push.user_id,
        campaign=run.campaign,
        run_id=run.run_id,
        items=[
            pb.RecommendedItem(item_id=item.item_id, score=item.score, position=position, sources=[source])
            for position, item in enumerate(push.items)
        ],
        release_id=push.release_id,
        cold_start=push.cold_start,
        event_time=event_time,
    )
