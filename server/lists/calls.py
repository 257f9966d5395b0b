"""Calls of other servers for a list, and what a process remembers between requests."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import redis.asyncio
from cachetools import LRUCache
from numpy.typing import NDArray

from baguni.domain.errors import UnavailableError
from baguni.stores.history_store import HistoryReader
from baguni.stores.placements import PlacementReader
from server.lists.breaker import Breaker
from server.lists.deadline import Deadline, DeadlineExceeded
from server.lists.exact import ExactSearch
from server.lists.users import UserCache
from server.release.active_release import Serving
from server.settings import ServerSettings
from server.telemetry.capture import stage_ms
from server.telemetry.metrics import Metrics
from server.telemetry.tracing import Telemetry

T = TypeVar("T")
Query = TypeVar("Query")
Clicks = tuple[NDArray[np.int64], NDArray[np.float64]]
"""Ascending indexes of items that were clicked at a placement, and their weighted counts."""
FAILURES = (UnavailableError, DeadlineExceeded)
REMEMBERED_PLACEMENTS = 256


class Stage(NamedTuple):
    """A step of a request that asks a server. `timeout`: the setting with its limit."""

    server: str
    timeout: str = ""


STAGES = {
    "history": Stage("redis", "history_timeout_s"),
    "popular": Stage("redis", "history_timeout_s"),
    "encode": Stage("triton", "encode_timeout_s"),
    "search": Stage("milvus", "search_timeout_s"),
    "similar": Stage("milvus", "search_timeout_s"),
    "exact": Stage("gateway", "search_timeout_s"),
    "score": Stage("triton", "score_timeout_s"),
    "generate": Stage("triton"),
}


@dataclass(frozen=True)
class Calls:
    """Clients, caches and circuit breakers of one process, shared by its requests."""

    histories: HistoryReader
    placements: PlacementReader
    clicks: LRUCache[tuple[str, str, int], Clicks]
    users: UserCache
    metrics: Metrics
    telemetry: Telemetry
    breakers: dict[str, Breaker]
    exact: ExactSearch

    @classmethod
    def of(cls, settings: ServerSettings, client: redis.asyncio.Redis, metrics: Metrics, telemetry: Telemetry) -> Calls:
        """Return empty caches and closed breakers."""
        failures, open_s = settings.breaker_failures, settings.breaker_open_s
        return cls(
            HistoryReader(client),
            PlacementReader(client),
            LRUCache(REMEMBERED_PLACEMENTS),
            UserCache(settings.remembered_users),
            metrics,
            telemetry,
            {name: Breaker(stage.server, failures, open_s) for name, stage in STAGES.items()},
            ExactSearch(),
        )

    async def close(self) -> None:
        """Cancel what waits."""
        await self.histories.close()
        await self.exact.close()


@dataclass(frozen=True)
class ListRequest(Generic[Query]):
    """One request while its list is made. `is_bulk`: no shopper waits, and a call may take all that is left of the deadline."""

    query: Query
    serving: Serving
    calls: Calls
    settings: ServerSettings
    deadline: Deadline
    is_bulk: bool = False

    async def ask(self, name: str, make: Callable[[float], Awaitable[T]], reserve_s: float = 0.0) -> T:
        """Return what `make(timeout in s)` returns, within the stage's limit and what is left of the deadline less `reserve_s`.
        Raises UnavailableError or DeadlineExceeded."""
        calls, stage = self.calls, STAGES[name]
        own_s = math.inf if self.is_bulk else float(getattr(self.settings, stage.timeout))
        timeout_s = self.deadline.limit(own_s, reserve_s)
        started = time.perf_counter()
        try:
            with calls.telemetry.stage(name, stage.server):
                return await calls.breakers[name].call(lambda: make(timeout_s), counted=timeout_s == own_s)
        finally:
            took_s = time.perf_counter() - started
            calls.metrics.stage_s.labels(name).observe(took_s)
            if (taken := stage_ms.get()) is not None:
                taken[name] = round(1e3 * took_s, 3)


async def in_time(reading: Awaitable[T], timeout_s: float) -> T:
    """Return what Redis answers. Raises UnavailableError if that takes longer."""
    try:
        async with asyncio.timeout(timeout_s):
            return await reading
    except TimeoutError as error:
        raise UnavailableError("redis", f"no answer within {timeout_s:.3f} s") from error
