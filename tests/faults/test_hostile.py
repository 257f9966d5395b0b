"""Hostile input by the hundred thousand, built past checksums and parsers: tokens, requests, records, features, manifests.
Nothing crashes, nothing is INTERNAL, nothing blocks. `make test-hostile` writes benchmarks/results/faults-hostile.json.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import confluent_kafka
import grpc
import pytest
import redis
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc

from baguni.domain.errors import InvalidInputError, ReleaseMismatchError
from baguni.domain.events import USER_TOPICS, cloud_event_headers
from baguni.domain.exposure_token import KIND as EXPOSURE
from baguni.domain.exposure_token import Exposure
from baguni.domain.history import Action, HistoryEvent
from baguni.domain.release import MANIFEST, load_release
from baguni.stores.history_store import HistoryWriter
from baguni.v1 import events_pb2
from baguni.v1 import recommendation_pb2 as pb
from baguni.v1 import recommendation_pb2_grpc as pb_grpc
from benchmarks.result import Row
from crm.state import CampaignState
from deploy.local.braze_process import KEY, braze_process
from deploy.local.settings import free_port
from server.edge.page_token import KIND as PAGE
from server.edge.page_token import PageToken
from server.experiments.choices import KNOBS, parse
from server.settings import ServerSettings
from server.worker import Worker
from tests.faults.fuzz import HOSTILE, Fuzzer
from tests.faults.proxy import Proxy
from tests.faults.streams import Consumers, Own, compare, expected, own_servers, sender, shop_events, shuffled, wait
from tests.gateway_process import environment, gateway_process
from tests.integration.streams import click, timestamp
from tests.integration.test_gateway import LARGE
from tests.signing import SIGNER, sign

pytestmark = [pytest.mark.fault, pytest.mark.timeout(1_800)]
TIME_MS = 1_700_000_000_000
TOKENS, REQUESTS, RECORDS, PAYLOADS, MANIFESTS = 100_000, 100_000, 200_000, 5_000, 5_000
BATCH = 500
FAILOVERS, FAILOVER_EVENTS = 8, 100_000
NECESSARY = ("releases", "items", "loop")
BRAZE_USERS, BRAZE_KILLS, BRAZE_ERRORS, MOST_RUNS = 100_000, 20, 0.03, 400


class Shapes:
    """Values of any shape, as JSON has them."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def value(self, depth: int = 3) -> Any:
        """One of them."""
        chance = self._random
        kind = chance.randrange(9 if depth else 7)
        if kind == 7:
            return [self.value(depth - 1) for _ in range(chance.randrange(4))]
        if kind == 8:
            return {chance.choice(HOSTILE): self.value(depth - 1) for _ in range(chance.randrange(4))}
        numbers = (0, 1, -3, 2**31, 2**63, 10**300, 0.5, float("inf"), float("nan"))
        simple = (None, True, False, chance.choice(numbers), chance.choice(HOSTILE), "\ud800", "x" * 70)
        return simple[kind]

    def changed(self, fields: dict[str, Any]) -> dict[str, Any]:
        """The fields with some of another shape, some missing and some more."""
        found = dict(fields)
        for name in self._random.sample(sorted(fields), self._random.randrange(1, len(fields) + 1)):
            found[name] = self.value()
            if self._random.random() < 0.1:
                del found[name]
        if self._random.random() < 0.1:
            found[self._random.choice(HOSTILE)] = self.value()
        return found


def test_tokens(record: Callable[[Row], None]) -> None:
    """All signed with the right key."""
    shapes, other, read = Shapes(1), 0, 0
    page = {"release_id": "r1", "now_ms": TIME_MS, "offset": 20, "rescored": True, "query": "0" * 16}
    exposure = {"request_id": "q", "release_id": "r1", "placement": "home", "time_ms": TIME_MS}
    for number in range(TOKENS):
        kind, fields, decode = ((EXPOSURE, exposure, Exposure.decode), (PAGE, page, PageToken.decode))[number % 2]
        try:
            decode(sign(kind, shapes.changed(fields)), SIGNER)
            read += 1
        except InvalidInputError:
            pass
        except Exception:
            other += 1
    assert 0 < read < TOKENS
    record(
        Row.at_most(
            f"{TOKENS:,} signed tokens whose fields have any shape: errors other than our own",
            other,
            "",
            0,
        )
    )


def test_features(record: Callable[[Row], None]) -> None:
    shapes, other, taken = Shapes(2), 0, 0
    rule = {"key": "e", "variations": ["model", "popular"], "hashAttribute": "id", "coverage": 1, "weights": [0.5, 0.5]}
    rule |= {"condition": {"country": "KR"}, "force": "popular", "ranges": [[0, 0.5], [0.5, 1]]}
    for number in range(PAYLOADS):
        feature = shapes.changed({"defaultValue": "model", "rules": [shapes.changed(rule), shapes.value()]})
        if number % 3:
            feature["rules"] = [shapes.changed(rule)]
        payload = {"features": {f"baguni.{random.Random(number).choice(sorted(KNOBS))}": feature}}
        payload |= {"savedGroups": shapes.value()} if number % 5 == 0 else {}
        try:
            found = parse(json.dumps(payload), "x")
            taken += 1
            for who in ({"id": "u"}, {"id": "\u2028", "country": "KR"}, {"id": "7", "country": 3}):
                found.choose(who)
        except InvalidInputError:
            pass
        except Exception:
            other += 1
    assert taken
    what = f"{PAYLOADS:,} feature payloads of any shape, {taken:,} of them taken over: errors other than our own"
    record(Row.at_most(what, other, "", 0))


def test_manifests(record: Callable[[Row], None], tmp_path: Path) -> None:
    shapes, other = Shapes(3), 0
    manifest = {"release_id": "r1", "created_at": "2026-01-01", "parts": {"a": "0" * 64}, "metrics": {}, "dataset": "d"}
    for _ in range(MANIFESTS):
        (tmp_path / MANIFEST).write_text(json.dumps(shapes.changed(manifest)))
        try:
            load_release(tmp_path, verify=False)
            load_release(tmp_path)
        except ReleaseMismatchError:
            pass
        except Exception:
            other += 1
    record(Row.at_most(f"{MANIFESTS:,} manifests of any shape: errors other than our own", other, "", 0))


def test_requests(record: Callable[[Row], None], stack: Any, active_release: Any, tmp_path: Path) -> None:
    """Well-formed protobuf with hostile values, many at a time; then requests of a megabyte, one at a time."""
    fuzzer = Fuzzer(5, [item.item_id for item in active_release.catalog.items])
    codes: Counter[str] = Counter()
    with (
        gateway_process(stack, tmp_path, max_in_flight=64, max_lag_s=10) as gateway,
        grpc.insecure_channel(gateway.address) as channel,
    ):
        calls = {"Recommend": fuzzer._recommend, "SimilarItems": fuzzer._similaritems}
        stub = pb_grpc.RecommendationServiceStub(channel)
        done = 0
        while done < REQUESTS:
            futures = []
            for number in range(48):
                method = "SimilarItems" if number % 6 == 0 else "Recommend"
                futures.append(getattr(stub, method).future(calls[method](), timeout=30))
            for future in futures:
                codes[future.code().name] += 1
            done += len(futures)
        internal = codes["INTERNAL"] + codes["UNKNOWN"]
        pids = {name: worker.pid for name, worker in gateway.workers().items()}
        what = f"{done:,} requests that are valid protobuf ({dict(codes)}): INTERNAL or UNKNOWN"
        record(Row.at_most(what, internal, "", 0))
        worst_s = max(_longest_pause(gateway.address, stub, make()) for make in LARGE.values())
        record(
            Row.at_most(
                f"the longest that a gateway's event loop stands still for one of {len(LARGE)} kinds of request of 1 MB",
                1000 * worst_s,
                "ms",
                100,
            )
        )
        assert {name: worker.pid for name, worker in gateway.workers().items()} == pids


def _longest_pause(address: str, stub: pb_grpc.RecommendationServiceStub, fields: dict[str, Any]) -> float:
    """The longest health check over a connection of its own while the request is answered, in s: the median of five."""
    request = pb.RecommendRequest(**{"user_id": "u", **fields})
    pauses = []
    with grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        health.Check(health_pb2.HealthCheckRequest())
        for _ in range(5):
            answered = stub.Recommend.future(request, timeout=30)
            longest = 0.0
            while not answered.done():
                started = time.perf_counter()
                health.Check(health_pb2.HealthCheckRequest(), timeout=30)
                longest = max(longest, time.perf_counter() - started)
            assert answered.code() is grpc.StatusCode.INVALID_ARGUMENT
            pauses.append(longest)
    return sorted(pauses)[2]


def _hostile_record(rng: random.Random, number: int) -> dict[str, Any]:
    """A record that a consumer may not like."""
    user_id = f"hostile-{number % 500}"
    message: Any = click(user_id, rng.choice(HOSTILE[2:3] + HOSTILE[5:]) or "x", TIME_MS + number)
    kind = rng.randrange(12)
    if kind == 0:
        ordered = timestamp(TIME_MS + number)
        message = events_pb2.OrderPlaced(user_id=user_id, order_id=str(rng.randrange(50)), event_time=ordered)
        for line in range(rng.choice((1, 5, 300))):
            message.lines.add(
                item_id=f"i{line}", quantity=rng.choice((-2, 0, 1)), unit_price=rng.choice((1.0, float("nan")))
            )
    elif kind == 1:
        message.event_time.CopyFrom(timestamp(rng.choice((1, 5 * TIME_MS, 253_402_300_799_000))))
    elif kind == 2:
        message.exposure_token = sign(EXPOSURE, Shapes(number).value(), SIGNER)
        message.placement = rng.choice(HOSTILE)
    headers: list[tuple[str, bytes | None]] = [*cloud_event_headers(message, str(number), "test")]
    key: bytes | None = user_id.encode()
    value: bytes | None = message.SerializeToString()
    if kind == 3:
        headers = [(name, None if rng.random() < 0.5 else content) for name, content in headers]
    elif kind == 4:
        headers = [(name, rng.randbytes(rng.randrange(40))) for name, _ in headers for _ in range(rng.randrange(3))]
    elif kind == 5:
        value = rng.randbytes(rng.randrange(200))
    elif kind == 6:
        value = None
    elif kind == 7:
        key, value = None, rng.choice((b"", value))
    elif kind == 8:
        headers = [(name, b"application/json" if name == "content-type" else content) for name, content in headers]
        value = json.dumps(Shapes(number).value()).encode()
    elif kind == 9:
        key = rng.choice(HOSTILE).encode()
    return {"topic": rng.choice(USER_TOPICS), "key": key, "value": value, "headers": headers}


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Own]:
    with own_servers(tmp_path) as servers:
        yield servers


def test_records(record: Callable[[Row], None], own: Own, tmp_path: Path) -> None:
    """Every codec takes its turn; sound events flow between, and every one of them is in its history."""
    port, rng = free_port(), random.Random(7)
    settings = {
        "BAGUNI_METRICS_ADDRESS": f"127.0.0.1:{port}",
        "BAGUNI_MAX_DEAD_SHARE": "1",
        "BAGUNI_TOKEN_KEYS": "a key for these tests",
    }
    good = shop_events(20_000, seed=11, users=300)
    failed_scrapes = 0
    with redis.Redis.from_url(own.endpoints.redis_url) as client:
        client.config_set("slowlog-log-slower-than", 5_000)
        client.config_set("slowlog-max-len", 100_000)
    with Consumers(own.endpoints, tmp_path, 1, **settings) as consumers, sender(own.endpoints) as producing:
        process = consumers.processes[0]
        assert process is not None
        per_batch = len(good) * BATCH // RECORDS
        for number in range(0, RECORDS, BATCH):
            codec = ("none", "gzip", "lz4", "snappy", "zstd")[number // BATCH % 5]
            foreign = confluent_kafka.Producer(
                {"bootstrap.servers": own.endpoints.kafka_bootstrap, "compression.type": codec, "linger.ms": 50}
            )
            for each in range(number, number + BATCH):
                foreign.produce(**_hostile_record(rng, each))
            assert foreign.flush(60) == 0
            first = number // BATCH * per_batch
            producing.send(good[first : first + per_batch])
            if number // BATCH % 20 == 0:
                try:
                    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as reply:
                        reply.read()
                except OSError:
                    failed_scrapes += 1
        found = compare(own.endpoints, expected(good), 120)
        crashes = int(process.poll() is not None)
    wrong = found.lost + found.surplus + crashes + failed_scrapes
    what = f"{RECORDS:,} hostile records, five codecs: sound events lost or doubled, crashes, failed scrapes"
    record(Row.at_most(what, wrong, "", 0, ("settled after, s", found.seconds)))
    with redis.Redis.from_url(own.endpoints.redis_url) as client:
        longest_ms = max((entry["duration"] for entry in client.slowlog_get(100_000)), default=0) / 1000
    record(Row.at_most("the longest that Redis is blocked by a call meanwhile", longest_ms, "ms", 50))


def test_the_longest_that_a_record_blocks_redis(record: Callable[[Row], None], own: Own) -> None:
    """One record each, of a user whose history is full."""

    def order(size: int, item: str) -> list[HistoryEvent]:
        return [HistoryEvent(f"{item}{n}", Action.ORDERED, TIME_MS + 1, "o") for n in range(size)]

    clicks = [HistoryEvent(f"c{n}", Action.CLICKED, TIME_MS + 2 * n) for n in range(2_048)]
    same = [HistoryEvent(f"c{n}", Action.CLICKED, TIME_MS) for n in range(2_048)]
    records = {
        "an order of 2,048 lines, new": ([], order(2_048, "i")),
        "an order of 2,048 lines into a full history": (clicks, order(2_048, "i")),
        "2,048 other lines of an order that is there": (order(2_048, "a"), order(2_048, "b")),
        "an order of 30,000 lines": (clicks, order(30_000, "i")),
        "a late click": (clicks, [HistoryEvent("late", Action.CLICKED, TIME_MS + 1)]),
        "a click among 2,048 of one moment": (same, [HistoryEvent("z", Action.CLICKED, TIME_MS)]),
    }
    with redis.Redis.from_url(own.endpoints.redis_url) as client:
        client.config_set("slowlog-log-slower-than", 0)
        writer = HistoryWriter(client)
        for number, (what, (before, changes)) in enumerate(records.items()):
            worst = []
            for attempt in range(5):
                user_id = f"u{number}-{attempt}"
                writer.apply({user_id: before})
                client.slowlog_reset()
                writer.apply({user_id: changes})
                worst.append(max(entry["duration"] for entry in client.slowlog_get(1_000)) / 1000)
            median_ms = sorted(worst)[2]
            record(Row.at_most(f"Redis is blocked by {what}", median_ms, "ms", 20))


def test_redis_fails_over(record: Callable[[Row], None], own: Own, tmp_path: Path) -> None:
    """A replica takes over eight times, each time without the last half second of what its primary was told."""
    messages = shuffled(shop_events(FAILOVER_EVENTS, seed=12), seed=12)
    binary = next(iter(own.running["redis"].cmdline()))
    primary = own.settings.redis_port
    proxy = Proxy(primary)
    address = f"redis://127.0.0.1:{proxy.port}/0"
    endpoints = own.endpoints.model_copy(update={"redis_url": address})
    servers: list[subprocess.Popen[bytes]] = []
    try:
        with Consumers(endpoints, tmp_path) as consumers, sender(endpoints) as producing:
            flowing = threading.Thread(target=producing.send, args=(messages, 2_000))
            flowing.start()
            for _ in range(FAILOVERS):
                port = free_port()
                folder = tmp_path / str(port)
                folder.mkdir()
                command = [binary, "--port", str(port), "--dir", str(folder), "--save", ""]
                command += ["--replicaof", "127.0.0.1", str(primary)]
                servers.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
                with redis.Redis(port=port) as replica:
                    wait(lambda replica=replica: _is_in_step(replica))  # type: ignore[misc]
                    time.sleep(1.5)
                    replica.replicaof("NO", "ONE")
                    time.sleep(0.5)  # what the primary is told now is lost
                proxy.refuse()
                primary = port
                proxy.lead_to(port)
                proxy.accept()
            flowing.join()
            found = compare(endpoints, expected(messages), 120)
            rewound = sum(log.read_text().count("redis has lost what was applied") for log in consumers.logs)
    finally:
        proxy.close()
        for server in servers:
            server.kill()
            server.wait()
    assert rewound >= 1
    wrong = found.lost + found.surplus
    what = f"{FAILOVERS} Redis failovers among {FAILOVER_EVENTS:,} events, each loses half a second: events lost or doubled"
    record(Row.at_most(what, wrong, "", 0, ("settled after, s", found.seconds)))


def _is_in_step(replica: redis.Redis) -> bool:
    with contextlib.suppress(redis.RedisError):
        return bool(replica.info("replication").get("master_link_status") == "up")
    return False


def test_a_process_that_hangs_is_replaced(
    record: Callable[[Row], None], stack: Any, active_release: Any, tmp_path: Path
) -> None:
    with gateway_process(stack, tmp_path, processes=2) as gateway:
        worst_s = 0.0
        for name in ("online-0", "online-1", "bulk-0"):
            hung = gateway.workers()[name]
            hung.suspend()
            started = time.monotonic()
            wait(lambda name=name, hung=hung: gateway.workers().get(name, hung).pid != hung.pid)  # type: ignore[misc]
            gateway.wait_until_ready()
            worst_s = max(worst_s, time.monotonic() - started)
    record(Row.at_most("a gateway process that hangs is replaced and ready, the longest of three", worst_s, "s", 10))


async def test_background_tasks(
    record: Callable[[Row], None], stack: Any, active_release: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each raises while pages are asked for. The process is not ready while a necessary one is down."""
    for name, value in environment(stack, tmp_path, run_dir=tmp_path).items():
        if name.startswith("BAGUNI_"):
            monkeypatch.setenv(name, value)
    worker, stopping = Worker(ServerSettings(), "online-0"), asyncio.Event()
    broken = {
        "releases": _Breakable(worker._active, "follow"),
        "items": _Breakable(worker._active, "follow_items"),
        "loop": _Breakable(worker._gate, "watch_the_loop"),
        "served": _Breakable(worker._active, "tell_what_is_served"),
        "forgetting": _Breakable(worker._forgetting, "follow"),
        "callers": _Breakable(worker, "_follow_callers"),
    }
    serving = asyncio.create_task(worker.serve(stopping))
    failed, worst_s, wrongly_ready = 0, 0.0, 0
    async with grpc.aio.insecure_channel(worker._settings.gateway_address) as channel:
        stub, health = pb_grpc.RecommendationServiceStub(channel), health_pb2_grpc.HealthStub(channel)

        async def is_ready() -> bool:
            answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=30, wait_for_ready=True)
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

        async def ask() -> None:
            nonlocal failed
            while True:
                try:
                    await stub.Recommend(pb.RecommendRequest(user_id="u1", page_size=3), timeout=30)
                except grpc.aio.AioRpcError:
                    failed += 1
                await asyncio.sleep(0.01)

        await until(is_ready)
        asking = asyncio.create_task(ask())
        for name, breakable in broken.items():
            for _ in range(3):
                runs, started = breakable.runs, time.monotonic()
                breakable.raise_now.set()
                await until(breakable.has_run_since(runs))
                if name in NECESSARY:
                    wrongly_ready += await is_ready()
                await until(is_ready)
                worst_s = max(worst_s, time.monotonic() - started)
        asking.cancel()
    stopping.set()
    await serving
    what = f"{len(broken)} background tasks raise, each three times"
    record(Row.at_most(f"{what}: started again and ready after, the longest", worst_s, "s", 10))
    record(Row.at_most(f"{what}: pages that failed meanwhile", failed, "", 0))
    record(Row.at_most(f"{what}: ready although a necessary one had just failed", wrongly_ready, "", 0))


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Return once a condition holds."""
    while not await condition():  # noqa: ASYNC110 - of another process, or of one that restarts
        await asyncio.sleep(0.01)


class _Breakable:
    """A method that runs for ever, and can be made to raise."""

    def __init__(self, owner: Any, name: str) -> None:
        self.raise_now, self.runs, self._run = asyncio.Event(), 0, getattr(owner, name)
        setattr(owner, name, self)

    def has_run_since(self, runs: int) -> Callable[[], Awaitable[bool]]:
        """Return the condition that it was called again."""

        async def has_run() -> bool:
            return self.runs > runs

        return has_run

    async def __call__(self, *arguments: Any) -> None:
        self.runs += 1
        self.raise_now.clear()
        running = asyncio.ensure_future(self._run(*arguments))
        told = asyncio.ensure_future(self.raise_now.wait())
        try:
            await asyncio.wait([running, told], return_when=asyncio.FIRST_COMPLETED)
            raise RuntimeError("as if a server had answered what nobody foresaw")
        finally:
            running.cancel()
            told.cancel()


def braze_faults(rng: random.Random, count: int) -> list[dict[str, Any]]:
    """How requests go: mostly well, else with an error of a kind that Braze documents, or a connection that breaks."""
    kinds: list[dict[str, Any]] = [
        *({"status": status} for status in (400, 401, 403, 404, 500, 502, 503)),
        {"status": 429, "reset_s": 1},
        {"drop": True},
        {"drop": True, "takes": True},
        {"status": 504, "takes": True},
        {"hang_s": 1, "takes": True},
    ]
    return [rng.choice(kinds) if rng.random() < BRAZE_ERRORS else {} for _ in range(count)]


def test_braze(record: Callable[[Row], None], stack: Any, active_release: Any, tmp_path: Path) -> None:
    """Attributes, which may be sent twice, and events, which may not. Nobody can tell whether an event arrived whose connection
    broke, or whose process was killed: it is reported, and not sent again."""
    rng = random.Random(9)
    user_ids = [f"u{number:06}" for number in range(BRAZE_USERS)]
    (tmp_path / "users.csv").write_text("user_id\n" + "".join(f"{user_id}\n" for user_id in user_ids))
    with gateway_process(stack, tmp_path) as gateway, braze_process() as braze:
        other = braze.url.replace("127.0.0.1", "localhost")  # a workspace of its own, as far as the state knows
        sinks: list[Any] = [{"braze": {"url": braze.url, "attributes": "offer"}}]
        sinks += [{"braze": {"url": other, "attributes": None, "event": "pushed"}}]
        campaign = {"name": "all", "items_per_user": 3, "popular_for_strangers": True, "sinks": sinks}
        campaign["audience"] = {"file": {"path": "users.csv"}}
        (tmp_path / "all.yaml").write_text(yaml.safe_dump(campaign))
        command = [sys.executable, "-m", "baguni.cli", "crm", "run", str(tmp_path / "all.yaml"), "--run-id", "monday"]
        own = {"BAGUNI_CRM_STATE": str(tmp_path / "crm"), "BAGUNI_CRM_BRAZE_KEY": KEY}
        variables = {**os.environ, **stack.environment(), "BAGUNI_GATEWAY_ADDRESS": gateway.address, **own}
        kills = runs = 0
        with (tmp_path / "crm.log").open("w") as log:
            while True:
                runs += 1
                assert runs < MOST_RUNS, (tmp_path / "crm.log").read_text()[-3000:]
                braze.break_next(*braze_faults(rng, 400))
                process = subprocess.Popen(command, env=variables, stdout=log, stderr=log)
                if kills < BRAZE_KILLS and _is_sending(tmp_path / "crm"):
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(rng.uniform(4, 12))
                    kills += process.poll() is None
                    process.kill()
                if process.wait() == 0:
                    break
        found = braze.users()
    with closing(CampaignState(tmp_path / "crm")) as state:
        named = {user_id for _, user_id, _, _ in state.problems("monday", BRAZE_USERS)}
    events = {user_id: len(found.get(user_id, {}).get("events", ())) for user_id in user_ids}
    without = sum(len(found.get(user_id, {}).get("attributes", ())) != 3 for user_id in user_ids)
    twice = sum(count > 1 for count in events.values())
    lost = sum(count == 0 and user_id not in named for user_id, count in events.items())
    what = f"Braze, {BRAZE_USERS:,} users, errors of every kind, {kills} kills in {runs} runs"
    assert kills == BRAZE_KILLS
    record(Row.at_most(f"{what}: users without their attributes", without, "", 0))
    record(Row.at_most(f"{what}: users with two events", twice, "", 0))
    what += ": users without an event that are not reported"
    record(Row.at_most(what, lost, "", 0, ("reported: it may have arrived", len(named))))


def _is_sending(folder: Path) -> bool:
    """Return whether a run has been prepared: from then on it is killed."""
    if not folder.is_dir():
        return False
    with closing(CampaignState(folder)) as state:
        return any("prepared" in state.counts(run.run_id)["run"] for run in state.runs())
