"""A consumer that starts is not ready because the one before it was."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import WAIT_S, eventually


@pytest.mark.slow
def test_the_ready_file_of_the_process_before_is_removed(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    ready.touch()
    # Nothing listens there: the consumer waits for a broker, and is never ready.
    nowhere = {"BAGUNI_KAFKA_BOOTSTRAP": "127.0.0.1:1", "BAGUNI_REDIS_URL": "redis://127.0.0.1:1/0"}
    environment = {**os.environ, **nowhere, "BAGUNI_READY_FILE": str(ready)}
    consumer = subprocess.Popen([sys.executable, "-m", "streaming", "user"], env=environment, stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: not ready.exists() or consumer.poll() is not None, "the ready file is removed")
        assert consumer.poll() is None
    finally:
        consumer.terminate()
        consumer.wait(timeout=WAIT_S)
