"""A part that is away is asked seldom, and everybody asks again as soon as it is back."""

from __future__ import annotations

import asyncio

import pytest

from baguni.domain.errors import InvalidInputError, UnavailableError
from server.lists.breaker import Breaker


class Part:
    """Something that can be away, under a clock that the test moves."""

    def __init__(self) -> None:
        self.time, self.calls, self.away = 0.0, 0, True
        self.breaker = Breaker("redis", failures=3, open_s=1.0, clock=lambda: self.time)

    async def answer(self) -> str:
        self.calls += 1
        if self.away:
            raise UnavailableError("redis", "refused")
        return "here"

    async def ask(self, counted: bool = True) -> str | None:
        try:
            return await self.breaker.call(self.answer, counted)
        except UnavailableError:
            return None


async def test_after_some_failures_nobody_waits_for_it() -> None:
    part = Part()
    for _ in range(10):
        assert await part.ask() is None
    assert part.calls == 3
    assert part.breaker.is_open


async def test_one_call_tries_it_after_a_while_and_the_others_do_not_wait() -> None:
    part = Part()
    for _ in range(3):
        await part.ask()
    part.time = 1.5
    trying = asyncio.Event()

    async def slow() -> str:
        part.calls += 1
        await trying.wait()
        return "here"

    probe = asyncio.create_task(part.breaker.call(slow))
    await asyncio.sleep(0)
    assert await part.ask() is None
    assert part.calls == 4
    trying.set()
    assert await probe == "here"
    part.away = False
    assert await part.ask() == "here"


async def test_a_part_that_stays_away_is_tried_once_a_second() -> None:
    part = Part()
    for tenth in range(100):
        part.time = tenth / 10
        await part.ask()
    assert 3 + 8 <= part.calls <= 3 + 10


async def test_a_success_forgets_earlier_failures_and_a_caller_in_a_hurry_counts_for_nothing() -> None:
    part = Part()
    for away in (True, True, False, True, True):
        part.away = away
        await part.ask()
    for _ in range(10):
        await part.ask(counted=False)
    assert not part.breaker.is_open
    await part.ask()
    assert part.breaker.is_open


async def test_an_error_of_the_caller_is_no_failure_of_the_part() -> None:
    breaker = Breaker("triton", failures=1, open_s=1.0)

    async def refuse() -> None:
        raise InvalidInputError("codes has 300, expected at most 255")

    for _ in range(3):
        with pytest.raises(InvalidInputError):
            await breaker.call(refuse)
    assert not breaker.is_open


async def test_one_outage_that_many_callers_meet_counts_once() -> None:
    breaker = Breaker("milvus", failures=3, open_s=1.0)

    async def joint(is_repeated: bool) -> None:
        raise UnavailableError("milvus", "no answer", is_repeated)

    for number in range(40):  # two joint calls of twenty callers
        with pytest.raises(UnavailableError):
            await breaker.call(lambda is_repeated=number % 20 > 0: joint(is_repeated))
    assert not breaker.is_open
    with pytest.raises(UnavailableError):
        await breaker.call(lambda: joint(False))
    assert breaker.is_open
