"""The models of one rung and seed: trained, asked for every order to predict, and reduced to one value for each order.

A       the retrieval head alone
A+      A, trained as many steps more as distillation takes
B       both heads; its retrieval head makes the list
C       B after distillation from the teacher
self    B after distillation from itself: a frozen copy of its own retrieval head
teacher the generative head, by beam search
"""

# Q = queries

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.measure import SETTINGS, K, Truth, order_values
from benchmarks.quality.ours import TrainedModel
from benchmarks.quality.shop import Shop
from trainer.files import share
from trainer.recipes import Recipe, recipe_named
from trainer.run import ITEM_FILES, Progress, Run

Float16 = NDArray[np.float16]
METRICS = (f"HR@{K}", f"NDCG@{K}")
VARIANTS = ("A", "A+", "B", "C", "self", "teacher")
IN_SHORT = ("A", "C", "teacher")
"""The models of a rung that is not whole."""


@dataclass(frozen=True)
class Values:
    """{(variant, setting, metric): one value for each query of the setting} of one rung and seed."""

    by_name: Mapping[tuple[str, str, str], Float16]

    def save(self, path: Path) -> None:
        """Write one .npz file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, **{"|".join(name): value for name, value in self.by_name.items()})  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path) -> Values:
        """Read what `save` wrote."""
        with np.load(path) as arrays:
            names = [(name, *name.split("|")) for name in arrays.files]
            return cls({(variant, setting, metric): arrays[name] for name, variant, setting, metric in names})

    @property
    def variants(self) -> set[str]:
        """Return the models that were measured."""
        return {variant for variant, _, _ in self.by_name}


class RungModels:
    """The runs of one rung and seed in one folder. Texts and Semantic IDs are shared with the rungs of the same seed."""

    def __init__(self, shop: Shop, folder: Path, recipe: Recipe, progress: Progress) -> None:
        self.shop, self.folder, self.recipe, self._progress = shop, folder, recipe, progress

    def values(self, variants: tuple[str, ...]) -> Values:
        """Train what is missing, ask every model, and return the value of each order."""
        truth, found = Truth(self.shop.queries), {}
        for variant in variants:
            lists = self.trained(variant).lists(self.shop.queries)
            by_setting = order_values(lists, truth)
            for setting in SETTINGS:
                for metric in METRICS:
                    found[variant, str(setting), metric] = by_setting[setting][metric].astype(np.float16)
        return Values(found)

    def trained(self, variant: str) -> TrainedModel:
        """Return a finished model."""
        make: dict[str, Callable[[], tuple[Run, str]]] = {
            "A": lambda: (self._alone(self.recipe.steps), "A"),
            "A+": lambda: (self._alone(self.recipe.steps + self.recipe.distill.steps), "A"),
            "B": lambda: (self._dual(), "B"),
            "C": lambda: (self._distilled(), "C"),
            "self": lambda: (self._distilled_from_itself(), "C"),
            "teacher": lambda: (self._taught(), "teacher"),
        }
        run, asked = make[variant]()
        return TrainedModel(run, asked, 0.0)

    def _run(self, name: str, recipe: Recipe) -> Run:
        run = Run(self.folder / name, self.shop.path, recipe)
        share(self._items().path, run.path, ITEM_FILES)
        return run

    def _items(self) -> Run:
        """Return the run that has the texts' embeddings and the Semantic IDs of this seed."""
        recipe = recipe_named("design", seed=self.recipe.seed, rqvae=self.recipe.rqvae)
        run = Run(self.folder.parent / f"items-seed{recipe.seed}", self.shop.path, recipe)
        run.embed_items(self._progress)
        run.fit_semantic_ids(self._progress)
        return run

    def _alone(self, steps: int) -> Run:
        run = self._run(f"alone-{steps}", replace(self.recipe, steps=steps, generative_weight=0.0))
        run.train_dual_head(self._progress)
        return run

    def _dual(self) -> Run:
        run = self._run("dual", self.recipe)
        run.train_dual_head(self._progress)
        return run

    def _taught(self) -> Run:
        run = self._run("dual", self.recipe)
        run.train_teacher(self._progress)
        return run

    def _distilled(self) -> Run:
        run = self._dual()
        run.train_teacher(self._progress)
        run.distil(self._progress)
        return run

    def _distilled_from_itself(self) -> Run:
        own = replace(self.recipe.distill, generative_share=0.0, novel_generative_share=0.0, num_beams=0)
        run = self._run("self", replace(self.recipe, distill=own, teacher=None))
        share(self._dual().path, run.path, ("dual_head.pt",))
        run.distil(self._progress)
        return run
