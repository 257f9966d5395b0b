"""A consumer that starts is not ready because the one before it was."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from streaming import consumer
from tests.waiting import WAIT_S, eventually


def test_readiness_is_withdrawn_only_after_a_while_without_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(consumer.time, "monotonic", lambda: now[0])
    file = tmp_path / "ready"
    ready = consumer._ReadyFile(file)
    ready.show()
    assert file.exists()
    now[0] += consumer.STUCK_S - 1
    ready.withdraw_if_old()
    assert file.exists()
    now[0] += 2
    ready.withdraw_if_old()
    assert not file.exists()
    ready.show()
    assert file.exists()


def test_a_step_that_fails_shows_no_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop goes on while a server is waited for: that it goes on is no progress."""
    reading = object.__new__(consumer.EventConsumer)
    reading._consumer = type("Closed", (), {"close": lambda self: None})()
    reading._members = type("Joined", (), {"changed": True, "has_joined": True})()
    reading._ready = consumer._ReadyFile(tmp_path / "ready")
    reading._next_check = 0.0
    outcomes = [False, False, True]
    seen: list[bool] = []
    monkeypatch.setattr(reading, "_poll", dict)

    def step(*_: object) -> bool:
        seen.append((tmp_path / "ready").exists())
        return outcomes[len(seen) - 1]

    monkeypatch.setattr(reading, "_step", step)
    reading.run(lambda: len(seen) == len(outcomes))
    assert seen == [False, False, False]
    assert (tmp_path / "ready").exists()


@pytest.mark.slow
def test_the_ready_file_of_the_process_before_is_removed(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    ready.touch()
    # Nothing listens there: the consumer waits for a broker, and is never ready.
    nowhere = {"BAGUNI_KAFKA_BOOTSTRAP": "127.0.0.1:1", "BAGUNI_REDIS_URL": "redis://127.0.0.1:1/0"}
    environment = {**os.environ, **nowhere, "BAGUNI_READY_FILE": str(ready)}
    process = subprocess.Popen([sys.executable, "-m", "streaming", "user"], env=environment, stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: not ready.exists() or process.poll() is not None, "the ready file is removed")
        assert process.poll() is None
    finally:
        process.terminate()
        process.wait(timeout=WAIT_S)
