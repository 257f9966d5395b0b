"""A consumer that starts is not ready because the one before it was."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path


def test_the_ready_file_of_the_process_before_is_removed(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    ready.touch()
    # Nothing listens there: the consumer waits for a broker, and is never ready.
    nowhere = {"BAGUNI_KAFKA_BOOTSTRAP": "127.0.0.1:1", "BAGUNI_REDIS_URL": "redis://127.0.0.1:1/0"}
    environment = {**os.environ, **nowhere, "BAGUNI_READY_FILE": str(ready)}
    consumer = subprocess.Popen([sys.executable, "-m", "streaming", "user"], env=environment, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while ready.exists() and time.monotonic() < deadline:
            assert consumer.poll() is None
            time.sleep(0.05)
        assert not ready.exists()
    finally:
        consumer.terminate()
        consumer.wait(timeout=30)
