"""Join calls that wait at the same time into one. It knows no server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from baguni.domain.errors import RefusedError

Key = TypeVar("Key", bound=Hashable)
Asked = TypeVar("Asked")
Answer = TypeVar("Answer")
Send = Callable[[Key, Sequence[Asked], float], Awaitable[Sequence[Answer]]]
"""(key, what is asked, timeout in s) → an answer for each, in order."""


@dataclass(eq=False)
class _Waiter(Generic[Asked, Answer]):
    asked: Asked
    answer: asyncio.Future[Answer]
    deadline: float


class Coalescer(Generic[Key, Asked, Answer]):
    """Calls of one key that arrive while one of them is running are sent together when it ends, at most `max_calls` of them. A
    call that finds none running is sent at once, so nobody waits for company.

    Every caller gets its own answer, within its own timeout, and can be cancelled without an effect on the others. An error of
    a joint call is raised by each; after a RefusedError each is sent alone, because one of them may be at fault.
    """

    def __init__(self, send: Send[Key, Asked, Answer], max_calls: int, num_running: int = 1) -> None:
        self._send, self._max_calls, self._num_running = send, max_calls, num_running
        self._waiting: dict[Key, list[_Waiter[Asked, Answer]]] = {}
        self._running: dict[Key, int] = {}
        self._tasks: dict[asyncio.Task[None], list[_Waiter[Asked, Answer]]] = {}

    async def call(self, key: Key, asked: Asked, timeout_s: float) -> Answer:
        """Return the answer. Raises TimeoutError, or what `send` raises."""
        loop = asyncio.get_running_loop()
        waiter: _Waiter[Asked, Answer] = _Waiter(asked, loop.create_future(), loop.time() + timeout_s)
        self._waiting.setdefault(key, []).append(waiter)
        self._start(key)
        try:
            async with asyncio.timeout(timeout_s):
                return await waiter.answer
        finally:
            waiter.answer.cancel()  # nothing, if it is there

    async def close(self) -> None:
        """Cancel what waits and what is running: callers get CancelledError."""
        left = [waiter for waiting in (*self._waiting.values(), *self._tasks.values()) for waiter in waiting]
        self._waiting.clear()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for waiter in left:
            waiter.answer.cancel()

    def _start(self, key: Key) -> None:
        """Send what waits, if there is room for another call of this key."""
        while self._running.get(key, 0) < self._num_running:
            waiting = [waiter for waiter in self._waiting.pop(key, ()) if not waiter.answer.done()]
            if not waiting:
                return
            batch, rest = waiting[: self._max_calls], waiting[self._max_calls :]
            if rest:
                self._waiting[key] = rest
            self._running[key] = self._running.get(key, 0) + 1
            task = asyncio.create_task(self._run(key, batch))
            self._tasks[task] = batch
            task.add_done_callback(self._tasks.pop)

    async def _run(self, key: Key, batch: Sequence[_Waiter[Asked, Answer]]) -> None:
        try:
            try:
                await self._answer(key, batch)
            except RefusedError as error:
                if len(batch) == 1:
                    _fail(batch, error)
                for waiter in batch if len(batch) > 1 else ():
                    await self._answer_alone(key, waiter)
        except Exception as error:
            _fail(batch, error)
        finally:
            self._running[key] -= 1
            if not self._running[key]:
                del self._running[key]
            self._start(key)

    async def _answer(self, key: Key, batch: Sequence[_Waiter[Asked, Answer]]) -> None:
        """Send some calls together. The call may take as long as the most patient of them waits."""
        left_s = max(waiter.deadline for waiter in batch) - asyncio.get_running_loop().time()
        answers = await self._send(key, [waiter.asked for waiter in batch], max(left_s, 0.0))
        for waiter, answer in zip(batch, answers, strict=True):
            if not waiter.answer.done():
                waiter.answer.set_result(answer)

    async def _answer_alone(self, key: Key, waiter: _Waiter[Asked, Answer]) -> None:
        if waiter.answer.done():
            return
        try:
            await self._answer(key, [waiter])
        except Exception as error:
            _fail([waiter], error)


def _fail(batch: Sequence[_Waiter[Asked, Answer]], error: Exception) -> None:
    for waiter in batch:
        if not waiter.answer.done():
            waiter.answer.set_exception(error)
