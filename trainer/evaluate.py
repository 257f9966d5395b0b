"""Next-order prediction in the last month of the log, by the protocol of docs/benchmarks.md: every model ranks the whole
catalogue, once among all items and once among those that the user never bought.
"""

# Q = queries, k = length of the lists, N = items, B = batch

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from baguni.domain.scoring import served_scores
from baguni.domain.signature import EVERYTHING, NOVEL, NUM_CANDIDATES
from trainer.data.splits import evaluation_queries
from trainer.decoding import BeamSearch
from trainer.metrics import coverage, gini, mean_interval, per_order, popularity_lift, top_k
from trainer.model import DualHeadModel
from trainer.retrieval import whole_catalogue, with_repeat_score
from trainer.run import Progress, Run, silent
from trainer.samples import Batch, OrderSamples

K = 10
METRICS = ("HR", "Recall", "Recall_min", "NDCG")
BATCH_SIZE = 128
Lists = NDArray[np.int64]
Ranker = Callable[[Batch, bool], Lists]
"""(batch of queries, novel) → [B, K] item indexes; novel: bought items must not be returned."""


@dataclass(frozen=True)
class TestMonth:
    """The orders to predict."""

    samples: OrderSamples
    order_Q: NDArray[np.int64]

    def batches(self) -> Iterator[Batch]:
        """The queries in order, BATCH_SIZE at a time."""
        for start in range(0, len(self.order_Q), BATCH_SIZE):
            yield self.samples.batch(self.order_Q[start : start + BATCH_SIZE])

    @cached_property
    def user_Q(self) -> NDArray[np.int64]:  # noqa: N802 - a shape suffix
        """The user of each query."""
        return self.samples.user_O[self.order_Q]


def month_to_predict(run: Run, mode: Literal["first", "rolling"], limit: int | None = None) -> TestMonth:
    """The run's test month; `limit` takes a random part of it."""
    queries = evaluation_queries(run.dataset, run.test_start_ms, mode=mode, min_orders=run.recipe.min_test_orders)
    order_Q = queries.order_Q
    if limit is not None and limit < len(order_Q):
        order_Q = np.sort(np.random.default_rng(0).choice(order_Q, limit, replace=False))
    return TestMonth(run.samples(run.dataset), order_Q)


def evaluate(
    run: Run, mode: Literal["first", "rolling"] = "first", limit: int | None = None, progress: Progress = silent
) -> dict[str, Any]:
    """Every model of a run on its test month: {model: {"all" | "novel": {metric: value}}}, with the test's own facts."""
    test = month_to_predict(run, mode, limit)
    frequency_N = run.frequency_N.astype(np.float64)
    rankers = {
        "global popularity": popularity_ranker(run.recent_popularity()),
        "retrieval before distillation": retrieval_ranker(run.model(distilled=False), run),
        "retrieval, distilled": retrieval_ranker(run.model(), run),
        "generative": generative_ranker(run.model(), run),
    }
    if run.recipe.rescored_share > 0:
        rankers["retrieval, rescored"] = retrieval_ranker(run.model(), run, run.recipe.rescored_share)
    results = {}
    for number, (name, ranker) in enumerate(rankers.items()):
        results[name] = _measure(test, ranker, frequency_N)
        progress("evaluation", number + 1, len(rankers), name)
    return {"mode": mode, "orders": len(test.order_Q), "k": K, "models": results}


def popularity_ranker(popularity_N: NDArray[np.float32]) -> Ranker:
    """The same list for everybody."""

    def rank(batch: Batch, novel: bool) -> Lists:
        scores = torch.from_numpy(np.tile(popularity_N, (batch.size, 1)))
        return _top(_without_owned(scores, batch) if novel else scores)

    return rank


def retrieval_ranker(model: DualHeadModel, run: Run, rescored_share: float = 0.0) -> Ranker:
    """The retrieval head as it is served: one dot product per item, and the repeat score where everything counts; there the
    generative head's log-likelihood may have a share in the order of the first NUM_CANDIDATES."""
    catalogue, codes_NL = whole_catalogue(len(run.semantic_ids())), run.training_set.codes_NL
    with torch.no_grad():
        vectors_NX = model.served_vectors(run.training_set.text_NT, torch.from_numpy(run.statistics.newest_NP))

    @torch.no_grad()
    def rank(batch: Batch, novel: bool) -> Lists:
        memory = model.encode(batch.sequences, vectors_NX)
        user_BQX = model.user_embedding(memory)
        if novel:
            return _top(_without_owned(user_BQX[:, NOVEL] @ vectors_NX.T, batch))
        repeat_BS = model.repeat_score(memory, batch.sequences)
        score_BN = with_repeat_score(user_BQX[:, EVERYTHING] @ vectors_NX.T, repeat_BS, batch.sequences, catalogue)
        if rescored_share > 0:
            first = score_BN.topk(min(NUM_CANDIDATES, score_BN.shape[1]), dim=-1)
            generative_BC = model.log_likelihood(memory, codes_NL[first.indices])
            mixed_BC = served_scores(first.values, generative_BC, rescored_share)
            score_BN = torch.full_like(score_BN, -torch.inf).scatter(1, first.indices, mixed_BC)
        return _top(score_BN)

    return rank


def generative_ranker(model: DualHeadModel, run: Run, num_beams: int = 32) -> Ranker:
    """The generative head by beam search; what is owned is masked inside the search."""
    table = run.semantic_ids()
    trie = table.trie
    with torch.no_grad():
        vectors_NX = model.item_vectors(run.training_set.text_NT)
    search = BeamSearch(model, trie, num_beams).eval()

    @torch.no_grad()
    def rank(batch: Batch, novel: bool) -> Lists:
        mask = np.ones((batch.size, trie.num_nodes), np.bool_)
        if novel:
            allowed = np.ones((batch.size, len(table)), bool)
            allowed[batch.owned_row.numpy(), batch.owned_item.numpy()] = False
            mask = np.stack([trie.node_mask(row) for row in allowed])
        items, _ = search(model.encode(batch.sequences, vectors_NX), torch.from_numpy(mask))
        return np.asarray(items[:, :K].numpy(), np.int64)

    return rank


def _measure(test: TestMonth, ranker: Ranker, frequency_N: NDArray[np.float64]) -> dict[str, dict[str, Any]]:
    result = {}
    for setting in ("all", "novel"):
        lists, rows, items = [], [], []
        for number, batch in enumerate(test.batches()):
            row, item = batch.target_row_P.numpy(), batch.target_item_P.numpy()
            if setting == "novel":
                new = ~np.isin(row * len(frequency_N) + item, _owned_keys(batch, len(frequency_N)))
                row, item = row[new], item[new]
            lists.append(ranker(batch, setting == "novel"))
            rows.append(row + number * BATCH_SIZE)
            items.append(item)
        row, item, top = np.concatenate(rows), np.concatenate(items), np.concatenate(lists)
        kept = np.unique(row)
        if len(kept) == 0:  # nobody bought anything new: there is nothing to measure
            result[setting] = {"orders": 0, **dict.fromkeys((f"{name}@{K}" for name in METRICS), 0.0)}
            continue
        metrics = per_order(top[kept], np.searchsorted(kept, row), item)
        result[setting] = _summary(metrics, test.user_Q[kept]) | {
            "orders": len(kept),
            "coverage": coverage(top[kept], len(frequency_N)),
            "popularity lift": popularity_lift(top[kept], frequency_N, item),
            "Gini": gini(top[kept], len(frequency_N)),
        }
    return result


def _summary(metrics: dict[str, NDArray[np.float64]], user_Q: NDArray[np.int64]) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    for name, value_Q in metrics.items():
        mean, low, high = mean_interval(value_Q, user_Q, np.random.default_rng(0))
        summary[f"{name}@{K}"] = mean
        summary[f"{name}@{K} interval"] = [low, high]
    return summary


def _without_owned(scores_BN: torch.Tensor, batch: Batch) -> torch.Tensor:
    scores_BN[batch.owned_row, batch.owned_item] = -torch.inf
    return scores_BN


def _owned_keys(batch: Batch, width: int) -> NDArray[np.int64]:
    return np.asarray(batch.owned_row.numpy() * width + batch.owned_item.numpy())


def _top(scores_BN: torch.Tensor) -> Lists:
    return top_k(scores_BN.numpy(), K, np.random.default_rng(0))
