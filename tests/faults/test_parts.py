"""Traps that others have reported of the parts that this is made of, each tried on the real part. `make test-hostile` writes
their rows to benchmarks/results/faults-hostile.json, too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from threading import Event, Thread

import grpc
import pytest
import tritonclient.grpc as triton
from grpc_health.v1 import health_pb2, health_pb2_grpc

from baguni.inference import CHANNEL, LOAD_TIMEOUT_S
from benchmarks.result import Row
from deploy.containers.triton import load_missing
from deploy.local.settings import StackSettings
from tests.faults.streams import Own

pytestmark = [pytest.mark.fault, pytest.mark.timeout(7_200)]
SERVING = health_pb2.HealthCheckResponse.SERVING
OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]
PROBE_S = 5.0
LOAD_S = 200.0  # of an engine that Triton reads over a network
MODEL = "slow_to_load"
CONFIG = f'name: "{MODEL}"\nbackend: "python"\nmax_batch_size: 0\n'
for kind in ("input", "output"):
    CONFIG += f'{kind} [{{ name: "{kind}" data_type: TYPE_INT32 dims: [1] }}]\n'
SLOW_MODEL = f"""
import time

class TritonPythonModel:
    def initialize(self, args):
        time.sleep({LOAD_S})

    def execute(self, requests):
        return []
"""


@pytest.fixture
def own_triton(tmp_path: Path) -> Iterator[Own]:
    own = Own(tmp_path, StackSettings.on_free_ports(tmp_path))
    try:
        own.start("triton")
        yield own
    finally:
        for process in own.running.values():
            process.kill()
            process.wait()


def over_grpc(own: Own) -> None:
    """Load as `baguni release activate` does, and use the channel again."""
    with closing(triton.InferenceServerClient(own.endpoints.triton_url, channel_args=CHANNEL)) as client:
        client.load_model(MODEL, client_timeout=LOAD_TIMEOUT_S)
        client.is_server_live(client_timeout=10)


def over_http(own: Own) -> None:
    """Load as the container does."""
    load_missing([MODEL], f"http://127.0.0.1:{own.settings.triton_http_port}")


@pytest.mark.parametrize("load", [over_grpc, over_http])
def test_a_model_that_loads_for_minutes(
    record: Callable[[Row], None], own_triton: Own, load: Callable[[Own], None]
) -> None:
    """Triton allows a ping every five minutes where nothing is sent, and closes connections that ping more often:
    `too_many_pings`. Meanwhile an orchestrator asks whether it lives, over a connection of its own each time."""
    folder = own_triton.endpoints.triton_repository / MODEL
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(CONFIG)
    (folder / "1" / "model.py").write_text(SLOW_MODEL)
    ended, answered_s = Event(), list[float]()

    def probe() -> None:
        while not ended.wait(0.2):
            started = time.monotonic()
            try:
                with grpc.insecure_channel(own_triton.endpoints.triton_url, options=OWN_CONNECTION) as channel:
                    stub = health_pb2_grpc.HealthStub(channel)
                    is_live = stub.Check(health_pb2.HealthCheckRequest(), timeout=PROBE_S).status == SERVING
            except grpc.RpcError:
                is_live = False
            answered_s.append(time.monotonic() - started if is_live else PROBE_S)

    probing = Thread(target=probe)
    probing.start()
    started, failed = time.monotonic(), ""
    try:
        load(own_triton)
    except Exception as error:
        failed = str(error)
    took_s = time.monotonic() - started
    ended.set()
    probing.join()
    assert took_s >= LOAD_S or failed
    how = load.__name__.replace("_", " ")
    what = f"a model that Triton loads for {LOAD_S:.0f} s, asked for {how}: errors {failed}"
    record(Row(what, int(bool(failed)), "", "0", not failed))
    worst_s = max(answered_s)
    record(Row(f"its probe meanwhile, loaded {how}: the longest answer", worst_s, "s", "≤ 1 s", worst_s <= 1))
