"""Our model as a contender: the only file here that knows how it is trained and asked.

A           the retrieval head alone: the same recipe without the generative head, on the Semantic IDs of the dual run
B           both heads, before distillation; its retrieval head makes the list
C           after distillation
served      C, the first of its items rescored by the generative head
teacher     the generative head of B, by beam search
generative  the generative head of C, by beam search
"""

# B = batch, N = items, H = held-out items

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from benchmarks.quality.measure import Int64, K, Lists, Truth
from trainer.data.dataset import Dataset
from trainer.data.queries import OrderQueries
from trainer.data.reading import ACTIONS
from trainer.evaluate import Ranker, generative_ranker, retrieval_ranker
from trainer.files import share
from trainer.recipes import Recipe
from trainer.run import ITEM_FILES, Progress, Run
from trainer.samples import Batch, OrderSamples

BATCH_SIZE = 128
ITEM_STAGES = ("embed_items", "fit_semantic_ids")
HEAD_STAGES = (*ITEM_STAGES, "train_dual_head")
STAGES = {
    "A": HEAD_STAGES,
    "B": HEAD_STAGES,
    "C": (*HEAD_STAGES, "distil"),
    "served": (*HEAD_STAGES, "distil"),
    "teacher": HEAD_STAGES,
    "generative": (*HEAD_STAGES, "distil"),
}
BEAM_SEARCH = ("teacher", "generative")  # slow: not asked with shortened histories
DESCRIPTIONS = {
    "A": "The retrieval head alone: no generative head in training.",
    "B": "The retrieval head, trained together with the generative head.",
    "C": "The retrieval head after distillation.",
    "served": "The list of C, the first 200 of everything ordered anew with a share of the generative head's log-likelihood.",
    "teacher": "The generative head of B, by beam search.",
    "generative": "The generative head of C, by beam search: that of a release, which campaigns and segments ask.",
}


@dataclass(frozen=True)
class TrainedModel:
    """A finished run, and which of its heads to ask."""

    run: Run
    variant: str
    training_s: float

    @property
    def samples_per_s(self) -> float:
        """Orders a second in the training of the heads."""
        seconds = _seconds(self.run.path).get("train_dual_head", 0.0)
        return self.run.recipe.steps * self.run.recipe.batch_size / seconds if seconds else 0.0

    def lists(self, queries: OrderQueries) -> Lists:
        """Rank for every query."""
        return ranked_lists(self.ranker(), self.run, queries)

    def held_out_lists(self, queries: OrderQueries, held_out: Int64) -> Int64:
        """Rank held-out items only, by the query for what was never bought."""
        others = np.setdiff1d(np.arange(len(queries.dataset.catalog)), held_out)
        samples = self.run.samples(queries.dataset)
        return _ranked(samples, queries.order_Q, self.ranker(), True, lambda batch: _masked(batch, others))

    def ranker(self) -> Ranker:
        """The head of this variant."""
        if self.variant == "teacher":
            return generative_ranker(self.run.teacher(), self.run)
        if self.variant == "generative":
            return generative_ranker(self.run.model(), self.run)
        share = self.run.recipe.rescored_share if self.variant == "served" else 0.0
        return retrieval_ranker(self.run.model(distilled=self.variant in ("C", "served")), self.run, share)


def ranked_lists(ranker: Ranker, run: Run, queries: OrderQueries) -> Lists:
    """Rank for every query, with a model of this run."""
    samples = run.samples(queries.dataset)
    novel = _ranked(samples, queries.order_Q, ranker, True)
    return {
        "all": _ranked(samples, queries.order_Q, ranker, False),
        "novel": without_bought(novel, Truth(queries)),
    }


def train(variant: str, folder: Path, data: Path, recipe: Recipe, progress: Progress) -> TrainedModel:
    """Do what is still to be done of a variant's run under `folder`; all of a seed's variants share one run but A."""
    name = f"seed{recipe.seed}"
    run = Run(folder / name, data, recipe)
    if variant == "A":
        _do(run, ITEM_STAGES, progress)
        run = Run(folder / f"{name}-alone", data, replace(recipe, generative_weight=0.0))
        share(folder / name, run.path, ITEM_FILES)
    _do(run, STAGES[variant], progress)
    seconds = _seconds(run.path) | ({} if variant != "A" else _seconds(folder / name, ITEM_STAGES))
    return TrainedModel(run, variant, sum(seconds.get(stage, 0.0) for stage in STAGES[variant]))


def train_without_items(folder: Path, data: Path, recipe: Recipe, progress: Progress) -> TrainedModel:
    """C on a data set from which items were held out. Texts and Semantic IDs are those of the same seed's run, which must
    be there: orders have no part in them."""
    run = Run(folder / f"seed{recipe.seed}-held-out", data, recipe)
    share(folder / f"seed{recipe.seed}", run.path, ITEM_FILES)
    _do(run, STAGES["C"], progress)
    return TrainedModel(run, "C", sum(_seconds(run.path).values()))


def write_without_items(source: Path, target: Path, dataset: Dataset, held_out: Int64, before_ms: int) -> Path:
    """The data set in the folder `target` without any event of the held-out items before a time. They stay in the
    catalogue: text is all that is known of them."""
    if (target / "events.parquet").is_file():
        return target
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.stem in ("items", "dataset"):
            shutil.copy(path, target / path.name)
    keep = (dataset.time_E >= before_ms) | ~np.isin(dataset.item_E, held_out)
    actions = np.asarray([name for name, _ in sorted(ACTIONS.items(), key=lambda pair: pair[1])], object)
    item_ids = np.asarray([item.item_id for item in dataset.catalog.items], object)
    order_ids = np.asarray([*dataset.order_ids, ""], object)  # -1, no order, is the last
    events = pd.DataFrame(
        {
            "user_id": np.asarray(dataset.user_ids, object)[dataset.user_E[keep]],
            "item_id": item_ids[dataset.item_E[keep]],
            "action": actions[dataset.action_E[keep] - min(ACTIONS.values())],
            "order_id": order_ids[dataset.order_E[keep]],
            "time": pd.to_datetime(dataset.time_E[keep], unit="ms", utc=True),
        }
    )
    events.to_parquet(target / "events.parquet", index=False)
    return target


def same_orders(queries: OrderQueries, other: Dataset) -> OrderQueries:
    """The same orders as queries of another version of the data set."""
    found = OrderQueries.of(other, queries.start_ms, min_orders=0)
    number = queries.dataset.orders().number_O[queries.order_Q]
    wanted = {queries.dataset.order_ids[index] for index in number.tolist()}
    ids = [other.order_ids[index] for index in other.orders().number_O[found.order_Q].tolist()]
    return found.at(np.flatnonzero([order_id in wanted for order_id in ids]))


def without_bought(top_Qk: Int64, truth: Truth) -> Int64:
    """Lists without items that the user had bought; what is left moves up. Needed where two orders have one instant: the
    model's history ends before both, the protocol's has the first of them."""
    row, place = np.nonzero(top_Qk >= 0)
    bought = np.zeros(top_Qk.shape, bool)
    bought[row, place] = truth.bought(row, top_Qk[row, place])
    kept_first = np.argsort(bought, axis=1, kind="stable")
    return np.take_along_axis(np.where(bought, -1, top_Qk), kept_first, axis=1)


def _do(run: Run, stages: tuple[str, ...], progress: Progress) -> None:
    for stage in stages:
        with _timed(run.path, stage):
            getattr(run, stage)(progress)


@contextmanager
def _timed(path: Path, stage: str) -> Iterator[None]:
    """Add the seconds to the run's own: a run that was interrupted says what all its parts took."""
    started = time.monotonic()
    try:
        yield
    finally:
        seconds = _seconds(path)
        seconds[stage] = seconds.get(stage, 0.0) + time.monotonic() - started
        (path / "seconds.json").write_text(json.dumps(seconds, indent=2) + "\n")


def _seconds(path: Path, stages: tuple[str, ...] | None = None) -> dict[str, float]:
    file = path / "seconds.json"
    seconds: dict[str, float] = json.loads(file.read_text()) if file.is_file() else {}
    return {stage: value for stage, value in seconds.items() if stages is None or stage in stages}


def _ranked(
    samples: OrderSamples,
    order_Q: Int64,
    ranker: Ranker,
    novel: bool,
    prepared: Callable[[Batch], Batch] = lambda batch: batch,
) -> Int64:
    starts = range(0, len(order_Q), BATCH_SIZE)
    batches = (prepared(samples.batch(order_Q[start : start + BATCH_SIZE])) for start in starts)
    return np.concatenate([np.zeros((0, K), np.int64), *(ranker(batch, novel) for batch in batches)])


def _masked(batch: Batch, items: Int64) -> Batch:
    """The batch as if every user owned these items: the novel setting then never returns them."""
    row, item = np.repeat(np.arange(batch.size), len(items)), np.tile(items, batch.size)
    return batch._replace(owned_row=torch.from_numpy(row), owned_item=torch.from_numpy(item))
