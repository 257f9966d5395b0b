"""A user consumer that dies between its first write and the commit: `python -m tests.integration.crashing_consumer user`."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence

from baguni.domain.events import Event, MalformedEvent
from streaming import __main__ as streaming
from streaming.user_updates import UserUpdates


class DieAfterTheWrite(UserUpdates):
    """Applies a batch, and is killed before it can say so."""

    def apply(self, events: Sequence[Event]) -> list[tuple[int, MalformedEvent]]:
        super().apply(events)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("unreachable")


if __name__ == "__main__":
    streaming.UserUpdates = DieAfterTheWrite  # type: ignore[misc]
    streaming.main()
