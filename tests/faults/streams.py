"""Two consumer processes between a broker and a Redis of their own, a shop's events as the topics hold them, and what
histories should be of them.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import redis
from google.protobuf.message import Message
from kafka import KafkaAdminClient, KafkaProducer
from kafka.admin import NewTopic
from kafka.errors import KafkaError, TopicAlreadyExistsError, UnknownTopicOrPartitionError

from baguni.domain.errors import UnavailableError
from baguni.domain.events import (
    DEAD_LETTER_TOPIC,
    ITEM_TOPIC,
    USER_TOPICS,
    UserEvents,
    cloud_event_headers,
    parse,
    producible,
)
from baguni.domain.history import Change, build
from baguni.settings import Endpoints
from baguni.stores.history_store import HistoryWriter
from deploy.local.programs import servers
from deploy.local.settings import StackSettings
from tests.integration.streams import cancellation, click, deletion, order, records_of

TIME_MS = 1_700_000_000_000
HOUR_MS = 3_600_000
PARTITIONS = 4
READY_S = 30.0


@dataclass
class Own:
    """A Redis and a broker that belong to one test, and may be killed."""

    folder: Path
    settings: StackSettings
    running: dict[str, psutil.Popen] = field(default_factory=dict)

    @property
    def endpoints(self) -> Endpoints:
        """Where they are."""
        return self.settings.endpoints()

    def start(self, name: str) -> None:
        """Start one, and wait until it answers; a broker has the topics then."""
        (program,) = (program for program in servers(self.settings) if program.name == name)
        log = (self.folder / f"{name}.log").open("a")

        def is_ready() -> bool:
            if (
                name not in self.running or self.running[name].poll() is not None
            ):  # a port was taken: the stack starts it anew
                self.running[name] = psutil.Popen(program.command, stdout=log, stderr=log)
            return program.is_ready()

        wait(is_ready)
        if name == "broker":
            self.create_topics()

    def kill(self, name: str) -> None:
        """kill -9."""
        self.running[name].kill()
        self.running[name].wait()

    def create_topics(self) -> None:
        """The topics that consumers read, and the one for dead letters."""
        client = KafkaAdminClient(bootstrap_servers=self.endpoints.kafka_bootstrap)
        try:
            for name in (*USER_TOPICS, ITEM_TOPIC, DEAD_LETTER_TOPIC):
                with contextlib.suppress(TopicAlreadyExistsError):  # a consumer's metadata request creates topics, too
                    client.create_topics([NewTopic(name, PARTITIONS, 1)])
        finally:
            client.close()

    def delete_topics(self) -> None:
        """The user topics with everything in them."""
        client = KafkaAdminClient(bootstrap_servers=self.endpoints.kafka_bootstrap)
        try:
            with contextlib.suppress(UnknownTopicOrPartitionError):
                client.delete_topics([*USER_TOPICS, DEAD_LETTER_TOPIC])
        finally:
            client.close()

    def lose_the_last_writes(self, num_bytes: int) -> None:
        """Cut the end of Redis' file, which must not be running: it comes back without what was written last."""
        path = self.settings.root / "redis" / "appendonly.aof"
        os.truncate(path, max(path.stat().st_size - num_bytes, 0))


@contextmanager
def own_servers(folder: Path, names: Sequence[str] = ("redis", "broker")) -> Iterator[Own]:
    """Both, or those with these names, started."""
    own = Own(folder, StackSettings.on_free_ports(folder))
    try:
        for name in names:
            own.start(name)
        yield own
    finally:
        for process in own.running.values():
            if process.is_running():
                process.kill()
                process.wait()


class Consumers:
    """`python -m streaming user`, several times over, each started again when it was killed."""

    def __init__(self, endpoints: Endpoints, folder: Path, count: int = 2, **settings: str) -> None:
        self._endpoints, self._folder, self._settings = endpoints, folder, settings
        self.processes: list[subprocess.Popen[bytes] | None] = [None] * count
        self.logs = [folder / f"consumer-{number}.log" for number in range(count)]

    def start(self, number: int) -> None:
        """Start one that does not run."""
        environment = {
            **os.environ,
            **self._endpoints.environment(),
            "BAGUNI_FETCH_WAIT_MS": "20",
            "BAGUNI_READY_FILE": str(self._folder / f"{number}.ready"),
            **self._settings,
        }
        with self.logs[number].open("a") as log:
            self.processes[number] = subprocess.Popen(
                [sys.executable, "-m", "streaming", "user"], env=environment, stdout=log, stderr=log
            )

    def kill(self, number: int) -> None:
        """kill -9."""
        process = self.processes[number]
        assert process is not None
        process.kill()
        process.wait()
        self.processes[number] = None

    def __enter__(self) -> Consumers:
        for number in range(len(self.processes)):
            self.start(number)
        wait(lambda: any((self._folder / f"{n}.ready").is_file() for n in range(len(self.processes))))
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            if process is not None and process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.processes:
            if process is not None:
                assert process.wait(15) in (0, -signal.SIGKILL), [log.read_text()[-3000:] for log in self.logs]


def shop_events(count: int, seed: int, users: int = 500) -> list[Message]:
    """Clicks, orders, some of them cancelled, and a few users who want to be forgotten; clocks differ by an hour either way."""
    rng = random.Random(seed)
    found: list[Message] = []
    orders: list[tuple[str, str]] = []
    for number in range(count):
        user_id, kind = f"user-{rng.randrange(users)}", rng.random()
        time_ms = TIME_MS + number * 1_000 + rng.randrange(-HOUR_MS, HOUR_MS)
        if kind < 0.7:
            found.append(click(user_id, str(rng.randrange(1_000)), time_ms))
        elif kind < 0.96:
            orders.append((user_id, f"order-{number}"))
            items = [str(rng.randrange(1_000)) for _ in range(rng.randrange(1, 8))]
            found.append(order(user_id, f"order-{number}", *items, time_ms=time_ms))
        elif kind < 0.998 and orders:
            found.append(cancellation(*rng.choice(orders), time_ms))
        else:
            found.append(deletion(user_id, time_ms))
    return found


def shuffled(messages: Sequence[Message], seed: int, positions: int = 1_000, again: float = 0.1) -> list[Message]:
    """Each up to so many positions from where it was, and some twice: what a producer that retries makes of it."""
    rng = random.Random(seed)
    sent = [message for message in messages for _ in range(2 if rng.random() < again else 1)]
    places = sorted(range(len(sent)), key=lambda place: place + rng.uniform(0, positions))
    return [sent[place] for place in places]


class Sender:
    """Produces messages, and knows when the broker has them."""

    def __init__(self, endpoints: Endpoints) -> None:
        self._producer = KafkaProducer(
            bootstrap_servers=endpoints.kafka_bootstrap,
            linger_ms=5,
            delivery_timeout_ms=60_000,
            request_timeout_ms=5_000,
        )

    def send(self, messages: Sequence[Message], per_s: float | None = None) -> None:
        """Send all of them, at a rate if one is given."""
        started = time.monotonic()
        for number, message in enumerate(messages):
            self._producer.send(**producible(message, f"id-{number}", "test"))
            if per_s and number % 50 == 0:
                time.sleep(max(started + number / per_s - time.monotonic(), 0))
        self._producer.flush(timeout=60)

    def send_raw(self, records: Sequence[tuple[str, bytes | None, bytes | None, list[tuple[str, bytes]]]]) -> None:
        """(topic, key, value, headers) of any kind."""
        for topic, key, value, headers in records:
            self._producer.send(topic, key=key, value=value, headers=headers)
        self._producer.flush(timeout=60)

    def close(self) -> None:
        """Close the producer."""
        self._producer.close(timeout=5)


@contextmanager
def sender(endpoints: Endpoints) -> Iterator[Sender]:
    """One that is closed at the end."""
    sending = Sender(endpoints)
    try:
        yield sending
    finally:
        sending.close()


def expected(messages: Sequence[Message]) -> dict[str, tuple[object, ...]]:
    """What histories should be of these: built at once, as everything would be read from one file."""
    changes: dict[str, list[Change]] = {}
    for message in messages:
        event = parse(dict(cloud_event_headers(message, "id", "test")), None, message.SerializeToString())
        assert isinstance(event, UserEvents)
        changes.setdefault(event.user_id, []).extend(event.changes)
    return {user_id: build(theirs) for user_id, theirs in changes.items()}


@dataclass(frozen=True)
class Compared:
    """Events of all histories that are not there, and that should not be."""

    lost: int
    surplus: int
    seconds: float


def compare(endpoints: Endpoints, should: dict[str, tuple[object, ...]], patience_s: float = 60.0) -> Compared:
    """Wait until Redis holds what it should, and say what is wrong if it does not come to that."""
    started = time.monotonic()
    with redis.Redis.from_url(endpoints.redis_url) as client:
        writer, user_ids = HistoryWriter(client), list(should)
        while True:
            try:
                stored = writer.read(user_ids)
            except UnavailableError:  # it is coming back
                stored = []
            wrong = [
                (set(should[user_id]), set(history.events))
                for user_id, history in zip(user_ids, stored, strict=False)
                if history.events != should[user_id]
            ]
            took_s = time.monotonic() - started
            if (stored and not wrong) or took_s > patience_s:
                lost, surplus = sum(len(a - b) for a, b in wrong), sum(len(b - a) for a, b in wrong)
                return Compared(lost if stored else -1, surplus, took_s)
            time.sleep(0.2)


def dead_letters(endpoints: Endpoints) -> list[dict[str, bytes]]:
    """Headers of everything in the dead-letter topic."""
    return [dict(record.headers) for record in records_of(endpoints, DEAD_LETTER_TOPIC)]


def wait(condition: Callable[[], object], timeout_s: float = READY_S) -> None:
    """Ask until the answer is yes."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            if condition():
                return
        except (redis.RedisError, KafkaError, OSError):
            pass
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        time.sleep(0.05)
