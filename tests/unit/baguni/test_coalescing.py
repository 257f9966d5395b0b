"""Calls that are joined: each caller gets its own answer, whatever happens to the others."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from contextvars import ContextVar

import pytest

from baguni.coalescing import Coalescer
from baguni.domain.errors import RefusedError, UnavailableError


class Server:
    """Answers a number with its double, when the test lets it; notes what was sent together."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, list[int]]] = []
        self.timeouts: list[float] = []
        self.open = asyncio.Event()
        self.refused: set[int] = set()
        self.is_away = False

    async def send(self, key: str, asked: Sequence[int], timeout_s: float) -> list[int]:
        self.sent.append((key, list(asked)))
        self.timeouts.append(timeout_s)
        await self.open.wait()
        if self.is_away:
            raise UnavailableError("test", "is away")
        if self.refused & set(asked):
            raise RefusedError("test", "not these")
        return [2 * number for number in asked]


async def test_the_first_is_sent_at_once_and_the_next_together() -> None:
    server = Server()
    coalescer = Coalescer("test", server.send, max_calls=3)
    calls = [asyncio.create_task(coalescer.call("a", number, 10.0)) for number in range(6)]
    other = asyncio.create_task(coalescer.call("b", 100, 10.0))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert server.sent == [("a", [0]), ("b", [100])]
    server.open.set()
    assert await asyncio.gather(*calls, other) == [0, 2, 4, 6, 8, 10, 200]
    assert server.sent == [("a", [0]), ("b", [100]), ("a", [1, 2, 3]), ("a", [4, 5])]


async def test_a_joint_call_may_take_as_long_as_the_most_patient_waits() -> None:
    server = Server()
    coalescer = Coalescer("test", server.send, max_calls=3)
    calls = [
        asyncio.create_task(coalescer.call("a", number, patience)) for number, patience in ((0, 9), (1, 5), (2, 7))
    ]
    await asyncio.sleep(0.01)
    server.open.set()
    await asyncio.gather(*calls)
    assert 6 < server.timeouts[1] <= 7


async def test_who_is_impatient_fails_alone() -> None:
    server = Server()
    coalescer = Coalescer("test", server.send, max_calls=3)
    first = asyncio.create_task(coalescer.call("a", 0, 60.0))
    await asyncio.sleep(0)
    impatient, patient = (
        asyncio.create_task(coalescer.call("a", number, wait)) for number, wait in ((1, 0.01), (2, 60))
    )
    with pytest.raises(UnavailableError, match="no answer within") as late:
        await impatient
    assert late.value.is_repeated  # it was never sent: no sign of an outage
    server.open.set()
    assert [await first, await patient] == [0, 4]
    assert server.sent[1] == ("a", [2])  # who has left is not asked for


async def test_an_outage_is_raised_to_all_that_were_sent_and_counts_once() -> None:
    server = Server()
    coalescer = Coalescer("test", server.send, max_calls=8)
    first = asyncio.create_task(coalescer.call("a", 0, 10.0))
    await asyncio.sleep(0)
    joint = [asyncio.create_task(coalescer.call("a", number, 10.0)) for number in range(1, 5)]
    server.open.set()
    assert await first == 0
    server.is_away = True
    errors = await asyncio.gather(*joint, return_exceptions=True)
    assert all(isinstance(error, UnavailableError) for error in errors)
    assert [error.is_repeated for error in errors] == [False, True, True, True]
    server.is_away = False
    assert await coalescer.call("a", 5, 10.0) == 10


async def test_a_call_that_hangs_counts_once_and_does_not_stop_the_others() -> None:
    """Callers who give up together cancel their joint call: the next one is sent."""
    server = Server()
    coalescer = Coalescer("test", server.send, max_calls=8)
    hanging = [asyncio.create_task(coalescer.call("a", number, 0.02)) for number in range(4)]
    errors = await asyncio.gather(*hanging, return_exceptions=True)
    assert [error.is_repeated for error in errors] == [False, True, True, True]
    server.open.set()
    assert await coalescer.call("a", 7, 10.0) == 14


async def test_a_call_that_is_sent_when_its_callers_have_no_time_left_is_no_outage() -> None:
    """The callers of the second joint call waited for the first one until their time was over."""
    server = Server()
    coalescer = Coalescer("test", server.send, max_calls=8)
    first = asyncio.create_task(coalescer.call("a", 0, 10.0))
    await asyncio.sleep(0)
    hanging = [asyncio.create_task(coalescer.call("a", number, 1.0)) for number in (1, 2)]
    await asyncio.sleep(0.8)
    first.cancel()
    errors = await asyncio.gather(*hanging, return_exceptions=True)
    assert server.sent[1:] in ([("a", [1, 2])], [])  # unless the machine was so slow that they had left
    assert [error.is_repeated for error in errors] == [True, True]


async def test_a_refusal_is_raised_to_all_that_were_sent() -> None:
    server = Server()
    server.refused = {2}
    coalescer = Coalescer("test", server.send, max_calls=8)
    calls = [asyncio.create_task(coalescer.call("a", number, 10.0)) for number in range(4)]
    server.open.set()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert answers[0] == 0  # sent alone
    assert all(isinstance(answer, RefusedError) for answer in answers[1:])


async def test_a_joint_call_runs_in_the_context_of_one_of_its_callers() -> None:
    caller, seen = ContextVar("caller", default=""), list[str]()

    async def send(key: str, asked: Sequence[int], timeout_s: float) -> list[int]:
        seen.append(caller.get())
        await asyncio.sleep(0.001)
        return list(asked)

    coalescer = Coalescer("test", send, max_calls=1)

    async def call(name: str) -> None:
        caller.set(name)
        await coalescer.call("a", 1, 10.0)

    await asyncio.gather(*(call(name) for name in "xyz"))
    assert seen == ["x", "y", "z"]


async def test_closing_ends_what_waits() -> None:
    coalescer = Coalescer("test", Server().send, max_calls=8)
    calls = [asyncio.create_task(coalescer.call("a", number, 60.0)) for number in range(3)]
    await asyncio.sleep(0)
    await coalescer.close()
    ended = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(each, asyncio.CancelledError) for each in ended)


@pytest.mark.parametrize("seed", range(30))
async def test_whatever_happens_every_caller_gets_its_own_answer(seed: int) -> None:
    """Calls of several keys with deadlines and cancellations, to a server that answers in any time, refuses some numbers and
    fails now and then."""
    chance = random.Random(seed)
    refused = {number for number in range(300) if chance.random() < 0.02}

    async def send(key: str, asked: Sequence[int], timeout_s: float) -> list[str]:
        await asyncio.sleep(chance.random() * 0.004)
        if chance.random() < 0.1:
            raise UnavailableError("test", "is away")
        if refused & set(asked):
            raise RefusedError("test", "not these")
        return [f"{key}{number}" for number in asked]

    coalescer = Coalescer("test", send, max_calls=5, num_running=chance.choice((1, 2)))
    outcomes: list[tuple[int, str, object]] = []

    async def ask(number: int) -> None:
        await asyncio.sleep(chance.random() * 0.03)
        key = chance.choice("abc")
        call = asyncio.create_task(coalescer.call(key, number, chance.choice((0.002, 5.0, 5.0))))
        if chance.random() < 0.2:
            await asyncio.sleep(chance.random() * 0.004)
            call.cancel()
        try:
            answer = await call
        except (UnavailableError, RefusedError, asyncio.CancelledError) as error:
            outcomes.append((number, key, error))
        else:
            outcomes.append((number, key, answer))

    await asyncio.gather(*(ask(number) for number in range(300)))
    answered = [(number, key, answer) for number, key, answer in outcomes if isinstance(answer, str)]
    assert len(outcomes) == 300
    assert len(answered) > 50
    assert all(answer == f"{key}{number}" for number, key, answer in answered)
    assert not coalescer._waiting
    assert not coalescer._running
