"""What users cost as they become more: bytes of Redis, loading, and reading one."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import redis

from baguni.domain.history import Action, Change, HistoryEvent
from baguni.stores.history_store import HistoryWriter

EVENTS, AT_ONCE, READS = 20, 500, 2_000
START_MS, MINUTE_MS = 1_700_000_000_000, 60_000


@dataclass(frozen=True)
class UsersCost:
    """Of users with EVENTS events each."""

    users: int
    bytes_a_user: float
    events_a_second: float
    read_ms: float


def measure(url: str, count: int) -> UsersCost:
    """Of `count` users in an empty database."""
    with redis.Redis.from_url(url) as client:
        client.flushdb()
        before, started = client.info("memory")["used_memory"], time.monotonic()
        writer = HistoryWriter(client)
        for _ in writer.apply_each(_histories(count)):
            pass
        took_s = time.monotonic() - started
        stored = client.info("memory")["used_memory"] - before
        rng, reads = np.random.default_rng(1), []
        for number in rng.integers(0, count, READS).tolist():
            asked = time.perf_counter()
            writer.read([f"u{number}"])
            reads.append(time.perf_counter() - asked)
        client.flushdb()
    return UsersCost(count, stored / count, count * EVENTS / took_s, 1e3 * statistics.median(reads))


def _histories(count: int) -> Iterator[dict[str, list[Change]]]:
    rng = np.random.default_rng(0)
    for first in range(0, count, AT_ONCE):
        some = range(first, min(first + AT_ONCE, count))
        items = rng.integers(0, 50_000, (len(some), EVENTS)).tolist()
        yield {
            f"u{number}": [
                HistoryEvent(str(item), Action.ORDERED, START_MS + place // 5 * MINUTE_MS, f"{number}-{place // 5}")
                for place, item in enumerate(row)
            ]
            for number, row in zip(some, items, strict=True)
        }
