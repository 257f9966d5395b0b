"""What the pipeline asks beside the release: stored histories, what it remembers of users, and how every server is asked."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from baguni.history_store import HistoryReader
from server.breaker import Breaker
from server.deadline import Deadline
from server.metrics import Metrics
from server.settings import ServerSettings
from server.telemetry import Telemetry
from server.users import UserCache

T = TypeVar("T")
STAGES = {"history": "redis", "encode": "triton", "search": "milvus", "score": "triton", "generate": "triton"}
"""The stages of a request that ask a server, and which one."""


@dataclass(frozen=True)
class Parts:
    """One a process."""

    histories: HistoryReader
    users: UserCache
    metrics: Metrics
    telemetry: Telemetry
    breakers: dict[str, Breaker]

    @classmethod
    def of(cls, settings: ServerSettings, histories: HistoryReader, metrics: Metrics, telemetry: Telemetry) -> Parts:
        """Empty caches, closed breakers."""
        failures, open_s = settings.breaker_failures, settings.breaker_open_s
        breakers = {stage: Breaker(part, failures, open_s) for stage, part in STAGES.items()}
        return cls(histories, UserCache(settings.remembered_users), metrics, telemetry, breakers)

    async def ask(self, stage: str, own_s: float, deadline: Deadline, make: Callable[[float], Awaitable[T]]) -> T:
        """What a stage's server answers to `make(timeout in s)` within the stage's own limit and what is left of the deadline.
        Raises UnavailableError or DeadlineExceeded."""
        timeout_s = deadline.limit(own_s)
        with self.metrics.stage_s.labels(stage).time(), self.telemetry.stage(stage, STAGES[stage]):
            return await self.breakers[stage].call(lambda: make(timeout_s), counted=timeout_s == own_s)
