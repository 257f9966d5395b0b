"""One training, however many processes run it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.waiting import COMMAND_S
from trainer.devices import precision_here
from trainer.recipes import recipe_named
from trainer.run import Run

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("train_in_processes.py")
ROOT = SCRIPT.parents[3]


@pytest.mark.parametrize(("instructions", "expected"), [({}, "32-true"), ({"avx512_bf16": True}, "bf16-mixed")])
def test_half_precision_is_for_processors_that_have_it(monkeypatch, instructions, expected) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": False, **instructions})
    assert precision_here(recipe_named("demo")) == expected
    assert precision_here(recipe_named("demo", precision="32-true")) == "32-true"


def losses_with(processes: int, run: Run, output: Path) -> list[dict[str, float]]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    arguments = [str(SCRIPT), str(run.path.parent), str(output)]
    result = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, timeout=COMMAND_S)
    assert result.returncode == 0, result.stderr[-2000:]
    found = json.loads(output.read_text())
    assert found["processes"] == processes
    return found["losses"]


def test_two_processes_have_the_loss_curve_of_one(trained: Run, tmp_path: Path) -> None:
    """Each of two takes half of every batch. Not to the last digit: a mean of two halves' means weighs their users alike,
    though one half may have more users with something new in their order."""
    one, two = (losses_with(n, trained, tmp_path / f"{n}.json") for n in (1, 2))
    for alone, together in zip(one, two, strict=True):
        assert together == pytest.approx(alone, rel=0.02)
    assert one[-1]["retrieval"] < one[0]["retrieval"]
