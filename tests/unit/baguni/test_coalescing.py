"""Calls that are joined: each caller gets its own answer, whatever happens to the others."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

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
    coalescer = Coalescer(server.send, max_calls=3)
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
    coalescer = Coalescer(server.send, max_calls=3)
    calls = [
        asyncio.create_task(coalescer.call("a", number, patience)) for number, patience in ((0, 9), (1, 5), (2, 7))
    ]
    await asyncio.sleep(0.01)
    server.open.set()
    await asyncio.gather(*calls)
    assert 6 < server.timeouts[1] <= 7


async def test_who_is_impatient_fails_alone() -> None:
    server = Server()
    coalescer = Coalescer(server.send, max_calls=3)
    first = asyncio.create_task(coalescer.call("a", 0, 60.0))
    await asyncio.sleep(0)
    impatient, patient = (
        asyncio.create_task(coalescer.call("a", number, wait)) for number, wait in ((1, 0.01), (2, 60))
    )
    with pytest.raises(TimeoutError):
        await impatient
    server.open.set()
    assert [await first, await patient] == [0, 4]
    assert server.sent[1] == ("a", [2])  # who has left is not asked for


async def test_a_refusal_is_the_fault_of_one() -> None:
    server = Server()
    server.refused = {2}
    coalescer = Coalescer(server.send, max_calls=8)
    calls = [asyncio.create_task(coalescer.call("a", number, 10.0)) for number in range(4)]
    server.open.set()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [answers[n] for n in (0, 1, 3)] == [0, 2, 6]
    assert isinstance(answers[2], RefusedError)


async def test_a_server_that_is_unavailable_fails_all_that_were_sent_and_later_calls_work() -> None:
    server = Server()
    server.is_away = True
    coalescer = Coalescer(server.send, max_calls=8)
    calls = [asyncio.create_task(coalescer.call("a", number, 10.0)) for number in range(3)]
    server.open.set()
    assert all(isinstance(each, UnavailableError) for each in await asyncio.gather(*calls, return_exceptions=True))
    server.is_away = False
    assert await coalescer.call("a", 5, 10.0) == 10


async def test_closing_ends_what_waits() -> None:
    coalescer = Coalescer(Server().send, max_calls=8)
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
    refused = {number for number in range(300) if chance.random() < 0.05}

    async def send(key: str, asked: Sequence[int], timeout_s: float) -> list[str]:
        await asyncio.sleep(chance.random() * 0.004)
        if chance.random() < 0.1:
            raise UnavailableError("test", "is away")
        if refused & set(asked):
            raise RefusedError("test", "not these")
        return [f"{key}{number}" for number in asked]

    coalescer = Coalescer(send, max_calls=5, num_running=chance.choice((1, 2)))
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
        except (TimeoutError, UnavailableError, RefusedError, asyncio.CancelledError) as error:
            outcomes.append((number, key, error))
        else:
            outcomes.append((number, key, answer))

    await asyncio.gather(*(ask(number) for number in range(300)))
    answered = [(number, key, answer) for number, key, answer in outcomes if isinstance(answer, str)]
    assert len(outcomes) == 300
    assert len(answered) > 100
    assert all(answer == f"{key}{number}" for number, key, answer in answered)
    assert all(number in refused for number, _, error in outcomes if isinstance(error, RefusedError))
    assert not coalescer._waiting
    assert not coalescer._running
