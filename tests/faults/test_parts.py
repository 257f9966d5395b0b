"""Traps that others have reported of the parts that this is made of, each tried on the real part. `make test-hostile` writes
their rows to benchmarks/results/faults-hostile.json, too.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread

import grpc
import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton
from grpc_health.v1 import health_pb2, health_pb2_grpc

from baguni.clients.inference import CHANNEL, LOAD_TIMEOUT_S, SyncInferenceClient, summarise, triton_inputs
from baguni.clients.item_index import IndexedItem, ItemIndex
from baguni.clients.item_search import AsyncItemIndex
from baguni.domain.catalog import Catalog, Item
from baguni.domain.history import Action, HistoryEvent
from baguni.domain.release import Release, write_manifest
from baguni.settings import Endpoints
from baguni.v1 import recommendation_pb2 as pb
from baguni.v1 import recommendation_pb2_grpc as pb_grpc
from benchmarks.result import Row
from deploy.containers.triton import load_missing
from deploy.local.settings import StackSettings, free_port
from deploy.local.stack import LocalStack
from tests.conftest import repository
from tests.faults.load import NOW_MS
from tests.faults.memory import MB, listening, memory_mb
from tests.faults.proxy import Proxy
from tests.faults.streams import Own
from tests.faults.test_server_faults import Broker
from tests.gateway_process import gateway_process
from tests.waiting import eventually

pytestmark = [pytest.mark.fault, pytest.mark.timeout(7_200)]
SERVING = health_pb2.HealthCheckResponse.SERVING
OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]
PROBE_S = 5.0
SENT = 'baguni_exposures_total{outcome="sent"}'
SHAPE_PASSES, CALLS, CANCEL_ROUNDS, AT_ONCE, AWAY_S, MILVUS_RESTARTS = 4, 1_000_000, 100, 50, 600.0, 100
BARE_CALLS = 200_000
CHANGING_ITEMS, CHANGING_DIM, CHANGES_A_S, CHANGING_S = 100_000, 64, 50, 3_600
IDLE_S = 200.0  # gRPC pings ever more rarely, and a server ends a connection after the third
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
    record(Row.at_most(what, int(bool(failed)), "", 0))
    record(Row.at_most(f"its probe meanwhile, loaded {how}: the longest answer", max(answered_s), "s", 1))


def test_a_client_of_milvus_that_is_idle(
    record: Callable[[Row], None], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The embedded Milvus has gRPC's usual limits for pings; the standalone one allows more."""
    folder, uri = tmp_path / "r", str(tmp_path / "milvus.db")
    folder.mkdir()
    Catalog([Item("a", "title")], {}).save(folder / "catalog.parquet")
    np.save(folder / "item_vectors.npy", np.ones((1, 8), np.float32))
    np.save(folder / "content_vectors.npy", np.ones((1, 8), np.float32))
    release = write_manifest(folder, {"release_id": "r_idle"})
    with closing(ItemIndex(uri, release.release_id, release.catalog)) as index, asyncio.Runner() as runner:
        index.fill(release)
        searching = AsyncItemIndex(uri, release.release_id)
        runner.run(searching.search_items(np.ones(8, np.float32), 1, "", timeout_s=30.0))
        runner.run(asyncio.sleep(IDLE_S))
        runner.run(searching.close())
    ended = capfd.readouterr().err.count("too_many_pings")
    record(Row.at_most(f"clients of Milvus, idle for {IDLE_S:.0f} s: connections ended for pings", ended, "", 0))


def test_memory_of_every_shape(
    record: Callable[[Row], None], local_stack: LocalStack, stack: Endpoints, active_release: Release
) -> None:
    """ONNX Runtime plans memory for each shape that it sees: after all of them, nothing grows."""
    rng = np.random.default_rng(0)
    signature = active_release.signature
    seen: list[float] = []
    with closing(SyncInferenceClient(stack.triton_url, active_release.release_id, signature)) as inference:
        for _ in range(SHAPE_PASSES):
            for bucket, batch in itertools.product(signature.buckets, range(1, signature.max_batch_size + 1)):
                histories = [_history(rng, active_release, bucket) for _ in range(batch)]
                inputs = summarise(histories, NOW_MS, active_release.catalog.index, signature)
                arrays = triton_inputs(inputs, active_release.semantic_ids.codes_NL, signature)
                inference.infer("user_encoder", arrays, 60.0)
                node_mask = np.ones((batch, 1), np.bool_)  # every item
                inference.infer("generator", {**arrays, "node_mask": node_mask}, 60.0)
            seen.append(memory_mb(listening(local_stack.settings.triton_port)))
    second, last = seen[1], seen[-1]
    what = f"every bucket and batch size, {SHAPE_PASSES} times: MB of Triton's memory at the end"
    record(Row.at_most_times(what, last, "MB", 1.02, ("after the second time", second)))


async def test_calls_that_are_cancelled(
    record: Callable[[Row], None], stack: Endpoints, active_release: Release, tmp_path: Path
) -> None:
    """As clients do that hedge: half of the calls are cancelled at any moment."""
    rng = random.Random(4)
    with gateway_process(stack, tmp_path, max_in_flight=64, max_lag_s=10) as gateway:
        async with grpc.aio.insecure_channel(gateway.address) as channel:
            stub = pb_grpc.RecommendationServiceStub(channel)

            def start() -> grpc.aio.UnaryUnaryCall:
                return stub.Recommend(pb.RecommendRequest(user_id=f"u{rng.randrange(100)}", page_size=3), timeout=30)

            first, last = await memory_beside(start, gateway.process, CALLS, rng)
    what = f"{CALLS:,} calls, half of them cancelled: MB of the gateway's memory in the last fifth, median"
    record(Row.at_most_times(what, last, "MB", 1.05, ("in the second fifth", first)))
    record(Row.reported("the same: bytes that stay of each call", bytes_a_call(first, last, CALLS), "B"))


async def test_calls_that_are_cancelled_by_a_server_with_nothing_of_ours(record: Callable[[Row], None]) -> None:
    """grpc.aio keeps the operations of a batch that fails, as of an answer whose call was cancelled (grpc/grpc#43360)."""
    rng = random.Random(4)
    server = psutil.Popen([sys.executable, "-m", "tests.faults.bare_server"], cwd=repository(), stdout=subprocess.PIPE)
    try:
        port = int(server.stdout.readline())
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            method = channel.unary_unary("/any/Method")
            first, last = await memory_beside(lambda: method(b"request", timeout=30), server, BARE_CALLS, rng)
    finally:
        server.kill()
        server.wait()
    what = f"a gRPC server with nothing of ours, {BARE_CALLS:,} calls, half of them cancelled: bytes that stay of each call"
    record(Row.reported(what, bytes_a_call(first, last, BARE_CALLS), "B"))


async def memory_beside(
    start: Callable[[], grpc.aio.UnaryUnaryCall], server: psutil.Process, calls: int, rng: random.Random
) -> tuple[float, float]:
    """Make calls, half of which are cancelled within 4 ms. Return the median of the server's memory in the second and in the
    last fifth, in MB: memory rises and falls with the garbage collector's rounds."""

    async def call() -> None:
        answered = start()
        if rng.random() < 0.5:
            await asyncio.sleep(rng.random() * 0.004)
            answered.cancel()
        with suppress(grpc.RpcError, asyncio.CancelledError):
            await answered

    used: list[float] = []
    for _ in range(CANCEL_ROUNDS):
        for _ in range(calls // CANCEL_ROUNDS // AT_ONCE):
            await asyncio.gather(*(call() for _ in range(AT_ONCE)))
        used.append(memory_mb(server))
    fifth = CANCEL_ROUNDS // 5
    return float(np.median(used[fifth : 2 * fifth])), float(np.median(used[-fifth:]))


def bytes_a_call(first_mb: float, last_mb: float, calls: int) -> float:
    """Return the growth for each call between the middles of the second and of the last fifth."""
    return (last_mb - first_mb) * MB / (0.6 * calls)


def test_a_broker_that_is_away_for_minutes(
    record: Callable[[Row], None], local_stack: LocalStack, active_release: Release, tmp_path: Path
) -> None:
    """Exposures are sent again without a restart."""
    port = free_port()
    proxy = Proxy(port)
    broker = Broker(local_stack, port, proxy.port)
    endpoints = local_stack.settings.endpoints().model_copy(update={"kafka_bootstrap": f"127.0.0.1:{proxy.port}"})
    failed = 0
    try:
        with gateway_process(endpoints, tmp_path) as gateway, grpc.insecure_channel(gateway.address) as channel:
            stub = pb_grpc.RecommendationServiceStub(channel)

            def sent() -> float:
                lines = gateway.get("/metrics")[1].splitlines()
                return sum(float(line.split()[-1]) for line in lines if line.startswith(SENT))

            def ask() -> bool:
                nonlocal failed
                try:
                    stub.Recommend(pb.RecommendRequest(user_id="u1", page_size=3), timeout=30)
                except grpc.RpcError:
                    failed += 1
                return True

            eventually(lambda: ask() and sent() > 0, "exposures are sent")
            proxy.refuse()
            until = time.monotonic() + AWAY_S
            while time.monotonic() < until:
                ask()
                time.sleep(0.5)
            before, started = sent(), time.monotonic()
            proxy.accept()
            eventually(lambda: ask() and sent() > before, "exposures are sent again")
            again_s = time.monotonic() - started
    finally:
        proxy.close()
        broker.process.kill()
    what = f"a broker that is away for {AWAY_S:.0f} s"
    record(Row.at_most(f"{what}: pages that failed", failed, "", 0))
    record(Row.at_most(f"{what}: exposures are sent again after", again_s, "s", 60))


def test_milvus_starts_again_and_again(
    record: Callable[[Row], None],
    local_stack: LocalStack,
    active_release: Release,
    users: tuple[str, ...],
    tmp_path: Path,
) -> None:
    """A page comes whatever Milvus does, and nothing but our own errors is in the log."""
    codes: Counter[str] = Counter()
    stopping = Event()
    with gateway_process(local_stack.settings.endpoints(), tmp_path, remembered_lists=0) as gateway:

        def ask(number: int) -> None:
            with grpc.insecure_channel(gateway.address, options=OWN_CONNECTION) as channel:
                stub = pb_grpc.RecommendationServiceStub(channel)
                while not stopping.is_set():
                    try:
                        stub.Recommend(pb.RecommendRequest(user_id=users[number], page_size=5), timeout=30)
                        codes["OK"] += 1
                    except grpc.RpcError as error:
                        codes[error.code().name] += 1
                    time.sleep(0.01)

        askers = [Thread(target=ask, args=(number,)) for number in range(4)]
        for asker in askers:
            asker.start()
        for _ in range(MILVUS_RESTARTS):
            local_stack.restart("milvus")
        stopping.set()
        for asker in askers:
            asker.join()
        foreign = gateway.log.read_text().count("Traceback")
    wrong = codes["INTERNAL"] + codes["UNKNOWN"]
    what = f"Milvus started again {MILVUS_RESTARTS} times under load ({dict(codes)})"
    record(Row.at_most(f"{what}: INTERNAL or UNKNOWN", wrong, "", 0))
    record(Row.at_most(f"{what}: errors in the log that are not ours", foreign, "", 0))


def test_items_that_change_all_the_time(record: Callable[[Row], None], local_stack: LocalStack, tmp_path: Path) -> None:
    """Prices and stock of a large shop: fifty items a second, for an hour. What a search takes, what it finds and what Milvus
    needs stays as it was in the first tenth."""
    rng = np.random.default_rng(0)
    items = [Item(f"i{number}", "title", attributes={"price": 1.0}) for number in range(CHANGING_ITEMS)]
    vectors = rng.standard_normal((len(items), CHANGING_DIM)).astype(np.float32)
    content = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    folder = tmp_path / "r"
    folder.mkdir()
    Catalog(items, {"price": "number"}).save(folder / "catalog.parquet")
    np.save(folder / "item_vectors.npy", vectors)
    np.save(folder / "content_vectors.npy", content)
    release = write_manifest(folder, {"release_id": "r_changing"})
    uri = local_stack.settings.endpoints().milvus_uri
    index, searching = ItemIndex(uri, release.release_id, release.catalog), AsyncItemIndex(uri, release.release_id)
    index.fill(release)
    took_ms: list[float] = []
    recalls: list[float] = []
    used_mb: list[float] = []
    with asyncio.Runner() as runner:

        def search(query_D: np.ndarray, limit: int) -> np.ndarray:
            started = time.monotonic()
            found = runner.run(searching.search_items(query_D, limit, "", timeout_s=30.0)).key_I
            took_ms.append(1000 * (time.monotonic() - started))
            return found

        started = time.monotonic()
        for second in range(CHANGING_S):
            chosen = rng.integers(0, len(items), CHANGES_A_S)
            changed = [
                IndexedItem(replace(items[n], attributes={"price": float(second)}), vectors[n], content[n])
                for n in sorted(set(chosen.tolist()))
            ]
            index.upsert(changed)
            for _ in range(4):
                search(rng.standard_normal(CHANGING_DIM).astype(np.float32), 100)
            if second % (CHANGING_S // 10) == CHANGING_S // 10 - 1:
                recalls.append(float(np.mean([_recall(search, vectors, rng) for _ in range(20)])))
                used_mb.append(memory_mb(listening(local_stack.settings.milvus_port)))
            time.sleep(max(started + second + 1 - time.monotonic(), 0))
        runner.run(searching.close())
    index.drop()
    index.close()
    tenth = len(took_ms) // 10
    first_ms, last_ms = (float(np.percentile(some, 99)) for some in (took_ms[:tenth], took_ms[-tenth:]))
    what = f"{CHANGES_A_S} changes a second for {CHANGING_S // 60} min, {CHANGING_ITEMS:,} items"
    record(Row.at_most_times(f"{what}: p99 of a search in the last tenth", last_ms, "ms", 1.5, ("first", first_ms)))
    recall = min(recalls)
    record(Row.at_least_times(f"{what}: recall@100, the least", recall, "", 0.99, ("first", recalls[0])))
    most = max(used_mb)
    record(Row.at_most_times(f"{what}: MB of Milvus' memory, the most", most, "MB", 1.25, ("first", used_mb[0])))


def _recall(search: Callable[[np.ndarray, int], np.ndarray], vectors: np.ndarray, rng: np.random.Generator) -> float:
    """Return the share of the hundred nearest that a search finds."""
    query_D = rng.standard_normal(vectors.shape[1]).astype(np.float32)
    nearest = np.argpartition(-(vectors @ query_D), 100)[:100]
    return len(np.intersect1d(nearest, search(query_D, 100))) / 100


def _history(rng: np.random.Generator, release: Release, tokens: int) -> list[HistoryEvent]:
    """Clicks of many items: as long as a bucket."""
    items = release.catalog.items
    chosen = rng.integers(0, len(items), tokens)
    return [HistoryEvent(items[n].item_id, Action.CLICKED, NOW_MS - 1_000 * (tokens - k)) for k, n in enumerate(chosen)]
