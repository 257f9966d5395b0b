"""Started by `torchrun`: train the tiny run's model without anything random and write each step's losses.

Usage: train_in_processes.py FOLDER_OF_THE_TINY_RELEASE OUTPUT
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

from tests.tiny_release import tiny_run
from trainer.devices import launch
from trainer.recipes import Recipe
from trainer.train import train


def deterministic(recipe: Recipe) -> Recipe:
    """The recipe with every target of every order, no dropout and full precision: two ways to run it can be compared."""
    return replace(
        recipe, steps=12, batch_size=32, num_targets=16, precision="32-true",
        dropout=0.0, id_dropout=0.0, token_dropout=0.0, click_rate=0.0,
    )  # fmt: skip


if __name__ == "__main__":
    run = tiny_run(Path(sys.argv[1]))
    recipe = deterministic(run.recipe)
    fabric = launch(recipe)
    run.training_set.samples.click_rate = 0.0
    losses = train(run.fresh_model(recipe), run.training_set, recipe, fabric=fabric)
    teacher = replace(recipe, steps=2, everything_weight=0.0, novel_weight=0.0, interest=False, repeat=False)
    train(run.fresh_model(teacher), run.training_set, teacher, fabric=fabric)  # parts without a gradient
    if fabric.is_global_zero:
        Path(sys.argv[2]).write_text(json.dumps({"processes": fabric.world_size, "losses": losses}))
