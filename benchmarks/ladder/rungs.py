"""The rungs of the ladder: from the design as it was written to the parts of our retrieval head, one part more at each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from trainer.recipes import Recipe, TeacherRecipe, recipe_named


@dataclass(frozen=True)
class Rung:
    """One step of the ladder. `changes`: of the recipe of the rung below; `is_whole`: whether the controls and the dual model
    are trained, too."""

    name: str
    description: str
    changes: Mapping[str, Any]
    is_whole: bool = False


RUNGS = (
    Rung("design", "the design as it was written", {}, is_whole=True),
    Rung("summary", "+ one token for each item, with counts and intervals", {"tokens": "items"}),
    Rung("identity", "+ learned item vectors, and the user's items in the query", {"identity": True, "interest": True}),
    Rung("repeat", "+ a score for items that the user knows", {"repeat": True}),
    Rung(
        "softmax",
        "+ the whole catalogue as negatives, mean over positives",
        {"negatives": "catalogue", "positives": "mean"},
    ),
    Rung("statistics", "+ item statistics and factors", {"statistics_days": (14, 28, 91), "num_factors": 64}),
)
# The planted shop's clock says nothing, and nobody comes back to an item: the other parts have nothing to add there.
PLANTED_RUNGS = (RUNGS[0], replace(RUNGS[2], is_whole=True))


def recipe_of_rung(rung: Rung, data_set: str, seed: int) -> Recipe:
    """Return the recipe of a rung: that of the design, with what each rung up to this one changes."""
    recipe = replace(recipe_named("design", seed=seed), **SIZES[data_set])
    for each in rungs_of(data_set):
        recipe = replace(recipe, **each.changes)
        if each.name == rung.name:
            return recipe
    raise KeyError(rung.name)


def rungs_of(data_set: str) -> tuple[Rung, ...]:
    """Return the rungs that a data set is measured on."""
    return PLANTED_RUNGS if data_set == "planted" else RUNGS


SIZES: dict[str, dict[str, Any]] = {
    "complete-journey": {},
    "planted": {
        "max_tokens": 64,
        "batch_size": 256,
        "num_targets": 3,
        "min_test_orders": 1,
        "teacher": TeacherRecipe(num_targets=4),
        # Histories have some 20 lines and shelves 50 items: fewer candidates have all that is likely, and more steps fit into
        # the same time.
        "distill": replace(
            recipe_named("design").distill,
            steps=1_500,
            batch_size=96,
            learning_rate=2e-3,
            num_true=6,
            num_known=8,
            num_student=32,
            num_same_category=8,
            num_random=8,
            num_beams=24,
        ),
    },
}
