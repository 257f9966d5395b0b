"""The gateway itself: a process killed, a thousand switches, damaged releases, and a hundred thousand hostile requests."""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import grpc
import psutil
import pytest
import redis

from baguni.domain.catalog import Catalog
from baguni.domain.history import Action, HistoryEvent
from baguni.domain.release import POINTER, Release, ReleaseStore
from baguni.releases.activation import activate
from baguni.settings import Endpoints
from baguni.stores.history_store import HistoryWriter
from baguni.v1 import recommendation_pb2 as pb
from baguni.v1 import recommendation_pb2_grpc as pb_grpc
from benchmarks.result import Row
from tests.faults.fuzz import Fuzzer
from tests.faults.load import NOW_MS, OWN_CONNECTION, SHED, USERS, page_views
from tests.gateway_process import GatewayProcess, gateway_process
from tests.tiny_release import renamed

pytestmark = [pytest.mark.stack, pytest.mark.fault]
SWITCHES = 1_000
REQUESTS, CONNECTIONS, SETTLED = 100_000, 2_000, 30_000
AT_A_TIME = 12
REFUSALS = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "UNIMPLEMENTED"}
MAX_GROWTH = 1.05
MEGABYTE = 2**20


def test_a_killed_process_fails_only_what_it_had_begun(
    stack: Endpoints, active_release: Release, users: object, tmp_path: Path, record: Callable[[Row], None]
) -> None:
    killed_at: list[float] = []
    with gateway_process(stack, tmp_path, processes=2) as gateway:
        asyncio.run(page_views(gateway.address, 5.0, connections=8))

        def meanwhile() -> None:
            time.sleep(2.0)
            killed_at.append(time.monotonic())
            gateway.workers()["online-0"].kill()

        views = asyncio.run(page_views(gateway.address, 5.0, meanwhile, connections=8))
    failed = [view for view in views.views if view.outcome == "UNAVAILABLE"]
    begun = [view for view in failed if view.due <= killed_at[0] + 0.05 <= view.due + view.took_s + 0.1]
    record(
        Row.at_most(
            f"gateway process, kill -9: pages that failed of {len(views.views)}, without those it had begun",
            abs(views.failed.total() - len(begun)),
            "",
            0,
            ("it had begun", len(begun)),
        )
    )


def twin(release: Release, target: Path, release_id: str) -> Release:
    """The same models over items that are all called otherwise: a list tells which release it is of."""
    items = [replace(item, item_id=f"twin-{item.item_id}") for item in release.catalog.items]
    catalog = Catalog(items, release.catalog.attribute_types)
    return renamed(release, target, release_id, lambda path: catalog.save(path / "catalog.parquet"))


@pytest.mark.timeout(900)
def test_a_thousand_switches_under_load_fail_and_mix_nothing(
    stack: Endpoints,
    active_release: Release,
    users: object,
    tmp_path: Path,
    record: Callable[[Row], None],
) -> None:
    store = ReleaseStore(stack.releases)
    other = store.add(twin(active_release, tmp_path / "twin", "r20990201_0000beef").path)
    _order_in_both(stack, active_release)
    activate(store, other.release_id, stack)
    activate(store, active_release.release_id, stack)
    took: list[float] = []

    def switch_all() -> None:
        wanted = itertools.cycle((other.release_id, active_release.release_id))
        with grpc.insecure_channel(gateway.address, options=OWN_CONNECTION) as channel:
            stub = pb_grpc.RecommendationServiceStub(channel)
            for release_id in itertools.islice(wanted, SWITCHES):
                store.point_to(release_id)
                started = time.monotonic()
                while stub.Recommend(pb.RecommendRequest(user_id="nobody"), timeout=5).release_id != release_id:
                    assert time.monotonic() < started + 10, f"{release_id} was never served"
                    time.sleep(0.01)
                took.append(time.monotonic() - started)

    with gateway_process(stack, tmp_path, pointer_check_s=0.02, embedding_age_s=1.0) as gateway:
        asyncio.run(page_views(gateway.address, 5.0))
        (worker,) = (process for name, process in gateway.workers().items() if name == "online-0")
        before = worker.memory_info().rss
        views = asyncio.run(page_views(gateway.address, 1.0, switch_all))
        grown = (worker.memory_info().rss - before) / MEGABYTE
    mixed = sum(
        {item_id.startswith("twin-") for item_id in view.item_ids} != {view.release_id == other.release_id}
        for view in views.views
        if view.release_id
    )
    assert len(took) == SWITCHES
    switched = sum(one.release_id != two.release_id for one, two in itertools.pairwise(views.views))
    assert switched > SWITCHES / 4, "the load saw hardly any switch"
    failed = views.failed.total()
    record(
        Row.at_most(
            f"{SWITCHES:,} release switches under load: pages that failed or mixed releases of {len(views.views):,} "
            f"({views.in_words()}; the process grew by {grown:.0f} MB)",
            failed + mixed,
            "",
            0,
            ("a switch took (median), ms", 1e3 * sorted(took)[len(took) // 2]),
        )
    )


def _order_in_both(stack: Endpoints, release: Release) -> None:
    items = [item.item_id for item in release.catalog.items]
    with redis.Redis.from_url(stack.redis_url) as client:
        HistoryWriter(client).apply(
            {
                user_id: [
                    HistoryEvent(f"twin-{items[number % len(items)]}", Action.ORDERED, NOW_MS - 86_400_000, "twin")
                ]
                for number, user_id in enumerate(USERS)
            }
        )


def test_a_damaged_release_is_refused_and_the_old_one_keeps_serving(
    stack: Endpoints, active_release: Release, users: object, tmp_path: Path, record: Callable[[Row], None]
) -> None:
    store = ReleaseStore(stack.releases)
    good = (store.root / POINTER).read_text()
    victim = store.add(twin(active_release, tmp_path / "victim", "r20990202_0000dead").path)
    truncated, manifest = victim.path / "item_vectors.npy", victim.path / "manifest.json"
    damages: dict[str, Callable[[], object]] = {
        "a truncated part": lambda: truncated.write_bytes(truncated.read_bytes()[:1_000]),
        "a manifest cut off": lambda: manifest.write_text(manifest.read_text()[:100]),
        "a manifest of nothing": lambda: manifest.write_text("[]"),
        "no manifest": manifest.unlink,
    }
    pointers = {
        "a pointer cut off": good[:10],
        "an empty pointer": "",
        "a pointer to nothing": json.dumps({"release_id": "r_none", "history": []}),
        "a pointer out of the store": json.dumps({"release_id": "../../etc", "history": []}),
    }

    def meanwhile() -> None:
        to_victim = json.dumps({"release_id": victim.release_id, "history": []})
        for damage in damages.values():
            damage()
            (store.root / POINTER).write_text(to_victim)
            time.sleep(1.5)
        for pointer in pointers.values():
            (store.root / POINTER).write_text(pointer)
            time.sleep(1.5)

    try:
        with gateway_process(stack, tmp_path, pointer_check_s=0.1) as gateway:
            asyncio.run(page_views(gateway.address, 3.0))
            views = asyncio.run(page_views(gateway.address, 0.5, meanwhile))
            log = gateway.log.read_text()
            (store.root / POINTER).write_text(good)
            after = asyncio.run(page_views(gateway.address, 1.0))
    finally:
        (store.root / POINTER).write_text(good)
        shutil.rmtree(victim.path)
    assert log.count("release refused") >= len(damages) + len(pointers) - 1, log
    served = Counter(view.release_id for view in (*views.views, *after.views))
    others = sum(count for release_id, count in served.items() if release_id != active_release.release_id)
    record(
        Row.at_most(
            f"damaged releases ({', '.join([*damages, *pointers])}): pages of {len(views.views)} that failed or were of them",
            others,
            "",
            0,
        )
    )


@pytest.mark.timeout(1_800)
def test_a_hundred_thousand_hostile_requests_change_nothing(
    stack: Endpoints, active_release: Release, users: object, tmp_path: Path, record: Callable[[Row], None]
) -> None:
    ids = [item.item_id for item in active_release.catalog.items][:30] + list(USERS[:30])
    fuzzer = Fuzzer(20_261_125, ids)
    memory: list[int] = []
    with gateway_process(stack, tmp_path, remembered_users=64) as gateway:
        before = {name: process.pid for name, process in gateway.workers().items()}
        wire = threading.Thread(target=_bytes_on_the_wire, args=(gateway, Fuzzer(1, ids)))
        wire.start()
        outcomes = asyncio.run(_send(gateway, fuzzer, memory))
        wire.join()
        gateway.wait_until_ready()
        assert {name: process.pid for name, process in gateway.workers().items()} == before
        after = asyncio.run(page_views(gateway.address, 2.0))
        log = gateway.log.read_text()
    assert set(after.outcomes) == {"DEGRADATION_TIER_FULL"}
    assert "Traceback" not in log, log[-3_000:]
    assert outcomes["OK"] > REQUESTS / 50, "hardly any request went all the way"
    assert outcomes[SHED] < REQUESTS / 200
    bad = sum(count for outcome, count in outcomes.items() if outcome not in REFUSALS | {SHED})
    growth = memory[-1] / memory[0]
    record(
        Row(
            f"{REQUESTS:,} hostile requests and {CONNECTIONS:,} connections of noise: answers that are neither a result nor "
            f"the request's own fault ({', '.join(f'{count:,} {name}' for name, count in outcomes.most_common())})",
            bad,
            "",
            "0, no crash, memory flat",
            bad == 0 and growth <= MAX_GROWTH,
            f"memory at the end over that after {SETTLED:,}",
            growth,
        )
    )


async def _send(gateway: GatewayProcess, fuzzer: Fuzzer, memory: list[int]) -> Counter[str]:
    """What became of REQUESTS requests; the process's memory once it has settled, and at the end."""
    outcomes: Counter[str] = Counter()
    worker = gateway.workers()["online-0"]
    requests = itertools.islice(fuzzer.requests(), REQUESTS)
    async with grpc.aio.insecure_channel(gateway.address, options=OWN_CONNECTION) as channel:

        async def ask() -> None:
            for path, body in requests:
                call = channel.unary_unary(path)
                try:
                    await call(body, timeout=30)
                    outcome = "OK"
                except grpc.aio.AioRpcError as error:
                    outcome = error.code().name
                    if outcome == SHED and "too many requests" not in str(error.details()):
                        outcome = f"{SHED}, not by the gate"
                    if outcome not in REFUSALS:
                        print(path, error.code(), error.details(), body.hex())
                outcomes[outcome] += 1
                if outcomes.total() == SETTLED:
                    memory.append(_memory(worker))

        await asyncio.gather(*(ask() for _ in range(AT_A_TIME)))
    memory.append(_memory(worker))
    return outcomes


def _memory(process: psutil.Process) -> int:
    return int(process.memory_info().rss)


def _bytes_on_the_wire(gateway: GatewayProcess, fuzzer: Fuzzer) -> None:
    host, port = gateway.address.split(":")
    for _ in range(CONNECTIONS):
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            connection.sendall(fuzzer.bytes())
        time.sleep(0.01)
