"""Tasks that run beside the requests. Each is started again when it fails, which is logged and counted; while a necessary one
does not run, the process is not ready.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from prometheus_client import Counter

log = logging.getLogger(__name__)
FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 5.0  # before a task is started again; each failure in a row doubles it
SOUND_S = 1.0  # a task that has run that long is sound again


async def _nothing() -> None:
    """Do nothing: nobody asks whether the process is sound."""


class Background:
    """The tasks of one process. `on_change` is called when `is_sound` may have changed."""

    def __init__(self, restarts: Counter, on_change: Callable[[], Awaitable[None]] = _nothing) -> None:
        self._restarts, self._on_change = restarts, on_change
        self._tasks: list[asyncio.Task[None]] = []
        self._failing: set[str] = set()

    @property
    def is_sound(self) -> bool:
        """Return whether every necessary task runs."""
        return not self._failing

    def start(self, name: str, run: Callable[[], Awaitable[None]], is_necessary: bool = False) -> None:
        """Run `run()` for ever: it is called again when it raises an exception or returns."""
        self._tasks.append(asyncio.create_task(self._keep(name, run, is_necessary), name=name))

    async def stop(self) -> None:
        """Cancel every task, and wait for its end."""
        for task in self._tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _keep(self, name: str, run: Callable[[], Awaitable[None]], is_necessary: bool) -> None:
        wait_s = FIRST_WAIT_S
        while True:
            started = time.monotonic()
            running = asyncio.ensure_future(run())
            try:
                if name in self._failing:
                    await self._recover(name, running)
                await running
                log.error("background task ended task=%s again_in_s=%.1f", name, wait_s)
            except asyncio.CancelledError:
                running.cancel()
                with suppress(asyncio.CancelledError):
                    await running
                raise
            except Exception:
                log.exception("background task failed task=%s again_in_s=%.1f", name, wait_s)
            self._restarts.labels(name).inc()
            if is_necessary:
                self._failing.add(name)
                await self._on_change()
            if time.monotonic() - started > SOUND_S:
                wait_s = FIRST_WAIT_S
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)

    async def _recover(self, name: str, running: asyncio.Future[None]) -> None:
        """Count the task as sound once it has run for a while."""
        done, _ = await asyncio.wait([running], timeout=SOUND_S)
        if not done:
            self._failing.discard(name)
            await self._on_change()
