"""How quick a training step is, and where its time goes, in the phases that the training loop names:

python -m benchmarks.training complete-journey        writes benchmarks/results/training-complete-journey.json
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

from torch.profiler import ProfilerActivity, profile

from benchmarks.result import RESULTS, Row, write_result
from trainer.devices import launch
from trainer.model import DualHeadModel
from trainer.recipes import Recipe, recipe_named
from trainer.run import Run
from trainer.train import PHASES, TrainingSet, train

STEPS, WARMUP_STEPS = 60, 10


def step_seconds(
    model: DualHeadModel, data: TrainingSet, recipe: Recipe, teacher: DualHeadModel | None = None
) -> dict[str, float]:
    """Seconds of a step: of each phase, and "step" of it all, as a mean over the recipe's steps (with a teacher, those of its
    distillation)."""
    steps = recipe.steps if teacher is None else recipe.distill.steps
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        started = time.monotonic()
        train(model, data, recipe, fabric=launch(recipe), teacher=teacher)
        seconds = time.monotonic() - started
    found = {event.key: event.cpu_time_total / 1e6 / steps for event in profiled.key_averages()}
    return {"step": seconds / steps, **{name: found[name] for name in PHASES if name in found}}


def rows(seconds: dict[str, float], stage: str, batch_size: int) -> list[Row]:
    """The numbers of one stage of training."""
    step = seconds["step"]
    shares = [
        Row.reported(f"{stage}: {name}", 100 * value / step, "% of a step")
        for name, value in seconds.items()
        if name != "step"
    ]
    return [Row.reported(f"{stage}: orders trained on", batch_size / step, "/ s"), *shares]


def main(name: str) -> None:
    """Measure the recipe of a data set prepared in .baguni/NAME."""
    recipe = recipe_named(name)
    recipe = replace(recipe, steps=STEPS, distill=replace(recipe.distill, steps=STEPS))
    run = Run(Path(".baguni") / "bench-training" / name, Path(".baguni") / name, recipe)
    run.embed_items()
    run.fit_semantic_ids()
    data, warm = run.training_set, replace(recipe, steps=WARMUP_STEPS)
    train(run.fresh_model(), data, warm, fabric=launch(warm))
    alone = replace(recipe, generative_weight=0.0)
    measured = {
        "retrieval head alone": step_seconds(run.fresh_model(), data, alone),
        "both heads": step_seconds(run.fresh_model(), data, recipe),
        "distillation": step_seconds(run.fresh_model(), data, recipe, run.fresh_model()),
    }
    result = [row for stage, seconds in measured.items() for row in rows(seconds, stage, recipe.batch_size)]
    path = RESULTS / f"training-{name}.json"
    write_result(path, f"training, {name}", f"python -m benchmarks.training {name}", result)


if __name__ == "__main__":
    main(sys.argv[1])
