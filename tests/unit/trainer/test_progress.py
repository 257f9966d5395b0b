"""Progress where there is no terminal: a job's log says how far it is, and is no wall of bars."""

from __future__ import annotations

import pytest

from trainer.cli import EVERY_S, progress_bars


def test_a_log_has_the_first_step_the_last_and_one_a_while(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1_000.0]
    monkeypatch.setattr("trainer.cli.time.monotonic", lambda: now[0])
    with progress_bars() as progress:
        for step in range(1, 5_001):
            progress("dual-head training", step, 5_000, f"loss {step}")
            now[0] += EVERY_S / 1_000
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "dual-head training: 1 of 5,000 loss 1"
    assert lines[-1] == "dual-head training: 5,000 of 5,000 loss 5000"
    assert 5 <= len(lines) <= 7
    step = int(lines[1].split()[2].replace(",", ""))
    assert f", {(5_000 - step) * EVERY_S / 1_000 / 60:.0f} min left loss" in lines[1]


def test_other_processes_of_a_training_say_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bars(shown=False) as progress:
        progress("stage", 1, 1, "")
    assert capsys.readouterr().err == ""
