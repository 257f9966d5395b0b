"""A local Braze as a process of one's own, and what it knows."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from baguni.domain.errors import UnavailableError
from deploy.local.settings import free_port

KEY = "of-the-local-braze"
START_S, TIMEOUT_S = 20.0, 60.0


@dataclass(frozen=True)
class BrazeProcess:
    """Where it listens."""

    url: str

    def users(self) -> dict[str, dict[str, Any]]:
        """Return what it knows of everybody, by external id."""
        return dict(self._ask("/local/users"))

    def user(self, user_id: str) -> dict[str, Any]:
        """What it knows of a user; empty for nothing."""
        return dict(self._ask(f"/local/users/{user_id}"))

    def counts(self) -> dict[str, int]:
        """Of requests, objects and answers."""
        return dict(self._ask("/local/counts"))

    def break_next(self, *faults: dict[str, Any]) -> None:
        """How the next requests go wrong."""
        self._ask("/local/faults", json.dumps(faults).encode())

    def _ask(self, path: str, body: bytes | None = None) -> Any:
        with urllib.request.urlopen(self.url + path, body, timeout=TIMEOUT_S) as reply:  # noqa: S310 - http, to this machine
            return json.load(reply)


@contextmanager
def braze_process(key: str = KEY) -> Iterator[BrazeProcess]:
    """Yield one that answers. Raises UnavailableError if it does not start."""
    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", "deploy.local.braze", str(port), key])
    found, deadline = BrazeProcess(f"http://127.0.0.1:{port}"), time.monotonic() + START_S
    try:
        while True:
            try:
                found.counts()
                break
            except OSError as error:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise UnavailableError("braze", f"the local one did not start: {error}") from error
                time.sleep(0.05)
        yield found
    finally:
        process.terminate()
        process.wait(10)
