"""Circuit breakers: an unavailable server costs requests nothing but the first few timeouts (Nygard, Release It!, 2007)."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from baguni.domain.errors import UnavailableError

T = TypeVar("T")


class Breaker:
    """Calls to one server. After `failures` calls in a row that found it unavailable, calls fail at once for `open_s` seconds.
    Then one call tries it; if that succeeds, all may call again."""

    def __init__(self, part: str, failures: int, open_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._part, self._failures, self._open_s, self._clock = part, failures, open_s, clock
        self._in_a_row = 0
        self._closed_again = 0.0

    @property
    def is_open(self) -> bool:
        """Return whether calls fail at once."""
        return self._in_a_row >= self._failures and self._clock() < self._closed_again

    async def call(self, make: Callable[[], Awaitable[T]], counted: bool = True) -> T:
        """Return the result of `make()`. Raises UnavailableError if the server is unavailable, or was a moment ago. `counted`:
        whether a failure is a sign of an outage; after a caller's own short deadline, and where it `is_repeated`, it is not."""
        if self.is_open:
            raise UnavailableError(self._part, "it was away a moment ago")
        if self._in_a_row >= self._failures:
            self._closed_again = self._clock() + self._open_s  # this call tries; the others go on failing at once
        try:
            result = await make()
        except UnavailableError as error:
            if counted and not error.is_repeated:
                self._in_a_row += 1
                self._closed_again = self._clock() + self._open_s
            raise
        self._in_a_row = 0
        return result
