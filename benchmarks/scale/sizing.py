"""From what was measured to what a shop needs: cores, memory, processes, and what a million recommendations cost."""

from __future__ import annotations

import math
from dataclasses import dataclass

UTILISATION = 0.5  # of a core that serves people
CORE_HOUR, GB_HOUR = 0.04, 0.005  # dollars; put your own prices here
SPARE = 2  # of each at least, so that one may die


@dataclass(frozen=True)
class Unit:
    """What one Recommend costs, in CPU ms of each part, and what is held in memory."""

    gateway_ms: float
    encoder_ms: float
    search_ms: float
    history_bytes: float
    gateway_mb: float
    milvus_mb: float


@dataclass(frozen=True)
class Need:
    """Of a shop: cores and processes that are busy UTILISATION of the time, GB, and dollars a million recommendations."""

    requests: int
    users: int
    items: int
    gateways: int
    triton_cores: int
    milvus_cores: int
    redis_gb: float
    milvus_gb: float
    memory_gb: float
    dollars_a_million: float


def need(unit: Unit, requests: int, users: int, items: int) -> Need:
    """At `requests` a second around the clock."""
    gateways, triton, milvus = (
        max(math.ceil(requests * ms / 1e3 / UTILISATION), SPARE)
        for ms in (unit.gateway_ms, unit.encoder_ms, unit.search_ms)
    )
    redis_gb = SPARE * users * unit.history_bytes / 1e9
    milvus_gb = SPARE * unit.milvus_mb / 1e3
    memory_gb = redis_gb + milvus_gb + gateways * unit.gateway_mb / 1e3
    hour = CORE_HOUR * (gateways + triton + milvus + SPARE) + GB_HOUR * memory_gb
    dollars = hour / (requests * 3600) * 1e6
    return Need(requests, users, items, gateways, triton, milvus, redis_gb, milvus_gb, memory_gb, dollars)


def exponent(sizes: list[int], costs: list[float]) -> float:
    """b of cost ≈ a · size^b, by least squares of the logarithms: 1 grows with the size, 0 does not grow.

    >>> round(exponent([10, 100, 1000], [2.0, 20.0, 200.0]), 6)
    1.0
    """
    x, y = [math.log(size) for size in sizes], [math.log(cost) for cost in costs]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)
