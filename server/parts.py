"""What the pipeline asks beside the release: stored histories, what it remembers of users, and how every server is asked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import redis.asyncio
from cachetools import LRUCache
from numpy.typing import NDArray

from baguni.errors import UnavailableError
from baguni.history_store import HistoryReader
from baguni.placements import PlacementReader
from server.breaker import Breaker
from server.capture import stage_ms
from server.deadline import Deadline, DeadlineExceeded
from server.metrics import Metrics
from server.settings import ServerSettings
from server.telemetry import Telemetry
from server.users import UserCache

T = TypeVar("T")
Clicks = tuple[NDArray[np.int64], NDArray[np.float64]]
"""Indexes of items that were clicked at a placement, in their order, and how often."""
FAILURES = (UnavailableError, DeadlineExceeded)
REMEMBERED_PLACEMENTS = 256
STAGES = {
    "history": "redis",
    "popular": "redis",
    "encode": "triton",
    "search": "milvus",
    "score": "triton",
    "generate": "triton",
}
"""The stages of a request that ask a server, and which one."""


@dataclass(frozen=True)
class Parts:
    """One a process."""

    histories: HistoryReader
    placements: PlacementReader
    clicks: LRUCache[tuple[str, str, int], Clicks]
    users: UserCache
    metrics: Metrics
    telemetry: Telemetry
    breakers: dict[str, Breaker]

    @classmethod
    def of(cls, settings: ServerSettings, client: redis.asyncio.Redis, metrics: Metrics, telemetry: Telemetry) -> Parts:
        """Empty caches, closed breakers."""
        failures, open_s = settings.breaker_failures, settings.breaker_open_s
        breakers = {stage: Breaker(part, failures, open_s) for stage, part in STAGES.items()}
        return cls(
            HistoryReader(client),
            PlacementReader(client),
            LRUCache(REMEMBERED_PLACEMENTS),
            UserCache(settings.remembered_users),
            metrics,
            telemetry,
            breakers,
        )

    async def ask(self, stage: str, own_s: float, deadline: Deadline, make: Callable[[float], Awaitable[T]]) -> T:
        """What a stage's server answers to `make(timeout in s)` within the stage's own limit and what is left of the deadline.
        Raises UnavailableError or DeadlineExceeded."""
        timeout_s = deadline.limit(own_s)
        started = time.perf_counter()
        try:
            with self.telemetry.stage(stage, STAGES[stage]):
                return await self.breakers[stage].call(lambda: make(timeout_s), counted=timeout_s == own_s)
        finally:
            took_s = time.perf_counter() - started
            self.metrics.stage_s.labels(stage).observe(took_s)
            if (taken := stage_ms.get()) is not None:
                taken[stage] = round(1e3 * took_s, 3)


async def in_time(reading: Awaitable[T], timeout_s: float) -> T:
    """What Redis answers, or UnavailableError when it does not come in time."""
    try:
        async with asyncio.timeout(timeout_s):
            return await reading
    except TimeoutError as error:
        raise UnavailableError("redis", f"no answer within {timeout_s:.3f} s") from error
