"""One way to wait for what happens eventually. Knows nothing of what is awaited."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")

# Nets for what never happens, no promises of speed: a training takes ten times as long on a machine that is busy.
WAIT_S = 400.0
COMMAND_S = 800.0  # for a command to end: less than what a test may take


def eventually(
    condition: Callable[[], Result],
    awaited: str = "",
    seen: Callable[[], object] | None = None,
    interval_s: float = 0.02,
) -> Result:
    """Return the first true result of `condition`. After WAIT_S, fail with what was awaited (by default the source of
    `condition`) and what was seen last: the result of `seen`, or that of `condition`."""
    deadline = time.monotonic() + WAIT_S
    while not (result := condition()):
        if time.monotonic() > deadline:
            awaited = awaited or " ".join(inspect.getsource(condition).split())
            raise AssertionError(f"not within {WAIT_S:.0f} s: {awaited}; last seen: {seen() if seen else result!r}")
        time.sleep(interval_s)
    return result
