"""Gradient-boosted trees as a peer: the numbers that our model reads of a user's items, without any network.

Candidates of an order are the items that the user bought before and those that EASE places first among the others. Each has
the token's features, the item's statistics, the context of the order and the score of EASE. The trees predict whether the item
is in the order (histogram gradient boosting, Ke et al. 2017, as scikit-learn implements it).
"""

# Q = queries, B = queries of a slice, C = candidates of a slice, X = columns, N = items, S = tokens, P = statistics

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier

from baguni.domain.sequences import NUM_FEATURES, model_inputs
from benchmarks.quality.measure import K, Lists
from trainer.data.dataset import Dataset
from trainer.data.queries import OrderQueries, log_purchases
from trainer.data.splits import last_month_start_ms
from trainer.metrics import top_k
from trainer.peers import SLICE, Ease, Scores, UserVectors
from trainer.run import Progress, silent
from trainer.statistics import ItemStatistics

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class TreesRecipe:
    """How trees are trained: on `num_orders` orders of the two months before the test month, chosen by chance.

    own_items, other_items: candidates of an order, of those that the user bought and of the others
    statistics_days: windows of the item statistics, see `trainer.statistics`
    """

    num_orders: int = 8_000
    own_items: int = 512
    other_items: int = 30
    ease: Ease = Ease(500, UserVectors(decay_days=180))  # noqa: RUF009 - frozen
    statistics_days: tuple[int, ...] = (14, 28, 91)
    num_trees: int = 300
    learning_rate: float = 0.06
    num_leaves: int = 31
    min_samples_leaf: int = 200
    regularisation: float = 1.0
    seed: int = 0


class Candidates(NamedTuple):
    """Pairs of an order and an item: the order's place in its slice, the item, whether the user bought it before, and what is
    known of the pair."""

    row_C: Int64
    item_C: Int64
    own_C: NDArray[np.bool_]
    known_CX: Float32


@dataclass(frozen=True)
class Trees:
    """Trained trees."""

    reader: _Reader
    model: HistGradientBoostingClassifier
    training_s: float
    samples_per_s: float

    @classmethod
    def train(cls, dataset: Dataset, before_ms: int, recipe: TreesRecipe, progress: Progress = silent) -> Trees:
        """Train on orders before a time. EASE is fitted on what was before these orders, and anew for what is asked."""
        started, log = time.monotonic(), dataset.before(before_ms)
        month_ms = last_month_start_ms(log)
        from_ms = last_month_start_ms(log.before(month_ms))
        orders = OrderQueries.of(log, from_ms, before_ms, min_orders=1)
        chance = np.random.default_rng(recipe.seed)
        orders = orders.at(np.sort(chance.choice(len(orders), min(recipe.num_orders, len(orders)), replace=False)))
        reader = _Reader.of(log, from_ms, before_ms, recipe)
        known, found = [], []
        for start in range(0, len(orders), SLICE):
            candidates = reader.candidates(orders, start)
            known.append(candidates.known_CX)
            found.append(_is_in_order(candidates, orders, start))
            progress("trees", start, len(orders), "candidates")
        model = HistGradientBoostingClassifier(
            max_iter=recipe.num_trees,
            learning_rate=recipe.learning_rate,
            max_leaf_nodes=recipe.num_leaves,
            min_samples_leaf=recipe.min_samples_leaf,
            l2_regularization=recipe.regularisation,
            early_stopping=False,
            random_state=recipe.seed,
        )
        model.fit(np.concatenate(known), np.concatenate(found))
        progress("trees", len(orders), len(orders), "trained")
        seconds = time.monotonic() - started
        return cls(_Reader.of(log, before_ms, before_ms, recipe), model, seconds, len(orders) / seconds)

    def lists(self, queries: OrderQueries) -> Lists:
        """Rank the candidates of every query."""
        tops: dict[str, list[Int64]] = {"all": [], "novel": []}
        for start in range(0, len(queries), SLICE):
            candidates = self.reader.candidates(queries, start)
            chance_C = self.model.predict_proba(candidates.known_CX)[:, 1]
            score_BN = np.full((min(SLICE, len(queries) - start), len(queries.dataset.catalog)), -np.inf)
            score_BN[candidates.row_C, candidates.item_C] = chance_C
            tops["all"].append(top_k(score_BN, K, np.random.default_rng(start)))
            score_BN[candidates.row_C[candidates.own_C], candidates.item_C[candidates.own_C]] = -np.inf
            tops["novel"].append(top_k(score_BN, K, np.random.default_rng(start)))
        return {"all": np.concatenate(tops["all"]), "novel": np.concatenate(tops["novel"])}


@dataclass(frozen=True)
class _Reader:
    """Turns orders into candidates; EASE and the statistics know nothing after their moments."""

    ease: Scores
    statistics: ItemStatistics
    recipe: TreesRecipe

    @classmethod
    def of(cls, log: Dataset, ease_ms: int, end_ms: int, recipe: TreesRecipe) -> _Reader:
        """Fit EASE on the log before `ease_ms`, and take statistics of every month up to `end_ms`."""
        ease = recipe.ease.fit(log_purchases(log, ease_ms))
        return cls(ease, ItemStatistics.of(log, end_ms, recipe.statistics_days), recipe)

    def candidates(self, queries: OrderQueries, start: int) -> Candidates:
        """Return those of the slice of queries that begins at `start`."""
        dataset, stop = queries.dataset, start + SLICE
        now_B, bought = queries.time_Q[start:stop], queries.purchases(start, stop)
        inputs = model_inputs(queries.history(start, stop), now_B, self.recipe.own_items, dataset.store_timezone)
        own_row, token = np.nonzero(inputs.item_BS >= 0)
        own_item = inputs.item_BS[own_row, token].astype(np.int64)
        score_BN = self.ease(bought)
        others_BN = score_BN.copy()
        others_BN[bought.row_P, bought.item_P] = -np.inf
        others_BN[own_row, own_item] = -np.inf
        other_Bk = top_k(others_BN, self.recipe.other_items, np.random.default_rng(start))
        other_row, place = np.nonzero(other_Bk >= 0)
        row_C, item_C = np.r_[own_row, other_row], np.r_[own_item, other_Bk[other_row, place]]
        features_CF = np.full((len(row_C), NUM_FEATURES), np.nan, np.float32)
        features_CF[: len(own_row)] = inputs.features_BSF[own_row, token]
        month_B = self.statistics.month(now_B)
        known_CX = np.c_[
            features_CF,
            score_BN[row_C, item_C],
            self.statistics.values_TNP[month_B[row_C], item_C],
            inputs.context_BC[row_C],
        ]
        return Candidates(row_C, item_C, np.arange(len(row_C)) < len(own_row), known_CX.astype(np.float32))


def _is_in_order(candidates: Candidates, queries: OrderQueries, start: int) -> NDArray[np.bool_]:
    """Return [C], whether the item is in the order."""
    num_items = len(queries.dataset.catalog)
    true = queries.true_row_P * num_items + queries.true_item_P
    return np.isin((candidates.row_C + start) * num_items + candidates.item_C, true)
