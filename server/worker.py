"""`python -m server.worker NAME`: one process of the gateway, until SIGTERM or until its supervisor is gone.

NAME is `online-N` or `bulk-N`. Every process listens on a Unix socket of its own; the online ones share the gateway's port.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import os
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import grpc
import uvloop
from grpc_health.v1 import health as grpc_health
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from baguni.background import Background
from baguni.domain.errors import BaguniError, UnavailableError
from baguni.domain.release import ReleaseStore
from baguni.stores.forgotten import ForgottenFollower
from baguni.stores.redis_client import connect_async
from baguni.stores.served import process_name
from baguni.v1 import recommendation_pb2 as pb
from baguni.v1 import recommendation_pb2_grpc as pb_grpc
from server.edge.callers import Callers
from server.edge.gate import Gate, Room
from server.edge.service import RecommendationService
from server.experiments.features import Features
from server.lists.calls import Calls
from server.process.forgetting import Forgetting
from server.process.siblings import BulkForwarder, Overflow, Siblings
from server.process.tls import certificates
from server.release.active_release import ActiveRelease
from server.settings import ServerSettings
from server.telemetry.capture import Capture
from server.telemetry.exposures import Exposures
from server.telemetry.metrics import Metrics
from server.telemetry.tracing import Telemetry, log_to_stderr

log = logging.getLogger("server")
SERVICE = pb.DESCRIPTOR.services_by_name["RecommendationService"].full_name
CALLERS_CHECK_S = 2.0
CLOSE_S = 15.0  # beyond the drain: a connection to a server that is gone may never close
# A history is hundreds of objects and no cycle: looking for some was half of what a bulk process did.
GC_THRESHOLD = 100_000


class Worker:
    """The parts of one process. It is healthy from its first served release until it drains."""

    def __init__(self, settings: ServerSettings, name: str) -> None:
        self._settings, self._name, self._is_online = settings, name, name in settings.online_names
        self._redis = connect_async(settings.redis_url)
        experiments = settings.experiments if self._is_online else ""
        self._features = Features(experiments, settings.experiments_refresh_s, self._count_feature_error)
        self._active = ActiveRelease(
            settings, ReleaseStore(settings.releases), self._redis, lambda: self._features.experiments.release_ids
        )
        self._metrics, self._telemetry = Metrics(settings.placement_names), Telemetry.from_environment()
        self._background, self._is_serving = Background(self._metrics.restarts, self._tell_health), False
        self._calls = Calls.of(settings, self._redis, self._metrics, self._telemetry)
        topic = settings.exposure_topic if self._is_online else ""
        self._exposures = Exposures(settings.kafka_bootstrap, topic, self._metrics)
        capture_dir = settings.capture_dir if self._is_online else None
        self._capture = Capture(capture_dir, f"{socket.gethostname()}.{name}", settings, self._metrics)
        follower = ForgottenFollower(self._redis, process_name())
        self._forgetting = Forgetting(follower, self._calls.users, self._capture)
        self._callers = Callers(settings.callers, share=1 / settings.processes)
        others = [other for other in settings.online_names if self._is_online and other != name]
        self._siblings = Siblings([settings.socket_of(other) for other in others], settings.default_deadline_s)
        self._bulk = Siblings(
            [settings.socket_of(bulk) for bulk in settings.bulk_names if self._is_online],
            settings.default_bulk_deadline_s,
        )
        self._gate = Gate(
            SERVICE,
            self._callers,
            self._metrics,
            self._telemetry,
            Room(settings.max_in_flight),
            Room(settings.max_bulk_in_flight),
            # Batches make a loop late by themselves; where nobody waits for a page that is no reason to refuse.
            settings.max_lag_s if self._is_online else math.inf,
            Overflow(self._siblings) if others else None,
        )
        self._health = grpc_health.aio.HealthServicer()  # type: ignore[attr-defined]

    async def serve(self, stopping: asyncio.Event) -> None:
        """Serve until told to stop."""
        await self._features.start()
        server = self._server()
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        await server.start()
        background = self._background
        background.start("releases", lambda: self._active.follow(self._on_release), is_necessary=True)
        background.start("items", self._active.follow_items, is_necessary=True)
        background.start("loop", self._gate.watch_the_loop, is_necessary=True)
        background.start("served", self._active.tell_what_is_served)
        background.start("forgetting", self._forgetting.follow)
        background.start("callers", self._follow_callers)
        if self._features.are_followed:
            background.start("features", self._features.follow)
            background.start("feature events", self._features.follow_events)
        await stopping.wait()
        await self._health.enter_graceful_shutdown()
        await server.stop(self._settings.drain_s)
        await background.stop()
        await self._close()

    def _server(self) -> grpc.aio.Server:
        interceptors: list[Any] = [self._gate, *([BulkForwarder(SERVICE, self._bulk)] if self._bulk else [])]
        server = grpc.aio.server(interceptors=interceptors, options=_options(self._settings))
        service = RecommendationService(
            self._settings,
            self._active,
            self._calls,
            self._exposures,
            self._capture,
            self._features,
            self._settings.token_signer(),
        )
        pb_grpc.add_RecommendationServiceServicer_to_server(service, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection((SERVICE, grpc_health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        own = self._settings.socket_of(self._name)
        Path(own.removeprefix("unix:")).unlink(missing_ok=True)  # of one that was killed
        ports = [server.add_insecure_port(own)]
        if self._is_online:
            secured = certificates(self._settings)
            address = self._settings.gateway_address
            ports.append(
                server.add_secure_port(address, secured.credentials()) if secured else server.add_insecure_port(address)
            )
        if 0 in ports:
            raise UnavailableError("gateway", f"cannot listen on {self._settings.gateway_address} or {own}")
        return server

    def _count_feature_error(self) -> None:
        self._metrics.feature_errors.inc()

    async def _set_health(self, status: Any) -> None:
        for name in ("", SERVICE):
            await self._health.set(name, status)

    async def _on_release(self, release_id: str) -> None:
        self._metrics.serves(release_id)
        self._is_serving = True
        await self._tell_health()

    async def _tell_health(self) -> None:
        is_healthy = self._is_serving and self._background.is_sound
        status = health_pb2.HealthCheckResponse
        await self._set_health(status.SERVING if is_healthy else status.NOT_SERVING)

    async def _follow_callers(self) -> None:
        while True:
            await asyncio.sleep(CALLERS_CHECK_S)
            self._callers.reload()

    async def _close(self) -> None:
        await self._siblings.close()
        await self._bulk.close()
        await self._features.close()
        await self._active.close()
        await self._calls.close()
        await self._redis.aclose()
        await asyncio.to_thread(self._exposures.close)
        self._capture.close()
        self._telemetry.shutdown()


def _options(settings: ServerSettings) -> list[tuple[str, int]]:
    return [
        ("grpc.so_reuseport", 1),
        ("grpc.max_receive_message_length", settings.max_request_bytes),
        ("grpc.max_metadata_size", 16 << 10),
        (
            "grpc.max_concurrent_streams",
            64,
        ),  # of a connection: what is beyond waits at the client, not in the event loop
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),  # of clients that keep connections alive
        ("grpc.max_connection_age_ms", 300_000),  # so that clients find new replicas
        ("grpc.max_connection_age_grace_ms", 30_000),
    ]


async def _main(settings: ServerSettings, name: str) -> None:
    stopping, loop = asyncio.Event(), asyncio.get_running_loop()

    def stop() -> None:
        loop.remove_reader(sys.stdin)  # what has ended is readable for ever
        if not stopping.is_set():
            _end_within(settings.drain_s + CLOSE_S)
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    # The supervisor writes nothing: this ends when it does, however it does.
    loop.add_reader(sys.stdin, stop)
    try:
        await Worker(settings, name).serve(stopping)
    finally:
        loop.remove_reader(sys.stdin)


def _end_within(seconds: float) -> None:
    """End the process after so many seconds, whatever it still waits for: nobody is served any more."""

    def end() -> None:
        log.error("not closed within_s=%.0f: ending", seconds)
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


def main() -> None:
    """Run the process that the command line names."""
    settings = ServerSettings()
    names = [*settings.online_names, *settings.bulk_names]
    if len(sys.argv) != 2 or sys.argv[1] not in names:
        sys.exit(f"usage: python -m server.worker {'|'.join(names)}")
    log_to_stderr(settings.log_format)
    gc.set_threshold(GC_THRESHOLD)
    try:
        uvloop.run(_main(settings, sys.argv[1]))
    except BaguniError as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main()
