"""Next-order prediction in the last month of the log, by the protocol of docs/benchmarks.md: every model ranks the whole
catalogue, once among all items and once among those that the user never bought.
"""

# Q = queries, k = length of the lists, N = items, B = batch

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from baguni.domain.scoring import served_scores
from baguni.domain.signature import EVERYTHING, NOVEL, NUM_CANDIDATES
from trainer.data.queries import OrderQueries, log_purchases
from trainer.decoding import BeamSearch
from trainer.files import share
from trainer.metrics import coverage, gini, mean_interval, per_order, popularity_lift, top_k
from trainer.model import DualHeadModel
from trainer.peers import RECENT, RECENT_AND_EASE, Peer, ranked
from trainer.retrieval import whole_catalogue, with_repeat_score
from trainer.run import ITEM_FILES, Progress, Run, silent
from trainer.samples import Batch, OrderSamples

K = 10
DISTILLED, GENERATIVE, TEACHER, BEFORE = "retrieval, distilled", "generative", "teacher", "before: "
"""Names of models in what `evaluate` returns. TEACHER: the generative head that is distilled from, by beam search; GENERATIVE:
that of the distilled model; BEFORE begins the names of a warm run's base."""
METRICS = ("HR", "Recall", "Recall_min", "NDCG")
SETTINGS = ("all", "novel")
MAX_EASE = 12_000  # users or items, whichever are fewer: of so many, a matrix is inverted
BATCH_SIZE = 128
Lists = NDArray[np.int64]
Ranker = Callable[[Batch, bool], Lists]
"""(batch of queries, novel) → [B, K] item indexes; novel: bought items must not be returned."""


@dataclass(frozen=True)
class TestMonth:
    """The orders to predict, as queries and as the run's models read them."""

    samples: OrderSamples
    queries: OrderQueries

    def batches(self) -> Iterator[Batch]:
        """Yield the queries in order, BATCH_SIZE at a time."""
        for start in range(0, len(self.queries), BATCH_SIZE):
            yield self.samples.batch(self.queries.order_Q[start : start + BATCH_SIZE])


def month_to_predict(run: Run, mode: Literal["first", "rolling"], limit: int | None = None) -> TestMonth:
    """Return the run's test month; `limit` takes a random part of it."""
    queries = OrderQueries.of(run.dataset, run.test_start_ms, min_orders=run.recipe.min_test_orders)
    if mode == "first":
        queries = queries.at(np.flatnonzero(queries.first_Q))
    if limit is not None and limit < len(queries):
        queries = queries.at(np.sort(np.random.default_rng(0).choice(len(queries), limit, replace=False)))
    return TestMonth(run.samples(run.dataset), queries)


def evaluate(
    run: Run,
    mode: Literal["first", "rolling"] = "first",
    limit: int | None = None,
    progress: Progress = silent,
    rankers: Mapping[str, Ranker] | None = None,
) -> dict[str, Any]:
    """Return every model of a run on its test month beside simple peers, {model: {"all" | "novel": {metric: value}}}, with the
    test's own facts. `rankers`: other models than the run's own."""
    test = month_to_predict(run, mode, limit)
    facts = {"mode": mode, "orders": len(test.queries), "k": K}
    if len(test.queries) == 0:
        return {**facts, "models": {}}
    frequency_N = run.frequency_N.astype(np.float64)
    popularity = popularity_ranker(run.recent_popularity())
    makers = {"global popularity": partial(_lists, test, popularity)}
    makers |= {name: partial(_peer_lists, run, test, peer) for name, peer in simple_peers(run).items()}
    makers |= {name: partial(_lists, test, ranker) for name, ranker in (rankers or own_rankers(run)).items()}
    results = {}
    for number, name in enumerate(makers):
        results[name] = _measure(test, makers[name](), frequency_N)
        progress("evaluation", number + 1, len(makers), name)
    return {**facts, "models": results}


def own_rankers(run: Run) -> dict[str, Ranker]:
    """Return the models of a finished run."""
    return {
        "retrieval before distillation": retrieval_ranker(run.model(distilled=False), run),
        TEACHER: generative_ranker(run.teacher(), run),
        **released_rankers(run.model(), run),
    }


def released_rankers(model: DualHeadModel, run: Run, prefix: str = "") -> dict[str, Ranker]:
    """Return what a release does with a model, by name. `run`: whose statistics and Semantic IDs it has."""
    rankers = {DISTILLED: retrieval_ranker(model, run), GENERATIVE: generative_ranker(model, run)}
    if run.recipe.rescored_share > 0:
        rankers["retrieval, rescored"] = retrieval_ranker(model, run, run.recipe.rescored_share)
    return {prefix + name: ranker for name, ranker in rankers.items()}


def evaluate_warm(
    run: Run, mode: Literal["first", "rolling"] = "first", limit: int | None = None, progress: Progress = silent
) -> dict[str, Any]:
    """Return a warm run and its base on the orders since the base's training ended, both as of that moment.

    The base has not seen these orders, and the run has: this says what the base was worth on new days, and whether the run is
    broken, not how good it is. `unseen` is the last evaluation of this row of runs on a month that the model had not seen.
    """
    base = run.base
    assert base is not None
    until_ms = base.facts.trained_until_ms
    assert until_ms is not None
    before = Run(run.path / "before", run.dataset_path, replace(run.recipe, until_ms=until_ms, is_warm=False))
    before.dataset = run.dataset
    share(run.path, before.path, (*ITEM_FILES, "dual_head.pt", "distilled.pt"))
    model = before.fresh_model()
    model.load_state_dict(base.model_state(model.state_dict(), run.item_ids))
    rankers = {**own_rankers(before), **released_rankers(model.eval(), before, BEFORE)}
    unseen = {name: base.facts.unseen[name] for name in ("k", "mode", "orders", "models") if name in base.facts.unseen}
    return evaluate(before, mode, limit, progress, rankers) | {"base": base.facts.name, "unseen": unseen}


def warm_problem(metrics: Mapping[str, Any], model: str, metric: str, tolerance: float) -> str:
    """Return why a warm run is worse than its base on orders that the run has seen and the base has not; "" if it is not.
    `metrics`: of `evaluate_warm`."""
    now, was = (metrics["models"][name]["all"][metric] for name in (model, BEFORE + model))
    least = (1 - tolerance) * was
    if now >= least:
        return ""
    return f"{metric} of {model!r} is {now:.4f} on the orders since {metrics['base']}, expected at least {least:.4f}"


def generative_problem(metrics: Mapping[str, Any]) -> str:
    """Return why the generative head of a released model is worse than its teacher: its NDCG is below the teacher's, with its
    whole 95 % interval. "" if it is not, or if the teacher was not measured."""
    models = metrics.get("models", {})
    if not {GENERATIVE, TEACHER} <= models.keys():
        return ""
    for setting in SETTINGS:
        own, teacher = models[GENERATIVE][setting], models[TEACHER][setting]
        name = f"NDCG@{metrics['k']}"
        if f"{name} interval" in own and own[f"{name} interval"][1] < teacher[name]:
            return (
                f"{name} of the generative head after distillation is {own[name]:.4f} on {setting} items, that of its teacher "
                f"{teacher[name]:.4f}: campaigns would get worse lists"
            )
    return ""


def simple_peers(run: Run) -> dict[str, Peer]:
    """Return what a model has to beat: what users buy often and lately and, if the log is small enough for its closed form,
    that with a part of EASE."""
    peers: dict[str, Peer] = {"frequency × recency": RECENT}
    if min(len(run.dataset.user_ids), len(run.dataset.catalog)) <= MAX_EASE:
        peers["frequency × recency + EASE"] = RECENT_AND_EASE
    return peers


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
    vectors_NX = run.served_vectors(model)

    @torch.no_grad()
    def rank(batch: Batch, novel: bool) -> Lists:
        memory = model.encode(batch.sequences, vectors_NX)
        user_BQX = model.user_embedding(memory)
        if novel:
            return _top(_without_owned(user_BQX[:, NOVEL] @ vectors_NX.T, batch))
        repeat_BS = model.served_repeat_score(memory, batch.sequences)
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


def _lists(test: TestMonth, ranker: Ranker) -> dict[str, Lists]:
    """Return [Q, K] for each setting."""
    return {
        setting: np.concatenate([ranker(batch, setting == "novel") for batch in test.batches()]) for setting in SETTINGS
    }


def _peer_lists(run: Run, test: TestMonth, peer: Peer) -> dict[str, Lists]:
    """Return [Q, K] for each setting."""
    scores = peer.fit(log_purchases(run.dataset, run.test_start_ms))
    rng = np.random.default_rng(0)
    return {setting: ranked(test.queries, scores, setting == "novel", K, rng) for setting in SETTINGS}


def _measure(test: TestMonth, lists: dict[str, Lists], frequency_N: NDArray[np.float64]) -> dict[str, dict[str, Any]]:
    result = {}
    for setting in SETTINGS:
        row, item = test.queries.truth(setting == "novel")
        kept = np.unique(row)
        if len(kept) == 0:  # nobody bought anything new: there is nothing to measure
            result[setting] = {"orders": 0, **dict.fromkeys((f"{name}@{K}" for name in METRICS), 0.0)}
            continue
        top = lists[setting][kept]
        metrics = per_order(top, np.searchsorted(kept, row), item)
        result[setting] = _summary(metrics, test.queries.user_Q[kept]) | {
            "orders": len(kept),
            "coverage": coverage(top, len(frequency_N)),
            "popularity lift": popularity_lift(top, frequency_N, item),
            "Gini": gini(top, len(frequency_N)),
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


def _top(scores_BN: torch.Tensor) -> Lists:
    return top_k(scores_BN.numpy(), K, np.random.default_rng(0))
