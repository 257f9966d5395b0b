"""How quickly what streams in is in histories and in lists, and what a history costs:

python -m benchmarks.streaming [RUN]      writes benchmarks/results/streaming.json and docs/streaming.png

RUN is a finished run on Complete Journey. Broker, Redis, consumers and load share this machine; ratios are of one run.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import redis
from google.protobuf.timestamp_pb2 import Timestamp
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from baguni.domain.events import USER_TOPICS
from baguni.domain.history import Action, HistoryEvent
from baguni.settings import Endpoints
from baguni.stores.history_store import HistoryWriter
from baguni.v1 import events_pb2
from baguni.v1 import recommendation_pb2 as pb
from baguni.v1 import recommendation_pb2_grpc as pb_grpc
from benchmarks.gateway.scene import DEFAULT_RUN, Scene, scene
from benchmarks.result import REPOSITORY, RESULTS, Row, write_result
from benchmarks.streaming.plots import plot
from benchmarks.streaming.traffic import produce, send, traffic
from streaming.histories import load, read_file
from streaming.positions import Positions

EVENTS, ROUNDS = 60_000, 3
POLL_RECORDS = 500
PROBES, PROBE_EVERY_S, ASK_EVERY_S = 300, 0.1, 0.005
NEW_ITEMS = 60
VISIBLE_WITHIN_S = 30.0
USERS, HISTORY = 100_000, 200
BULK_EVENTS = 2_000_000
DAY_MS = 86_400_000
MESSAGES = {
    f"baguni.v1.{message.__name__}".encode(): message
    for message in (events_pb2.OrderPlaced, events_pb2.ItemClicked, events_pb2.CartAdded)
}


@dataclass
class Pictures:
    """What is drawn beside the table."""

    seconds: dict[str, Sequence[float]] = field(default_factory=dict)
    bytes_a_user: list[tuple[float, float]] = field(default_factory=list)


def rows(stage: Scene, folder: Path, pictures: Pictures) -> Iterator[Row]:
    """Everything that is measured."""
    endpoints = stage.stack.settings.endpoints()
    stage.stack.stop_process("user-consumer")
    produce(endpoints.kafka_bootstrap, traffic(0), EVENTS)
    bare, ours = [], []
    for number in range(ROUNDS):
        bare.append(_bare_loop(endpoints))
        ours.append(_consumer(endpoints, folder, number))
    per_s, bare_s = statistics.median(ours), statistics.median(bare)
    bare_loop = ("bare kafka-python loop that only decodes, events / s", bare_s)
    yield Row.at_least_times("one consumer process, Kafka to Redis", per_s, "events / s", 0.5, bare_loop)
    stage.stack.restart("user-consumer")
    yield from _freshness(stage, endpoints, per_s / 2, pictures)
    yield _new_items(stage, endpoints)
    yield from _memory(endpoints, pictures)
    yield _bulk(endpoints, folder)


def _bare_loop(endpoints: Endpoints) -> float:
    """Events a second of a loop that polls and decodes, and nothing else."""
    consumer = KafkaConsumer(
        bootstrap_servers=endpoints.kafka_bootstrap,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        max_poll_records=POLL_RECORDS,
        fetch_max_wait_ms=50,
    )
    with closing(consumer):
        partitions = [TopicPartition(topic, n) for topic in USER_TOPICS for n in consumer.partitions_for_topic(topic)]
        consumer.assign(partitions)
        decoded, started = 0, time.monotonic()
        while decoded < EVENTS:
            for raws in consumer.poll(timeout_ms=200).values():
                for raw in raws:
                    MESSAGES[dict(raw.headers)["ce_type"]].FromString(raw.value)
                decoded += len(raws)
        return EVENTS / (time.monotonic() - started)


def _consumer(endpoints: Endpoints, folder: Path, number: int) -> float:
    """Events a second of a consumer process of its own, into a Redis database of its own, from the first to the last."""
    own = endpoints.model_copy(update={"redis_url": endpoints.redis_url.replace("/0", f"/{number + 8}")})
    suffix = f"-{uuid.uuid4().hex[:8]}"
    log = folder / f"consumer{suffix}.log"
    environment = {**os.environ, **own.environment(), "BAGUNI_GROUP_SUFFIX": suffix, "BAGUNI_FETCH_WAIT_MS": "20"}
    with redis.Redis.from_url(own.redis_url) as client, log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "streaming", "user"], env=environment, stdout=output, stderr=output
        )
        try:
            first = _wait(lambda: _applied(client, suffix) > 0, process, log)
            done = _applied(client, suffix)
            last = _wait(lambda: _applied(client, suffix) >= EVENTS, process, log)
            return (EVENTS - done) / (last - first)
        finally:
            process.terminate()
            process.wait(15)
            client.flushdb()


def _applied(client: redis.Redis, suffix: str) -> int:
    return Positions(client, f"baguni-users{suffix}").total()


def _wait(condition: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> float:
    """When it was so."""
    while not condition():
        assert process.poll() is None, log.read_text()[-2000:]
        time.sleep(0.02)
    return time.monotonic()


def _freshness(stage: Scene, endpoints: Endpoints, per_s: float, pictures: Pictures) -> Iterator[Row]:
    """From a click handed to Kafka to a list that knows it, alone and beside load."""
    _wait_until_applied(endpoints)
    pictures.seconds["alone"] = _probes(stage, endpoints)
    seconds = PROBES * PROBE_EVERY_S + 30
    load_process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.streaming.traffic", endpoints.kafka_bootstrap, str(per_s), str(seconds)]
    )
    try:
        time.sleep(5)
        with redis.Redis.from_url(endpoints.redis_url) as client:
            before, started = _applied(client, ""), time.monotonic()
            pictures.seconds[f"beside {per_s:,.0f} events / s"] = found = _probes(stage, endpoints)
            applied_per_s = (_applied(client, "") - before) / (time.monotonic() - started)
    finally:
        load_process.terminate()
        load_process.wait(15)
    for percentile, limit_ms in ((50, 50), (99, 250)):
        value = 1e3 * float(np.percentile(found, percentile))
        alone_ms = 1e3 * float(np.percentile(pictures.seconds["alone"], percentile))
        yield Row.at_most(
            f"click produced to seen by Recommend, half of that rate streaming: p{percentile}",
            value,
            "ms",
            limit_ms,
            (f"without load, ms ({applied_per_s:,.0f} events / s were applied)", alone_ms),
        )


def _wait_until_applied(endpoints: Endpoints) -> None:
    with redis.Redis.from_url(endpoints.redis_url) as client:
        deadline = time.monotonic() + 120
        while _applied(client, "") < EVENTS:
            assert time.monotonic() < deadline, "the stack's consumer does not catch up"
            time.sleep(0.2)


def _probes(stage: Scene, endpoints: Endpoints) -> list[float]:
    """Seconds of PROBES clicks of users who are known, one after the other."""
    found = []
    item_ids = [item.item_id for item in stage.release.catalog.items[:PROBES]]
    with (
        closing(KafkaProducer(bootstrap_servers=endpoints.kafka_bootstrap, linger_ms=0)) as producer,
        grpc.insecure_channel(endpoints.gateway_address) as channel,
    ):
        stub = pb_grpc.RecommendationServiceStub(channel)
        for number in range(PROBES):
            # A set of one's own is ranked without a search: asking again and again is then little load beside the streams.
            own = [item_ids[number]]
            request = pb.RecommendRequest(user_id=stage.user_ids[number], page_size=1, candidate_item_ids=own)
            before = stub.Recommend(request, timeout=5).history_version
            started = time.monotonic()
            now = Timestamp()
            now.GetCurrentTime()
            click = events_pb2.ItemClicked(user_id=request.user_id, item_id=item_ids[number], event_time=now)
            send(producer, click)
            producer.flush(timeout=10)
            while stub.Recommend(request, timeout=5).history_version == before:
                assert time.monotonic() - started < VISIBLE_WITHIN_S, f"click {number} is not seen"
                time.sleep(ASK_EVERY_S)
            found.append(time.monotonic() - started)
            time.sleep(max(PROBE_EVERY_S - found[-1], 0))
    return found


def _new_items(stage: Scene, endpoints: Endpoints) -> Row:
    """From an item that nobody knew to a list with it."""
    found, items = [], stage.release.catalog.items
    with (
        closing(KafkaProducer(bootstrap_servers=endpoints.kafka_bootstrap, linger_ms=0)) as producer,
        grpc.insecure_channel(endpoints.gateway_address) as channel,
    ):
        stub = pb_grpc.RecommendationServiceStub(channel)
        for number in range(NEW_ITEMS):
            like, brand = items[number * 97 % len(items)], f"new-{uuid.uuid4().hex[:8]}"
            now = Timestamp()
            now.GetCurrentTime()
            upserted = events_pb2.ItemUpserted(
                item_id=brand,
                title=f"{like.title}, new",
                category_path=like.category_path,
                attributes={"brand": events_pb2.AttributeValue(string_value=brand)},
                event_time=now,
            )
            only_new = pb.Filter(attribute="brand", any_of=pb.StringSet(values=[brand]))
            request = pb.RecommendRequest(user_id=stage.user_ids[number], page_size=10, filters=[only_new])
            started = time.monotonic()
            send(producer, upserted)
            while not any(item.item_id == brand for item in stub.Recommend(request, timeout=5).items):
                assert time.monotonic() - started < VISIBLE_WITHIN_S, f"new item {number} is not recommended"
                time.sleep(0.01)
            found.append(time.monotonic() - started)
    p99 = float(np.percentile(found, 99))
    return Row.at_most("new item produced to recommended: p99", p99, "s", 3, ("median, s", statistics.median(found)))


def _memory(endpoints: Endpoints, pictures: Pictures) -> Iterator[Row]:
    """Bytes of Redis a user, everything included, while histories grow to HISTORY events, and from then on."""
    with redis.Redis.from_url(endpoints.redis_url.replace("/0", "/7")) as client:
        writer, empty = HistoryWriter(client, max_events=HISTORY), _used(client)
        for count in (HISTORY // 4, HISTORY // 2, HISTORY, *range(HISTORY + 50, 2 * HISTORY + 1, 50)):
            since = pictures.bytes_a_user[-1][0] if pictures.bytes_a_user else 0
            for first in range(0, USERS, 500):
                writer.apply({str(10**6 + u): _events(u, int(since), count) for u in range(first, first + 500)})
            pictures.bytes_a_user.append((count, (_used(client) - empty) / USERS))
        client.flushdb()
    at = dict(pictures.bytes_a_user)
    later = (f"after {2 * HISTORY} events, the newest {HISTORY} kept", at[2 * HISTORY])
    yield Row.at_most(f"Redis a user at {HISTORY} events, of {USERS:,} users", at[HISTORY], "bytes", 2_500, later)
    middle = HISTORY + HISTORY // 2
    flat = at[2 * HISTORY] / at[middle]
    yield Row.at_most(f"the same after {2 * HISTORY} events, over that after {middle}", flat, "×", 1.05)


def _used(client: redis.Redis) -> int:
    return int(client.info("memory")["used_memory"])


def _events(user: int, start: int, stop: int) -> list[HistoryEvent]:
    """Events number `start` to `stop` of a user: half are clicks, half lines of orders of ten, over two years."""
    found = []
    for number in range(start, stop):
        day, place = divmod(number, 20)
        time_ms = 1_700_000_000_000 + user * 1_000 + day * 7 * DAY_MS
        item_id = str(1_000_000 + (user * 7_919 + number * 104_729) % 9_000_000)
        if place < 10:
            found.append(HistoryEvent(item_id, Action.ORDERED, time_ms, str(10**10 + user * 1_000 + day)))
        else:
            found.append(HistoryEvent(item_id, Action.CLICKED, time_ms + place * 53_017))
    return found


def _bulk(endpoints: Endpoints, folder: Path) -> Row:
    """`baguni histories load` of a file, beside a running consumer."""
    path, rng = folder / "events.parquet", np.random.default_rng(0)
    is_order = rng.random(BULK_EVENTS) < 0.5
    order_ids = np.char.add("o", rng.integers(10**6, 10**7, BULK_EVENTS).astype(str))
    table = {
        "user_id": pa.array(rng.integers(0, 20_000, BULK_EVENTS).astype(str)),
        "item_id": pa.array(rng.integers(10**6, 10**7, BULK_EVENTS).astype(str)),
        "action": pa.array(np.where(is_order, "order", "click")),
        "order_id": pa.array(np.where(is_order, order_ids, "")),
        "time": pa.array(1_600_000_000_000 + rng.integers(0, 10**11, BULK_EVENTS), pa.timestamp("ms", "UTC")),
    }
    pq.write_table(pa.table(table), path)
    with redis.Redis.from_url(endpoints.redis_url.replace("/0", "/7")) as client:
        started = time.monotonic()
        loaded = sum(load(HistoryWriter(client), read_file(path)))
        per_s = loaded / (time.monotonic() - started)
        client.flushdb()
    return Row.at_least("bulk load from Parquet", per_s, "events / s", 100_000)


def main(run: str | None = None) -> None:
    """Measure and write the file."""
    found: list[Row] = []
    pictures = Pictures()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with scene(Path(run) if run else DEFAULT_RUN, folder) as stage:
            for row in rows(stage, folder, pictures):
                print(row, flush=True)
                found.append(row)
    write_result(RESULTS / "streaming.json", "streaming", "make bench-streaming", found)
    plot(pictures.seconds, pictures.bytes_a_user, HISTORY, REPOSITORY / "docs" / "streaming.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
