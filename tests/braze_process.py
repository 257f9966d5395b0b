"""A local Braze of a test's own."""

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

from deploy.local.settings import free_port

KEY = "a-key-of-a-test"


@dataclass(frozen=True)
class BrazeProcess:
    """Where it listens."""

    url: str

    def user(self, user_id: str) -> dict[str, Any]:
        """What it knows of a user; empty for nothing."""
        return dict(self._get(f"/local/users/{user_id}"))

    def counts(self) -> dict[str, int]:
        """Of requests, objects and answers."""
        return dict(self._get("/local/counts"))

    def break_next(self, *faults: dict[str, Any]) -> None:
        """How the next requests go wrong."""
        request = urllib.request.Request(f"{self.url}/local/faults", json.dumps(faults).encode())
        urllib.request.urlopen(request, timeout=5).close()

    def _get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=5) as reply:
            return json.load(reply)


@contextmanager
def braze_process() -> Iterator[BrazeProcess]:
    """One that answers."""
    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", "deploy.local.braze", str(port), KEY])
    found = BrazeProcess(f"http://127.0.0.1:{port}")
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                found.counts()
                break
            except OSError:
                assert process.poll() is None
                assert time.monotonic() < deadline, "the local Braze does not answer"
                time.sleep(0.05)
        yield found
    finally:
        process.terminate()
        process.wait(10)
