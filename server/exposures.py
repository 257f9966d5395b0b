"""What was served, to Kafka, beside the event loop: a broker that is slow or away costs exposures and nothing else. They wait
in a queue of a bounded length for a thread that owns the producer; what does not fit, or is not taken in time, is counted.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from dataclasses import asdict

from google.protobuf.timestamp_pb2 import Timestamp
from kafka import KafkaProducer
from kafka.errors import KafkaError

from baguni.events import cloud_event_headers
from baguni.v1 import exposures_pb2
from baguni.v1 import recommendation_pb2 as pb
from server.explore import Explored
from server.metrics import Metrics

log = logging.getLogger(__name__)
SOURCE = "baguni/gateway"
CAPACITY = 20_000  # exposures, some 2 kB each
EVERY_S = 0.1
CONNECT_MS, RETRY_S = 3_000, 5.0
DELIVERY_MS = 30_000
FLUSH_S = 2.0  # at the end


class Exposures:
    """A queue and its thread. Without a topic, nothing."""

    def __init__(self, bootstrap: str, topic: str, metrics: Metrics) -> None:
        self._bootstrap, self._topic, self._metrics = bootstrap, topic, metrics
        self._queue: deque[exposures_pb2.ListServed] = deque()
        self._stopping = threading.Event()
        self._producer: KafkaProducer | None = None
        self._next_try = 0.0
        self._thread = threading.Thread(target=self._run, name="exposures", daemon=True)
        if topic:
            self._thread.start()

    def add(
        self, request: pb.RecommendRequest, response: pb.RecommendResponse, time_ms: int, how: Explored | None = None
    ) -> None:
        """Note that a page was served."""
        if not self._topic:
            return
        if len(self._queue) >= CAPACITY:
            self._metrics.exposures.labels("dropped").inc()
            return
        self._queue.append(list_served(request, response, time_ms, how))

    def close(self) -> None:
        """Send what is left, for at most a few seconds."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(2 * FLUSH_S)

    def _run(self) -> None:
        while not self._stopping.wait(EVERY_S):
            try:
                self._send_all()
            except Exception:  # a thread that ends would drop every exposure from then on
                self._metrics.exposures.labels("dropped").inc()
                log.exception("an exposure failed unforeseen")
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
    request: pb.RecommendRequest, response: pb.RecommendResponse, time_ms: int, how: Explored | None = None
) -> exposures_pb2.ListServed:
    """The event of a page that was served; `how`: chance's share in it."""
    served = exposures_pb2.ListServed(
        exposure_token=response.exposure_token,
        request_id=response.request_id,
        placement=request.placement,
        release_id=response.release_id,
        history_version=response.history_version,
        degradation_tier=response.degradation_tier,
        items=response.items,
        experiment_assignments=response.experiment_assignments,
        event_time=Timestamp(seconds=time_ms // 1000, nanos=time_ms % 1000 * 1_000_000),
    )
    if how is not None:
        served.exploration.CopyFrom(exposures_pb2.Exploration(**asdict(how)))
    if request.WhichOneof("subject") == "user_id":
        served.user_id = request.user_id
    else:
        served.anonymous_id = request.anonymous.anonymous_id
    return served
