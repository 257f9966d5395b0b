"""Servers that die, hang, answer late or cannot be reached, while pages are asked for: a page comes in time, or a refusal."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import psutil
import pytest
from kafka import KafkaAdminClient
from kafka.admin import NewTopic
from kafka.errors import KafkaError

from baguni.domain.events import EXPOSURE_TOPIC
from baguni.domain.release import Release
from benchmarks.result import Row
from deploy.local.programs import servers
from deploy.local.settings import free_port
from deploy.local.stack import LocalStack
from tests.faults.load import SHED, PageViews, page_views
from tests.faults.proxy import Proxy, proxied
from tests.gateway_process import GatewayProcess, gateway_process

pytestmark = [pytest.mark.stack, pytest.mark.fault]
ADDRESSES = {
    "triton": "triton_url",
    "milvus": "milvus_uri",
    "redis": "redis_url",
    "broker": "kafka_bootstrap",
}  # server → the setting that says where it is
FAULTS = {"kill": "kill -9", "pause": "SIGSTOP", "slow": "+500 ms", "refuse": "connections refused"}
SEEN_S, BEFORE_S, FAULT_S, RECOVERED_S = 10.0, 2.0, 5.0, 5.0
SLOW_S = 0.5
# What a page may be while a server is away; a broker that is away is no reason for anything.
TIERS = {
    "triton": {"FULL", "RETRIEVAL_ORDER", "CACHED_EMBEDDING", "POPULAR"},
    "milvus": {"FULL"},
    "redis": {"FULL", "CACHED_EMBEDDING", "POPULAR"},
    "broker": {"FULL"},
}


class Broker:
    """One of our own: brokers tell clients where to find them, and this one says where the proxy is."""

    def __init__(self, stack: LocalStack, port: int, proxy_port: int) -> None:
        (program,) = (program for program in servers(stack.settings) if program.name == "broker")
        binary, *_, engine = program.command
        listener, advertised = (f"tcp://127.0.0.1:{number}" for number in (port, proxy_port))
        self._command = [
            *(binary, "--listener-url", listener, "--advertised-listener-url", advertised),
            *("--storage-engine", engine),
        ]
        self._address = f"127.0.0.1:{port}"
        self.start()

    def start(self) -> None:
        """Start it with the gateway's topic."""
        self.process = psutil.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while not self._has_topic():
            assert time.monotonic() < deadline, "the broker did not start"
            time.sleep(0.1)

    def _has_topic(self) -> bool:
        try:
            client = KafkaAdminClient(bootstrap_servers=self._address)
        except (KafkaError, OSError):
            return False
        try:
            client.create_topics([NewTopic(EXPOSURE_TOPIC, num_partitions=1, replication_factor=1)])
        except KafkaError:
            return False
        finally:
            client.close()
        return True


class Servers:
    """What can be done to the real servers, and to the way to them."""

    def __init__(self, stack: LocalStack, proxies: dict[str, Proxy], broker: Broker) -> None:
        self._stack, self._proxies, self._broker = stack, proxies, broker

    def kill(self, name: str) -> None:
        """kill -9; the supervisor starts it again. Returns when it is ready."""
        for process in self._processes(name):
            process.kill()
        if name == "broker":
            self._broker.start()
            return
        (program,) = (program for program in servers(self._stack.settings) if program.name == name)
        deadline = time.monotonic() + 180
        while not program.is_ready():
            assert time.monotonic() < deadline, f"{name} did not come back"
            time.sleep(0.05)

    def pause(self, name: str) -> None:
        """SIGSTOP for FAULT_S."""
        paused = self._processes(name)
        for process in paused:
            process.send_signal(signal.SIGSTOP)
        time.sleep(FAULT_S)
        for process in paused:
            process.send_signal(signal.SIGCONT)

    def slow(self, name: str) -> None:
        """Every answer comes SLOW_S later, for FAULT_S."""
        self._proxies[name].delay_s = SLOW_S
        time.sleep(FAULT_S)
        self._proxies[name].delay_s = 0.0

    def refuse(self, name: str) -> None:
        """Connections break and are refused, for FAULT_S."""
        self._proxies[name].refuse()
        time.sleep(FAULT_S)
        self._proxies[name].accept()

    def _processes(self, name: str) -> list[psutil.Process]:
        """The server itself, without the launcher that waits for it."""
        if name == "broker":
            return [self._broker.process]
        launched = psutil.Process(next(row.pid for row in self._stack.status() if row.name == name))
        return launched.children(recursive=True) if name == "milvus" else [launched]


@pytest.fixture(scope="module")
def behind_proxies(
    local_stack: LocalStack, active_release: Release, users: object, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[GatewayProcess, Servers]]:
    """A gateway that reaches every server through a proxy. Embeddings are good for a second, so that models are asked."""
    endpoints = local_stack.settings.endpoints()
    proxies: dict[str, Proxy] = {}
    addresses: dict[str, str] = {}
    with ExitStack() as opened:
        broker_port = free_port()
        asked = endpoints.model_copy(update={"kafka_bootstrap": f"127.0.0.1:{broker_port}"})
        for server, setting in ADDRESSES.items():
            proxies[server], addresses[setting] = opened.enter_context(proxied(getattr(asked, setting)))
        broker = Broker(local_stack, broker_port, proxies["broker"].port)
        opened.callback(lambda: broker.process.kill())
        through = endpoints.model_copy(update=addresses)
        folder = tmp_path_factory.mktemp("gateway")
        gateway = opened.enter_context(gateway_process(through, folder, embedding_age_s=1.0, remembered_lists=0))
        yield gateway, Servers(local_stack, proxies, broker)


@pytest.mark.parametrize("fault", list(FAULTS))
@pytest.mark.parametrize("server", list(ADDRESSES))
def test_pages_come_while_a_server_is_away_and_are_full_soon_after(
    behind_proxies: tuple[GatewayProcess, Servers], record: Callable[[Row], None], server: str, fault: str
) -> None:
    gateway, faults = behind_proxies
    times: list[float] = []

    def meanwhile() -> None:
        time.sleep(BEFORE_S)
        times.append(time.monotonic())
        getattr(faults, fault)(server)
        times.append(time.monotonic())

    asyncio.run(page_views(gateway.address, SEEN_S))  # whom the gateway has seen
    views = asyncio.run(page_views(gateway.address, 2 * RECOVERED_S, meanwhile))
    began, recovered = times
    during = views.between(began, recovered)
    full_after_s = max(max((view.due for view in views.not_full), default=0.0) - recovered, 0.0)
    tiers = {name.removeprefix("DEGRADATION_TIER_") for name in during.outcomes} - {SHED}
    row = _row(server, fault, views, during, full_after_s)
    print(
        row, [(view.outcome, view.due - recovered) for view in views.not_full if view.due > recovered], file=sys.stderr
    )
    record(row)
    assert tiers <= TIERS[server]
    assert not [view for view in views.not_full if view.due + view.took_s < began]


def _row(server: str, fault: str, views: PageViews, during: PageViews, full_after_s: float) -> Row:
    failed = views.failed.total()
    return Row(
        f"{server}, {FAULTS[fault]}: pages that failed of {len(views.views)} "
        f"(meanwhile {during.in_words()}; p99 {during.p99_ms:.0f} ms)",
        failed,
        "",
        "0, and full service within 5 s of recovery",
        failed == 0 and full_after_s <= RECOVERED_S,
        "full service after, s",
        full_after_s,
    )
