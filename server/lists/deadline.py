"""Time that a request has left."""

from __future__ import annotations

import time

from baguni.domain.errors import BaguniError

RESERVE_S = 0.02  # of every deadline, to make an answer of what is there when a call has run into its limit


class DeadlineExceeded(BaguniError):  # noqa: N818 - gRPC's own name for it
    """Nobody waits for the answer any more."""


class Deadline:
    """A point in time. `now` is a monotonic clock in seconds."""

    def __init__(self, seconds: float, now: float | None = None) -> None:
        self._end = (time.monotonic() if now is None else now) + seconds

    def remaining_s(self) -> float:
        """Seconds left; negative when it is over."""
        return self._end - time.monotonic()

    def limit(self, own_s: float, reserve_s: float = 0.0) -> float:
        """Return the timeout of one call: its own limit, or the time left less RESERVE_S and `reserve_s`, for what must follow.
        Raises DeadlineExceeded without time."""
        remaining = self.remaining_s() - RESERVE_S - reserve_s
        if remaining <= 0:
            raise DeadlineExceeded("the deadline is over")
        return min(own_s, remaining)
