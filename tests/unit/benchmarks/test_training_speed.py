"""The phases that the training loop names are all there is of a step."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.training import rows, step_seconds
from trainer.run import Run

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("distilled", [False, True])
def test_the_phases_of_a_step_add_up_to_it(trained: Run, distilled: bool) -> None:
    recipe = replace(trained.recipe, steps=5, distill=replace(trained.recipe.distill, steps=5))
    teacher = trained.model() if distilled else None
    seconds = step_seconds(trained.fresh_model(), trained.training_set, recipe, teacher)
    step = seconds.pop("step")
    assert {"items", "encoder", "retrieval head", "generative head", "backward", "optimiser"} <= seconds.keys()
    assert ("distillation" in seconds) == distilled
    assert 0.3 * step < sum(seconds.values()) <= step  # the rest is what the profiler and the set-up take


def test_speed_is_orders_over_seconds() -> None:
    found = rows({"step": 0.5, "items": 0.1}, "both heads", 64)
    assert [(row.what, row.value) for row in found] == [
        ("both heads: orders trained on", 128.0),
        ("both heads: items", 20.0),
    ]
