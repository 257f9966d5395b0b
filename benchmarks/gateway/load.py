"""Load from one event loop. Open: requests start at a fixed rate whatever becomes of earlier ones, and a latency counts from
when its request was due, so a slow server is not asked less (no coordinated omission). Closed: as fast as answers come.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import numpy as np

Send = Callable[[int], Awaitable[str]]
"""Send the n-th request; what became of it, "OK" if it was answered."""


@dataclass(frozen=True)
class Load:
    """Seconds of every request, from when it was due to its answer, and what became of each."""

    latency_s: Sequence[float]
    outcomes: Sequence[str]
    elapsed_s: float

    def ms(self, percentile: float) -> float:
        """Latency of the answered ones."""
        answered = [s for s, outcome in zip(self.latency_s, self.outcomes, strict=True) if outcome == "OK"]
        return 1e3 * float(np.percentile(answered, percentile)) if answered else float("nan")

    def share(self, outcome: str) -> float:
        """Of all requests."""
        return self.outcomes.count(outcome) / len(self.outcomes) if self.outcomes else 0.0

    @property
    def answered_per_s(self) -> float:
        """Goodput."""
        return self.outcomes.count("OK") / self.elapsed_s


async def open_loop(send: Send, per_s: float, seconds: float) -> Load:
    """`per_s` requests a second for `seconds`."""
    started = time.perf_counter()
    latency_s: list[float] = []
    outcomes: list[str] = []

    async def one(number: int, due: float) -> None:
        outcome = await send(number)
        latency_s.append(time.perf_counter() - due)
        outcomes.append(outcome)

    running = []
    for number in range(int(per_s * seconds)):
        due = started + number / per_s
        if (early := due - time.perf_counter()) > 0:
            await asyncio.sleep(early)
        running.append(asyncio.create_task(one(number, due)))
    await asyncio.gather(*running)
    return Load(latency_s, outcomes, max(time.perf_counter() - started, seconds))


async def closed_loop(send: Send, in_flight: int, seconds: float) -> Load:
    """Always `in_flight` requests, for `seconds`."""
    started = time.perf_counter()
    latency_s: list[float] = []
    outcomes: list[str] = []
    numbers = itertools.count()

    async def ask() -> None:
        while (sent := time.perf_counter()) < started + seconds:
            outcome = await send(next(numbers))
            latency_s.append(time.perf_counter() - sent)
            outcomes.append(outcome)

    await asyncio.gather(*(ask() for _ in range(in_flight)))
    return Load(latency_s, outcomes, time.perf_counter() - started)
