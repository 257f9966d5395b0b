"""Two Tritons, two gateways and two consumers, balanced by their clients: one of each is killed under load, and no page
fails."""

from __future__ import annotations

import subprocess
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import psutil
import pytest
import redis

from baguni.clients.channels import replicas
from baguni.clients.gateway import GatewayClient
from baguni.domain.errors import BaguniError, UnavailableError
from baguni.domain.history import Action, HistoryEvent
from baguni.domain.release import POINTER, Release
from baguni.releases.activation import publish
from baguni.settings import Endpoints
from baguni.stores.history_store import HistoryWriter
from baguni.v1 import recommendation_pb2 as pb
from deploy.local import triton_server
from deploy.local.settings import free_port
from deploy.local.stack import LocalStack
from tests.gateway_process import GatewayProcess, gateway_process
from tests.integration.streams import ConsumerProcess, Shop, click, read_history
from tests.waiting import eventually

pytestmark = pytest.mark.stack
USERS = [f"balanced-{number}" for number in range(40)]
CALLERS = 3
NOW_MS = int(time.time() * 1000)
FULL = pb.DEGRADATION_TIER_FULL


@contextmanager
def another_triton(local_stack: LocalStack, endpoints: Endpoints, folder: Path) -> Iterator[tuple[psutil.Process, str]]:
    """A second one over the same models; its gRPC address."""
    ports = [free_port() for _ in range(3)]
    arguments = [endpoints.triton_repository, folder / "triton-work", endpoints.releases / POINTER, *ports]
    command = [local_stack.settings.servers_python, triton_server.__file__, *arguments]
    with (folder / "triton.log").open("wb") as log:
        process = psutil.Popen(list(map(str, command)), stdout=log, stderr=subprocess.STDOUT)
    try:
        eventually(lambda: is_live(f"http://127.0.0.1:{ports[1]}/v2/health/live"))
        yield process, f"127.0.0.1:{ports[0]}"
    finally:
        kill(process)


def is_live(url: str) -> bool:
    try:
        with urlopen(url, timeout=1) as reply:
            return bool(reply.status == 200)
    except (URLError, OSError):
        return False


def kill(process: psutil.Process) -> None:
    """As kill -9 does, with those that it started."""
    if process.is_running():
        family = [*process.children(recursive=True), process]
        for one in family:
            one.kill()
        psutil.wait_procs(family, 10)


class Callers:
    """Some threads that ask for page after page; what became of each."""

    def __init__(self, address: str) -> None:
        self._client, self._stop = GatewayClient(address), threading.Event()
        self._pool = ThreadPoolExecutor(CALLERS)
        self.tiers: Counter[int] = Counter()
        self.failed: list[str] = []
        self._asking = [self._pool.submit(self._ask, number) for number in range(CALLERS)]

    def _ask(self, number: int) -> None:
        while not self._stop.is_set():
            number += 1
            request = pb.RecommendRequest(user_id=USERS[number % len(USERS)], page_size=5)
            try:
                self.tiers[self._client.recommend(request).degradation_tier] += 1
            except BaguniError as error:
                self.failed.append(str(error))

    def close(self) -> None:
        self._stop.set()
        for asking in self._asking:
            asking.result()
        self._pool.shutdown()
        self._client.close()


def served_by(gateway: GatewayProcess) -> float:
    """How many pages it has answered."""
    name = 'baguni_request_duration_seconds_count{code="OK",method="Recommend"}'
    lines = gateway.get("/metrics")[1].splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def test_one_of_each_dies_and_no_page_fails(
    running: Endpoints, local_stack: LocalStack, active_release: Release, tmp_path: Path, fresh_group: str
) -> None:
    events = [HistoryEvent(item, Action.ORDERED, NOW_MS - 86_400_000, "o") for item in ("bread-rye", "milk-fresh")]
    endpoints = running.model_copy(update={"redis_url": running.redis_url.replace("/0", "/7")})
    with redis.Redis.from_url(endpoints.redis_url) as client:
        client.flushdb()
        HistoryWriter(client).apply(dict.fromkeys(USERS, events))
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    with another_triton(local_stack, endpoints, tmp_path) as (triton, address):
        endpoints = endpoints.model_copy(update={"triton_url": f"ipv4:{endpoints.triton_url},{address}"})
        publish(active_release, endpoints)
        with (
            gateway_process(endpoints, folders[0], bulk_processes=0) as first,
            gateway_process(endpoints, folders[1], bulk_processes=0) as second,
            ConsumerProcess("user", endpoints, folders[0], fresh_group),
            ConsumerProcess("user", endpoints, folders[1], fresh_group) as doomed,
            closing(Shop(running)) as shop,
            closing(Callers(f"ipv4:{first.address},{second.address}")) as callers,
        ):
            eventually(lambda: callers.tiers[FULL] > 100)
            assert served_by(first) > 20
            assert served_by(second) > 20
            kill(triton)
            asked = callers.tiers.total()
            eventually(lambda: callers.tiers.total() > asked + 100)
            kill(second.process)
            doomed.process.kill()
            asked = callers.tiers.total()
            for user_id in USERS:
                shop.send(click(user_id, "soap-rye", NOW_MS))
            eventually(lambda: all(len(read_history(endpoints, user_id)) == 3 for user_id in USERS))
            eventually(lambda: callers.tiers.total() > asked + 100)
        assert callers.failed == []
        assert callers.tiers[FULL] > 0.98 * callers.tiers.total()


def test_a_triton_that_is_away_is_no_reason_not_to_serve(
    running: Endpoints, active_release: Release, tmp_path: Path
) -> None:
    """A gateway starts with those that are there; a release is put onto all of them or none."""
    away = running.model_copy(update={"triton_url": f"ipv4:127.0.0.1:{free_port()},{running.triton_url}"})
    with gateway_process(away, tmp_path) as gateway, closing(GatewayClient(gateway.address)) as client:
        for _ in range(10):
            client.recommend(pb.RecommendRequest(user_id=uuid.uuid4().hex))
        assert "triton away" in gateway.log.read_text()
    with pytest.raises(UnavailableError, match="triton"):
        publish(active_release, away)


def test_the_servers_behind_an_address() -> None:
    assert replicas("ipv4:10.0.0.1:1,10.0.0.2:1") == ["10.0.0.1:1", "10.0.0.2:1"]
    assert replicas("localhost:7451") == ["localhost:7451"]
    with pytest.raises(UnavailableError, match=r"no-such-host\.invalid:7451 .*expected HOST:PORT"):
        replicas("no-such-host.invalid:7451")
