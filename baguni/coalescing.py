"""Join calls that wait at the same time into one. It knows no server."""

from __future__ import annotations

import asyncio
import contextvars
import math
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar

from baguni.domain.errors import UnavailableError

Key = TypeVar("Key", bound=Hashable)
Asked = TypeVar("Asked")
Answer = TypeVar("Answer")
Send = Callable[[Key, Sequence[Asked], float], Awaitable[Sequence[Answer]]]
"""(key, what is asked, timeout in s) → an answer for each, in order."""


@dataclass(eq=False)
class _Waiter(Generic[Asked, Answer]):
    """One caller; times are the event loop's. `batch`: the callers of its joint call, once `task` sends it."""

    asked: Asked
    answer: asyncio.Future[Answer]
    deadline: float
    sent_at: float = math.inf
    context: contextvars.Context = field(default_factory=contextvars.copy_context)
    batch: Sequence[_Waiter[Asked, Answer]] = ()
    task: asyncio.Task[None] | None = None

    @property
    def is_first(self) -> bool:
        """Return whether it is the first caller of its joint call."""
        return bool(self.batch) and self.batch[0] is self

    def blames_server(self, timeout_s: float) -> bool:
        """Return whether a timeout of this caller counts as the server's: once for a joint call, and only if the call had half
        of the caller's time. One that was sent after the caller had waited for most of its time shows nothing."""
        return self.is_first and self.deadline - self.sent_at >= timeout_s / 2


class Coalescer(Generic[Key, Asked, Answer]):
    """Join calls: while `num_running` calls of a key are running, further calls of that key wait; when one ends, they are sent
    together, at most `max_calls` at a time. A call that finds room is sent at once, so nobody waits for company.

    Every caller gets its own answer, within its own timeout, and can be cancelled without an effect on the others; a joint call
    without a caller left is cancelled. An error of a joint call is raised to each of its callers. UnavailableError is
    `is_repeated` for all but the first: it happened once.
    """

    def __init__(self, server: str, send: Send[Key, Asked, Answer], max_calls: int, num_running: int = 1) -> None:
        self._server, self._send, self._max_calls, self._num_running = server, send, max_calls, num_running
        self._waiting: dict[Key, list[_Waiter[Asked, Answer]]] = {}
        self._running: dict[Key, int] = {}
        self._tasks: dict[asyncio.Task[None], Sequence[_Waiter[Asked, Answer]]] = {}

    async def call(self, key: Key, asked: Asked, timeout_s: float) -> Answer:
        """Return the answer. Raises what `send` raises, or UnavailableError after `timeout_s`."""
        loop = asyncio.get_running_loop()
        waiter: _Waiter[Asked, Answer] = _Waiter(asked, loop.create_future(), loop.time() + timeout_s)
        self._waiting.setdefault(key, []).append(waiter)
        self._start(key)
        try:
            async with asyncio.timeout(timeout_s):
                return await waiter.answer
        except TimeoutError as error:
            message = f"no answer within {timeout_s:.3f} s"
            raise UnavailableError(self._server, message, is_repeated=not waiter.blames_server(timeout_s)) from error
        finally:
            waiter.answer.cancel()  # no effect if the answer has arrived
            if waiter.task is not None and all(each.answer.done() for each in waiter.batch):
                waiter.task.cancel()

    async def close(self) -> None:
        """Cancel what waits and what is running: callers get CancelledError."""
        for waiting in (*self._waiting.values(), *self._tasks.values()):
            for waiter in waiting:
                waiter.answer.cancel()
        self._waiting.clear()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

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
            task = asyncio.create_task(self._run(key, batch), context=batch[0].context)
            for waiter in batch:
                waiter.batch, waiter.task, waiter.sent_at = batch, task, asyncio.get_running_loop().time()
            self._tasks[task] = batch
            task.add_done_callback(partial(self._ended, key, batch))

    async def _run(self, key: Key, batch: Sequence[_Waiter[Asked, Answer]]) -> None:
        """Send some calls together. The joint call may take as long as its most patient caller waits."""
        left_s = max(waiter.deadline for waiter in batch) - asyncio.get_running_loop().time()
        answers = await self._send(key, [waiter.asked for waiter in batch], max(left_s, 0.0))
        for waiter, answer in zip(batch, answers, strict=True):
            if not waiter.answer.done():
                waiter.answer.set_result(answer)

    def _ended(self, key: Key, batch: Sequence[_Waiter[Asked, Answer]], task: asyncio.Task[None]) -> None:
        """Give callers without an answer the error of their joint call, and send the next one."""
        del self._tasks[task]
        self._running[key] -= 1
        if not self._running[key]:
            del self._running[key]
        error = UnavailableError(self._server, "the call was cancelled") if task.cancelled() else task.exception()
        for waiter in batch:
            if not waiter.answer.done():
                waiter.answer.set_exception(_for(waiter, error or UnavailableError(self._server, "no answer")))
        self._start(key)


def _for(waiter: _Waiter[Asked, Answer], error: BaseException) -> BaseException:
    """Return the error of a joint call for one of its callers."""
    if not isinstance(error, UnavailableError) or waiter.is_first:
        return error
    repeated = UnavailableError(error.part, error.message, is_repeated=True)
    repeated.__cause__ = error
    return repeated
