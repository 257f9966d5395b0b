"""Measure the gateway's costs beside those of the servers that it asks, and its behaviour under too much load:

python -m benchmarks.gateway [RUN]      writes benchmarks/results/gateway.json and docs/gateway.png

RUN is a run on Complete Journey. Without one, a run of a few steps is made: its lists are worth nothing and cost the same. Its
release is measured as it is, and with a catalogue grown to LARGE items. Everything runs on this machine, the load included;
ratios are of one run.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import psutil
import redis.asyncio
import uvloop
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_health.v1 import health_pb2, health_pb2_grpc

from baguni.clients.inference import Arrays, InferenceClient, summarise, triton_inputs
from baguni.clients.item_search import AsyncItemIndex
from baguni.domain.signature import EVERYTHING
from baguni.stores.history_store import HistoryReader
from baguni.v1 import recommendation_pb2 as pb
from baguni.v1 import recommendation_pb2_grpc as pb_grpc
from benchmarks.gateway.load import Load, Send, closed_loop, open_loop
from benchmarks.gateway.plots import Curve, plot
from benchmarks.gateway.scene import OwnGateway, Scene, own_gateway, scene, short_run
from benchmarks.result import REPOSITORY, RESULTS, Row, write_result
from server.settings import ServerSettings

PAGE, DEADLINE_S = 20, 2.0
SEQUENTIAL, NEW = 1_000, 400
CONCURRENCY, ROUNDS, SECONDS = 16, 3, 6.0
LARGE = 100_000
SHORT_RUN = Path(".baguni/short-run/run")
SHARES = (0.25, 0.5, 0.75, 0.9)  # of the most, for the picture
KNOWN = 512  # users who come again and again
MEGABYTE = 2**20
MEMORY_MB, MEMORY_LARGE_MB = 200, 300
HALF, CONNECTIONS = 0.5, 8
REFUSALS = (
    "RESOURCE_EXHAUSTED",
    "UNAVAILABLE",
)  # by the gatekeeper, and by the connection, which opens no more streams


class Callers:
    """Callers of the gateway, and of each server that it asks."""

    def __init__(self, stage: Scene, gateway_address: str = "") -> None:
        endpoints = stage.stack.settings.endpoints()
        signature = stage.release.signature
        self._stage, self._now = stage, Timestamp(seconds=stage.now_ms // 1000)
        self._channel = grpc.aio.insecure_channel(gateway_address or endpoints.gateway_address)
        self._stub = pb_grpc.RecommendationServiceStub(self._channel)
        self._health = health_pb2_grpc.HealthStub(self._channel)
        self._redis = redis.asyncio.Redis.from_url(endpoints.redis_url)
        self._histories = HistoryReader(self._redis)
        self._inference = InferenceClient(endpoints.triton_url, stage.release.release_id, signature)
        self._index = AsyncItemIndex(endpoints.milvus_uri, stage.release.release_id, max_vectors=1, num_running=1_000)
        self._vector = np.zeros(signature.vector_dim, np.float32)
        self._inputs: list[Arrays] = []
        self._limit = 0

    async def prepare(self) -> None:
        """Make the vector that is searched for, a user's, and the encoder's inputs of users who are new."""
        users = self._stage.user_ids[KNOWN : KNOWN + NEW]
        self._inputs = [await self._arrays(user_id) for user_id in users]
        outputs = await self._inference.infer("user_encoder", self._inputs[0], 10.0)
        self._vector = outputs["user_embedding"][0, EVERYTHING]
        known = np.mean([(arrays["codes"][0, :, 0] >= 0).sum() for arrays in self._inputs])
        self._limit = ServerSettings().num_retrieved + round(known)

    async def know(self) -> None:
        """Have the gateway remember the users who come again."""
        for number in range(KNOWN):
            await self.recommend(number)

    async def recommend(self, number: int) -> str:
        """Ask for one of the users who come again."""
        return await self._recommend(self._stage.user_ids[number % KNOWN])

    async def recommend_new(self, number: int) -> str:
        """Another user each time: nothing is remembered of them."""
        return await self._recommend(self._stage.user_ids[KNOWN + number])

    async def search(self, number: int) -> str:
        """Search for as many items as the gateway does, one vector a call."""
        await self._index.search_items(self._vector, self._limit, "", 10.0)
        return "OK"

    async def version(self, number: int) -> str:
        """Read the version of a history, as the gateway does for a user that it remembers."""
        await self._histories.read_newer(self._stage.user_ids[number % KNOWN], 1)
        return "OK"

    async def history(self, number: int) -> str:
        """Read a whole history."""
        await self._histories.read([self._stage.user_ids[KNOWN + number]])
        return "OK"

    async def encode(self, number: int) -> str:
        """Ask the bare user encoder."""
        await self._inference.infer("user_encoder", self._inputs[number], 10.0)
        return "OK"

    async def empty(self, number: int) -> str:
        """An RPC that does nothing."""
        await self._health.Check(health_pb2.HealthCheckRequest())
        return "OK"

    async def close(self) -> None:
        """Close every connection."""
        await self._channel.close(None)
        await self._inference.close()
        await self._index.close()
        await self._redis.aclose()

    async def _recommend(self, user_id: str) -> str:
        request = pb.RecommendRequest(user_id=user_id, page_size=PAGE, now=self._now)
        try:
            response = await self._stub.Recommend(request, timeout=DEADLINE_S)
        except grpc.aio.AioRpcError as error:
            return error.code().name
        return "OK" if response.degradation_tier == pb.DEGRADATION_TIER_FULL else "DEGRADED"

    async def _arrays(self, user_id: str) -> Arrays:
        signature, release = self._stage.release.signature, self._stage.release
        events = (await self._histories.read([user_id]))[0].events
        inputs = summarise([events], self._stage.now_ms, release.catalog.index, signature)
        return triton_inputs(inputs, release.semantic_ids.codes_NL, signature)


async def rows(stage: Scene, curves: list[Curve]) -> AsyncIterator[Row]:
    """Measure everything; adds a curve."""
    callers, (gateway,) = Callers(stage), stage.gateway()
    await callers.prepare()
    await callers.know()
    yield await _own_cpu(callers, gateway, callers.version)
    async for row in _new_histories(callers):
        yield row
    alone_ms = 0.0
    async for row in _under_load(stage, callers, curves, f"{len(stage.release.catalog.items):,} items"):
        alone_ms = alone_ms or row.value  # the first is the CPU of a request
        yield row
    large = len(stage.release.catalog.items) >= LARGE
    memory_mb = gateway.memory_info().rss / MEGABYTE
    yield Row.at_most("memory of a gateway process", memory_mb, "MB", MEMORY_LARGE_MB if large else MEMORY_MB)
    yield await _two_processes(stage, callers, alone_ms)
    async for row in _searching_anew(stage, callers):
        yield row
    async for row in _searching_itself(stage, callers):
        yield row
    await callers.close()


async def _searching_anew(stage: Scene, callers: Callers) -> AsyncIterator[Row]:
    """A gateway that remembers users but no lists, as if an item that matters to each list had changed since its last page."""
    with own_gateway(stage.stack, remembered_lists=0, bulk_processes=0) as gateway:
        asking = Callers(stage, gateway.address)
        await asking.know()
        yield await _own_cpu(asking, gateway.processes[0], asking.version, asking.search, how=", searched anew")
        for row in await _at_most_load(stage, asking.recommend, callers.search, gateway.processes, ", searched anew"):
            yield row
        await asking.close()


@asynccontextmanager
async def _connections(stage: Scene, gateway: OwnGateway) -> AsyncIterator[Send]:
    """Open connections to a gateway of several processes. Each belongs to one process, which knows the users who come again."""
    callers = [Callers(stage, gateway.address) for _ in range(CONNECTIONS)]
    for each in callers:
        await each.know()

    async def recommend(number: int) -> str:
        return await callers[number % CONNECTIONS].recommend(number)

    yield recommend
    for each in callers:
        await each.close()


async def _two_processes(stage: Scene, callers: Callers, alone_ms: float) -> Row:
    """Compare what two processes answer, if each has a core, with what one answers. By the CPU of a request, since the load and
    the servers take the cores of this machine."""
    with own_gateway(stage.stack, processes=2, bulk_processes=0) as gateway:
        async with _connections(stage, gateway) as recommend:
            rows = await _at_most_load(stage, recommend, callers.search, gateway.processes)
    what = f"two processes, {CONCURRENCY} in flight: Recommend a second over one's, by the CPU of a request"
    return Row.at_least(what, 2 * alone_ms / rows[0].value, "×", 1.8)


async def _searching_itself(stage: Scene, callers: Callers) -> AsyncIterator[Row]:
    """Two processes that search their own vectors, beside the bare search."""
    with own_gateway(stage.stack, search="exact", processes=2, bulk_processes=0, remembered_lists=0) as gateway:
        async with _connections(stage, gateway) as recommend:
            loads = [await _pair(recommend, callers.search) for _ in range(ROUNDS)]
    served, searched = (
        float(np.median([load.answered_per_s for load in column])) for column in zip(*loads, strict=True)
    )
    what = f"Recommend a second, {CONCURRENCY} in flight, BAGUNI_SEARCH=exact and two processes"
    yield Row.at_least_times(what, served, "/ s", 1.8, ("bare search, one vector a call", searched))


async def _pair(ours: Send, bare: Send) -> tuple[Load, Load]:
    return await closed_loop(ours, CONCURRENCY, SECONDS), await closed_loop(bare, CONCURRENCY, SECONDS)


async def _own_cpu(callers: Callers, gateway: psutil.Process, *calls: Send, how: str = "") -> Row:
    """CPU of the gateway's process for one request at a time, less what the calls that it makes cost in this process."""
    recommend_ms = await _cpu_ms(callers.recommend, gateway)
    empty_ms = await _cpu_ms(callers.empty, gateway)
    called_ms = sum([await _cpu_ms(call, psutil.Process()) for call in calls])
    what = f"gateway's own CPU per Recommend, history unchanged{how}"
    return replace(
        Row.at_most(what, recommend_ms - called_ms, "ms", 1.0), reference="an empty RPC", reference_value=empty_ms
    )


async def _cpu_ms(send: Send, process: psutil.Process) -> float:
    """CPU time of a process per request, one after the other."""
    before = _cpu_s([process])
    for number in range(SEQUENTIAL):
        await send(number)
    return 1e3 * (_cpu_s([process]) - before) / SEQUENTIAL


async def _new_histories(callers: Callers) -> AsyncIterator[Row]:
    """Measure a user of whom nothing is remembered, beside the sum of the calls that are needed."""
    names = {
        "recommend": callers.recommend_new,
        "redis": callers.history,
        "encoder": callers.encode,
        "search": callers.search,
    }
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(NEW):
        for name, send in names.items():
            started = time.perf_counter()
            await send(number)
            seconds[name].append(time.perf_counter() - started)
    median = {name: 1e3 * float(np.median(values)) for name, values in seconds.items()}
    asked = median["redis"] + median["encoder"] + median["search"]
    what = "Recommend, a new history each time (medians)"
    yield Row.at_most_times(what, median["recommend"], "ms", 1.3, ("bare Redis, encoder and search", asked))


async def _under_load(stage: Scene, callers: Callers, curves: list[Curve], title: str) -> AsyncIterator[Row]:
    """CPU and throughput at CONCURRENCY in flight, latency at parts of the most, and what becomes of three times as much."""
    busiest = await _at_most_load(stage, callers.recommend, callers.search, stage.gateway())
    for row in busiest:
        yield row
    served = busiest[-1].value
    curves.append(await _curve(callers, served, title))
    half = [
        (
            await open_loop(callers.recommend, HALF * served, SECONDS),
            await open_loop(callers.search, HALF * served, SECONDS),
        )
        for _ in range(ROUNDS)
    ]
    for percentile, bar in ((50, 1.5), (99, 2.0)):
        own_ms, bare_ms = (
            float(np.median([load.ms(percentile) for load in loads])) for loads in zip(*half, strict=True)
        )
        what = f"Recommend, open loop at half of that: p{percentile}"
        yield Row.at_most_times(what, own_ms, "ms", bar, ("bare search", bare_ms))
    flood = await open_loop(callers.recommend, 3 * served, SECONDS)
    goodput, refused = flood.answered_per_s / served, sum(flood.share(code) for code in REFUSALS)
    lost = abs(round(1 - flood.share("OK") - flood.share("DEGRADED") - refused, 6))
    what = "overload at 3 times that"
    yield Row.at_least(f"{what}: answered in full, of the most", 100 * goodput, "%", 95, ("refused, %", 100 * refused))
    yield Row.at_most(f"{what}: p99 of the answered", flood.ms(99), "ms", 1e3 * DEADLINE_S)
    yield Row.at_most(f"{what}: neither answered nor refused", 100 * lost, "%", 0.05)


async def _at_most_load(
    stage: Scene, recommend: Send, search: Send, gateway: Sequence[psutil.Process], how: str = ""
) -> list[Row]:
    """CPU of the gateway and of Milvus for each request, and requests a second, beside bare searches in the same run."""
    milvus, ours, bare, cpu = stage.milvus(), [], [], []
    for _ in range(ROUNDS):
        before = _cpu_s(gateway), _cpu_s(milvus)
        ours.append(await closed_loop(recommend, CONCURRENCY, SECONDS))
        after = _cpu_s(gateway), _cpu_s(milvus)
        cpu.append([1e3 * (b - a) / len(ours[-1].outcomes) for a, b in zip(before, after, strict=True)])
        bare.append(await closed_loop(search, CONCURRENCY, SECONDS))
    gateway_ms, milvus_ms = np.median(cpu, axis=0).tolist()
    served, searched = (float(np.median([load.answered_per_s for load in loads])) for loads in (ours, bare))
    at = f"{CONCURRENCY} in flight{how}"
    reference = ("bare search, one vector a call", searched)
    return [
        Row.at_most(f"gateway's CPU per Recommend with its clients', history unchanged, {at}", gateway_ms, "ms", 1.3),
        Row.at_most(f"Milvus' CPU per Recommend, {at}", milvus_ms, "ms", 1.5),
        Row.at_least_times(f"Recommend a second, {at}", served, "/ s", 1.25, reference),
    ]


def _cpu_s(processes: Sequence[psutil.Process]) -> float:
    """Return the CPU time that the processes have used."""
    return sum(times.user + times.system for times in (process.cpu_times() for process in processes))


async def _curve(callers: Callers, most: float, title: str) -> Curve:
    """Latency at parts of the most, beside that of the bare search at the same rates."""
    rates = [share * most for share in SHARES]
    recommend = [await open_loop(callers.recommend, rate, SECONDS) for rate in rates]
    search = [await open_loop(callers.search, rate, SECONDS) for rate in rates]
    return Curve(title, rates, recommend, search)


async def measure(run: Path, folder: Path) -> tuple[list[Row], list[Curve]]:
    """All rows, printed as they come, and a curve of each catalogue."""
    found: list[Row] = []
    curves: list[Curve] = []
    for name, num_items in (("", None), (f"{LARGE:,} items: ", LARGE)):
        place = folder / f"items-{num_items}"
        place.mkdir()
        with scene(run, place, num_items=num_items) as stage:
            async for row in rows(stage, curves):
                row = replace(row, what=name + row.what)
                print(row, flush=True)
                found.append(row)
    return found, curves


def main(run: str | None = None) -> None:
    """Measure and write the file."""
    path = Path(run) if run else short_run(SHORT_RUN).path
    with tempfile.TemporaryDirectory() as folder:
        found, curves = uvloop.run(measure(path, Path(folder)))
    write_result(RESULTS / "gateway.json", "gateway", "make bench-gateway", found)
    plot(curves, REPOSITORY / "docs" / "gateway.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
