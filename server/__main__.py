"""`python -m server`: the gateway process, until SIGTERM."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from contextlib import suppress
from typing import Any
from wsgiref.simple_server import WSGIServer

import grpc
import redis.asyncio
import uvloop
from grpc_health.v1 import health as grpc_health
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import start_http_server

from baguni.errors import UnavailableError
from baguni.history_store import HistoryReader
from baguni.release import ReleaseStore
from baguni.v1 import recommendation_pb2 as pb
from baguni.v1 import recommendation_pb2_grpc as pb_grpc
from server.active_release import ActiveRelease
from server.interceptor import Gatekeeper
from server.metrics import Metrics
from server.parts import Parts
from server.service import RecommendationService
from server.settings import ServerSettings

log = logging.getLogger("server")
SERVICE = pb.DESCRIPTOR.services_by_name["RecommendationService"].full_name
OPTIONS = [
    ("grpc.max_receive_message_length", 4 * 1024 * 1024),
    ("grpc.max_concurrent_streams", 64),  # of a connection: what is beyond waits at the client, not in the event loop
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),  # of clients that keep connections alive
    ("grpc.max_connection_age_ms", 300_000),  # so that clients find new replicas
    ("grpc.max_connection_age_grace_ms", 30_000),
]


async def serve(settings: ServerSettings, stopping: asyncio.Event) -> None:
    """Serve until told to stop. Healthy once a release is served; not any more before it drains."""
    client = redis.asyncio.Redis.from_url(settings.redis_url, socket_timeout=2.0, socket_connect_timeout=1.0)
    active = ActiveRelease(settings, ReleaseStore(settings.releases), client)
    metrics = Metrics()
    parts = Parts.of(settings, HistoryReader(client), metrics)
    gatekeeper = Gatekeeper(SERVICE, metrics, settings.max_in_flight, settings.max_lag_s)
    server = grpc.aio.server(interceptors=[gatekeeper], options=OPTIONS)
    health = grpc_health.aio.HealthServicer()  # type: ignore[attr-defined]
    pb_grpc.add_RecommendationServiceServicer_to_server(RecommendationService(settings, active, parts), server)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    reflection.enable_server_reflection((SERVICE, grpc_health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    for name in ("", SERVICE):
        await health.set(name, health_pb2.HealthCheckResponse.NOT_SERVING)
    if server.add_insecure_port(settings.gateway_address) == 0:
        raise UnavailableError("gateway", f"cannot listen on {settings.gateway_address}")
    await server.start()
    exporter = _export(metrics, settings.metrics_address)
    log.info("listening address=%s metrics=%s", settings.gateway_address, settings.metrics_address)
    served = asyncio.Event()

    def on_release(release_id: str) -> None:
        metrics.release.clear()
        metrics.release.labels(release_id).set(1)
        served.set()

    followers = [
        asyncio.create_task(active.follow(on_release)),
        asyncio.create_task(active.follow_items()),
        asyncio.create_task(gatekeeper.watch_the_loop()),
        asyncio.create_task(_healthy_when(served, health)),
    ]
    await stopping.wait()
    await health.enter_graceful_shutdown()
    await server.stop(settings.drain_s)
    for task in followers:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    await active.close()
    await client.aclose()
    exporter.shutdown()
    exporter.server_close()
    log.info("stopped")


def _export(metrics: Metrics, address: str) -> WSGIServer:
    """Let Prometheus read the metrics, from a thread of its own."""
    host, _, port = address.rpartition(":")
    try:
        exporter, _ = start_http_server(int(port), host, metrics.registry)
    except (OSError, ValueError) as error:
        raise UnavailableError("gateway", f"cannot serve metrics on {address}: {error}") from error
    return exporter


async def _healthy_when(served: asyncio.Event, health: Any) -> None:
    await served.wait()
    for name in ("", SERVICE):
        await health.set(name, health_pb2.HealthCheckResponse.SERVING)


async def _main() -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    await serve(ServerSettings(), stopping)


def main() -> None:
    """Configure logging and run."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
    uvloop.run(_main())


if __name__ == "__main__":
    main()
