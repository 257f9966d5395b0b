"""Send served pages to Kafka, outside the event loop: a slow or unavailable broker costs exposures and nothing else. Exposures
wait in a bounded queue for the thread that owns the producer. Those that do not fit or are not sent in time are counted.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from dataclasses import asdict, dataclass

from google.protobuf.timestamp_pb2 import Timestamp
from kafka import KafkaProducer
from kafka.errors import KafkaError

from baguni.domain.events import cloud_event_headers
from baguni.v1 import exposures_pb2
from baguni.v1 import recommendation_pb2 as pb
from server.experiments.explore import Explored
from server.telemetry.metrics import Metrics

log = logging.getLogger(__name__)
SOURCE = "baguni/gateway"
CAPACITY = 20_000  # exposures, some 2 kB each
EVERY_S = 0.1
CONNECT_MS, RETRY_S = 3_000, 5.0
DELIVERY_MS = 30_000
FLUSH_S = 2.0  # at the end


@dataclass(frozen=True)
class Served:
    """Receiver, placement and time (ms, UTC) of a page. One of `user_id` and `anonymous_id` is empty; both, if a visitor has
    no id."""

    user_id: str
    anonymous_id: str
    placement: str
    time_ms: int


class Exposures:
    """A queue and its thread. Without a topic it does nothing."""

    def __init__(self, bootstrap: str, topic: str, metrics: Metrics) -> None:
        self._bootstrap, self._topic, self._metrics = bootstrap, topic, metrics
        self._queue: deque[exposures_pb2.ListServed] = deque()
        self._stopping = threading.Event()
        self._producer: KafkaProducer | None = None
        self._next_try = 0.0
        self._thread = threading.Thread(target=self._run, name="exposures", daemon=True)
        if topic:
            self._thread.start()

    def add(self, response: pb.RecommendResponse, served: Served, explored: Explored | None = None) -> None:
        """Queue the event of a served page."""
        if not self._topic:
            return
        if len(self._queue) >= CAPACITY:
            self._metrics.exposures.labels("dropped").inc()
            return
        self._queue.append(list_served(response, served, explored))

    def close(self) -> None:
        """Send the rest of the queue, for at most a few seconds."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(2 * FLUSH_S)

    def _run(self) -> None:
        while not self._stopping.wait(EVERY_S):
            try:
                self._send_all()
            except Exception:  # a thread that ends would drop every exposure from then on
                self._metrics.exposures.labels("dropped").inc()
                log.exception("an exposure failed unexpectedly")
        self._send_all()
        if self._producer is not None:
            self._producer.close(timeout=FLUSH_S)

    def _send_all(self) -> None:
        if not self._queue or not self._connected():
            return
        while self._queue and self._producer is not None:
            self._send(self._producer, self._queue.popleft())

    def _send(self, producer: KafkaProducer, served: exposures_pb2.ListServed) -> None:
        headers = cloud_event_headers(served, served.exposure_token[:64], SOURCE)
        key = (served.user_id or served.anonymous_id).encode()
        try:
            sent = producer.send(self._topic, key=key or None, value=served.SerializeToString(), headers=headers)
        except KafkaError as error:
            self._failed(error)
            return
        sent.add_callback(self._sent)
        sent.add_errback(self._failed)

    def _connected(self) -> bool:
        if self._producer is not None:
            return True
        if time.monotonic() < self._next_try:
            return False
        try:
            self._producer = KafkaProducer(
                bootstrap_servers=self._bootstrap,
                acks=1,
                linger_ms=50,
                max_block_ms=CONNECT_MS,
                bootstrap_timeout_ms=CONNECT_MS,
                delivery_timeout_ms=DELIVERY_MS,
                request_timeout_ms=DELIVERY_MS // 2,
            )
        except KafkaError as error:
            log.warning("exposures wait for kafka retry_s=%.0f error=%s", RETRY_S, error)
            self._next_try = time.monotonic() + RETRY_S
            return False
        return True

    def _sent(self, _: object) -> None:
        self._metrics.exposures.labels("sent").inc()

    def _failed(self, error: BaseException) -> None:
        self._metrics.exposures.labels("dropped").inc()
        log.debug("exposure dropped error=%s", error)


def list_served(
    response: pb.RecommendResponse, served: Served, explored: Explored | None = None
) -> exposures_pb2.ListServed:
    """Return the event of a served page. `explored`: how chance changed its order."""
    event = exposures_pb2.ListServed(
        exposure_token=response.exposure_token,
        request_id=response.request_id,
        placement=served.placement,
        release_id=response.release_id,
        history_version=response.history_version,
        degradation_tier=response.degradation_tier,
        items=response.items,
        experiment_assignments=response.experiment_assignments,
        event_time=Timestamp(seconds=served.time_ms // 1000, nanos=served.time_ms % 1000 * 1_000_000),
    )
    if served.user_id:  # one of them: they are a oneof
        event.user_id = served.user_id
    else:
        event.anonymous_id = served.anonymous_id
    if explored is not None:
        event.exploration.CopyFrom(exposures_pb2.Exploration(**asdict(explored)))
    return event
