"""Consumers, Redis and broker that are killed, slow, emptied or fed with garbage while events flow: in the end every history is
what a batch build of the same events says, to the last event.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import redis

from baguni.domain.events import USER_TOPICS, cloud_event_headers
from baguni.domain.history import Action, HistoryEvent
from benchmarks.result import Row
from streaming.positions import Positions
from tests.faults.proxy import proxied
from tests.faults.streams import (
    TIME_MS,
    Consumers,
    Own,
    Sender,
    compare,
    dead_letters,
    expected,
    own_servers,
    sender,
    shop_events,
    shuffled,
    wait,
)
from tests.integration.streams import click

pytestmark = [pytest.mark.fault, pytest.mark.timeout(1_500)]
EVENTS = 100_000
KILLS = 200
FUZZED = 1_000_000
AT_A_TIME = 20_000
SESSION_S = 2.0  # the local broker lets a group wait for half of it
FLOW, PER_S = 50, 200  # so many at once, so many a second while consumers are killed


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Own]:
    with own_servers(tmp_path) as servers:
        yield servers


def say(record: Callable[[Row], None], what: str, own: Own, messages: list, patience_s: float = 90.0) -> None:
    """One row: what was lost or doubled of all histories."""
    should = expected(messages)
    found = compare(own.endpoints, should, patience_s)
    wrong = found.lost + found.surplus
    number = sum(map(len, should.values()))
    words = f"{what}: events of {number:,} in {len(should):,} histories that are lost or too many"
    record(Row.at_most(words, wrong, "", 0, ("settled after, s", found.seconds)))


def test_consumers_killed_at_200_points_while_events_flow(
    own: Own, tmp_path: Path, record: Callable[[Row], None]
) -> None:
    """Two processes, each killed again and again once it applies: a kill is a return within the session, or, when it takes
    longer, a rebalance."""
    messages = shop_events(EVENTS, seed=1)
    sent = shuffled(messages, seed=1)
    all_killed, kills = threading.Event(), Counter[int]()

    def flow(producing: Sender) -> None:
        for first in range(0, len(sent), FLOW):
            producing.send(sent[first : first + FLOW])
            if not all_killed.is_set():
                time.sleep(FLOW / PER_S)

    def kill(number: int) -> None:
        rng = random.Random(number)
        while kills[number] < KILLS // 2:
            begun = applied_lines(consumers.logs[number])
            with contextlib.suppress(AssertionError):  # it may have nothing to do
                wait(lambda begun=begun: applied_lines(consumers.logs[number]) > begun, 8)  # type: ignore[misc]
            time.sleep(rng.uniform(0, 0.5))
            consumers.kill(number)
            kills[number] += 1
            if rng.random() < 0.05:
                time.sleep(SESSION_S + 1)  # the other takes over
            consumers.start(number)

    settings = {"BAGUNI_SESSION_TIMEOUT_MS": f"{SESSION_S * 1000:.0f}"}
    with Consumers(own.endpoints, tmp_path, **settings) as consumers, sender(own.endpoints) as producing:
        flowing = threading.Thread(target=flow, args=(producing,))
        killing = [threading.Thread(target=kill, args=(number,)) for number in range(2)]
        for thread in (flowing, *killing):
            thread.start()
        for thread in killing:
            thread.join()
        all_killed.set()
        flowing.join()
        say(
            record,
            f"consumer, kill -9 at {kills.total()} points, {len(sent):,} records with repeats",
            own,
            messages,
            180,
        )
        assert kills.total() == KILLS


def test_redis_killed_with_and_without_its_last_writes(own: Own, tmp_path: Path, record: Callable[[Row], None]) -> None:
    messages = shop_events(40_000, seed=2)
    with Consumers(own.endpoints, tmp_path) as consumers, sender(own.endpoints) as producing:
        flowing = threading.Thread(target=producing.send, args=(messages, 1_500))
        flowing.start()
        for lost_bytes in (0, 0, 200_000, 1_000_000, 3_000_000):
            time.sleep(3)
            own.kill("redis")
            own.lose_the_last_writes(lost_bytes)
            time.sleep(0.5)
            own.start("redis")
        flowing.join()
        what = "Redis, kill -9 five times, three of them without the last .2 to 3 MB that it had written"
        say(record, what, own, messages)
        rewound = sum(log.read_text().count("redis has lost what was applied") for log in consumers.logs)
        assert rewound >= 1


def test_redis_emptied_is_rebuilt_from_the_topics(own: Own, tmp_path: Path, record: Callable[[Row], None]) -> None:
    messages = shop_events(20_000, seed=3)
    with Consumers(own.endpoints, tmp_path), sender(own.endpoints) as producing:
        producing.send(messages)
        assert compare(own.endpoints, expected(messages)).lost == 0
        with redis.Redis.from_url(own.endpoints.redis_url) as client:
            client.flushall()
        say(record, "Redis, emptied while nothing flows", own, messages)


def test_redis_slow(own: Own, tmp_path: Path, record: Callable[[Row], None]) -> None:
    messages = shop_events(20_000, seed=4)
    with proxied(own.endpoints.redis_url) as (proxy, address):
        through = own.endpoints.model_copy(update={"redis_url": address})
        with Consumers(through, tmp_path), sender(own.endpoints) as producing:
            flowing = threading.Thread(target=producing.send, args=(messages, 2_000))
            flowing.start()
            time.sleep(2)
            proxy.delay_s = 0.5
            time.sleep(8)
            proxy.delay_s = 3.0  # longer than the consumer waits for an answer
            time.sleep(8)
            proxy.delay_s = 0.0
            flowing.join()
            say(record, "Redis, +500 ms and then +3 s", own, messages)


def test_broker_killed_and_its_topics_begun_anew(own: Own, tmp_path: Path, record: Callable[[Row], None]) -> None:
    """The local broker keeps topics in memory, so a restart is a recreation: offsets begin at 0 again."""
    messages = shop_events(30_000, seed=5)
    thirds = [messages[:10_000], messages[10_000:20_000], messages[20_000:]]
    with Consumers(own.endpoints, tmp_path):
        for number, part in enumerate(thirds):
            with sender(own.endpoints) as producing:
                producing.send(part)
            done = [message for third in thirds[: number + 1] for message in third]
            assert compare(own.endpoints, expected(done), 90).lost == 0
            if number == 0:
                own.kill("broker")
                own.start("broker")
            elif number == 1:
                own.delete_topics()
                wait(lambda: own.create_topics() is None)
        say(record, "broker, kill -9 with all it had, then topics deleted and made anew", own, messages)


def test_broker_paused_while_events_flow(own: Own, tmp_path: Path, record: Callable[[Row], None]) -> None:
    messages = shop_events(20_000, seed=6)
    with Consumers(own.endpoints, tmp_path), sender(own.endpoints) as producing:
        flowing = threading.Thread(target=producing.send, args=(messages, 1_500))
        flowing.start()
        for seconds in (2, 8):  # longer than a session, too
            time.sleep(3)
            own.running["broker"].suspend()
            time.sleep(seconds)
            own.running["broker"].resume()
        flowing.join()
        say(record, "broker, SIGSTOP for 2 and 8 s", own, messages)


def test_from_one_process_to_three_and_back_under_traffic(
    own: Own, tmp_path: Path, record: Callable[[Row], None]
) -> None:
    messages = shop_events(30_000, seed=7)
    consumers = Consumers(own.endpoints, tmp_path, count=3)
    with sender(own.endpoints) as producing:
        consumers.start(0)
        flowing = threading.Thread(target=producing.send, args=(messages, 1_000))
        flowing.start()
        for number in (1, 2):
            time.sleep(6)
            consumers.start(number)
        wait(lambda: all("applied" in log.read_text() for log in consumers.logs), 60)
        for number in (1, 2):
            time.sleep(4)
            process = consumers.processes[number]
            assert process is not None
            started = time.monotonic()
            process.terminate()
            assert process.wait(10) == 0
            assert time.monotonic() - started < 10
        flowing.join()
        say(record, "1 → 3 → 1 processes", own, messages)
    first = consumers.processes[0]
    assert first is not None
    first.terminate()
    assert first.wait(10) == 0


def test_a_poison_record_at_each_place_of_a_batch(own: Own, tmp_path: Path, record: Callable[[Row], None]) -> None:
    batch, messages, records = 20, [], []
    for place in range(batch):
        for number in range(batch):
            message = click(f"user-{place}", str(number), TIME_MS + number)
            headers = cloud_event_headers(message, f"{place}-{number}", "test")
            value = message.SerializeToString()
            if number == place:
                records.append(("baguni.clicks", b"user", b"\xff" + value, headers))
            else:
                messages.append(message)
                records.append(("baguni.clicks", message.user_id.encode(), value, headers))
    settings = {"BAGUNI_BATCH_RECORDS": str(batch)}
    with Consumers(own.endpoints, tmp_path, 1, **settings), sender(own.endpoints) as producing:
        producing.send_raw(records)
        say(record, f"a poison record at each of {batch} places of a batch", own, messages)
        wait(lambda: len(dead_letters(own.endpoints)) >= batch)
    letters = dead_letters(own.endpoints)
    assert Counter(letter["dead_letter_reason"] for letter in letters) == {b"undecodable": batch}
    assert len({letter["ce_id"] for letter in letters}) == batch


def test_a_million_records_of_noise(own: Own, tmp_path: Path, record: Callable[[Row], None]) -> None:
    """Bytes of every kind in keys, values and headers: the consumer outlives them, and each that is no event is a dead letter
    with a reason, once."""
    rng = random.Random(8)
    real = [(m, cloud_event_headers(m, "id", "test")) for m in shop_events(500, seed=8)]
    sent, seen, reasons = 0, 0, Counter[bytes]()
    with (
        Consumers(own.endpoints, tmp_path, 1, BAGUNI_MAX_DEAD_SHARE="1") as consumers,
        sender(own.endpoints) as producing,
    ):
        process = consumers.processes[0]
        assert process is not None
        memory = psutil.Process(process.pid).memory_info
        after_warm_up = 0
        while sent < FUZZED:
            records = [noise(rng, real, number) for number in range(sent, min(sent + AT_A_TIME, FUZZED))]
            producing.send_raw(records)
            sent += len(records)
            after_warm_up = after_warm_up or (memory().rss if sent >= FUZZED // 5 else 0)
        with redis.Redis.from_url(own.endpoints.redis_url) as client:
            wait(lambda: applied(client) >= sent, 600)
        assert process.poll() is None
        grown = memory().rss / after_warm_up
    for letter in dead_letters(own.endpoints):
        assert letter["dead_letter_reason"]
        reasons[letter["dead_letter_reason"]] += 1
        seen += 1
    named = ", ".join(f"{count:,} {reason.decode()}" for reason, count in reasons.most_common())
    missing = sent - seen  # every record's key is no user's
    record(
        Row(
            f"{sent:,} records of noise: without a dead letter and a reason ({named})",
            missing,
            "",
            "0, no crash, memory flat",
            missing == 0 and grown < 1.3,
            "memory at the end over that after a fifth",
            grown,
        )
    )


def applied_lines(log: Path) -> int:
    """How many batches a consumer has applied."""
    return log.read_text().count(" applied records=")


def noise(rng: random.Random, real: list, number: int) -> tuple[str, bytes, bytes, list[tuple[str, bytes]]]:
    """A record that is no event: a damaged one, or bytes of no kind. Should it be one by accident, its key is no user's."""
    message, headers = real[number % len(real)]
    value = bytearray(message.SerializeToString())
    kind = rng.randrange(6)
    if kind == 0:
        value = bytearray(rng.randbytes(rng.randrange(200)))
    elif kind == 1:
        del value[rng.randrange(len(value)) :]
    elif kind == 2:
        for _ in range(rng.randrange(1, 8)):
            value[rng.randrange(len(value))] = rng.randrange(256)
    elif kind == 3:
        headers = [(name, rng.randbytes(rng.randrange(40))) for name, _ in headers]
    elif kind == 4:
        headers = [(name, content if name != "content-type" else b"application/json") for name, content in headers]
        value = bytearray(rng.choice([b"{", b"[]", b'{"userId": 1e999}', b"\x00", b'{"lines": {}}', bytes(value)]))
    else:
        headers = rng.sample(headers, rng.randrange(len(headers)))
    return rng.choice(USER_TOPICS), b"no-user-" + os.urandom(2), bytes(value), headers


def applied(client: redis.Redis) -> int:
    """Records behind the group's positions."""
    return Positions(client, "baguni-users").total()


def test_the_same_events_in_any_order_are_one_history() -> None:
    """What the other tests compare with is no tautology: it does not depend on order or repeats either, and knows what to
    expect of events written by hand."""
    messages = shop_events(2_000, seed=9)
    assert expected(messages) == expected(shuffled(messages, seed=9))
    assert expected([click("u", "rye", TIME_MS)]) == {"u": (HistoryEvent("rye", Action.CLICKED, TIME_MS),)}
