"""Ranking metrics, per order, and what can be said of their means.

A list is a row of item indexes, best first, -1 = empty place. All metrics are exact, over the full catalogue.
"""

# Q = queries (orders to predict), k = length of the lists, P = true items of all queries

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from baguni.domain.errors import InvalidInputError

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]


def hits(top_Qk: NDArray[np.integer], true_row_P: Int64, true_item_P: Int64) -> NDArray[np.bool_]:
    """Which places of each list hold a true item, [Q, k]. Raises InvalidInputError if a list names an item twice."""
    ordered = np.sort(top_Qk, axis=1)
    repeated = ((np.diff(ordered, axis=1) == 0) & (ordered[:, 1:] >= 0)).any(axis=1)
    if repeated.any():
        raise InvalidInputError(f"list {int(np.flatnonzero(repeated)[0])} names an item twice")
    width = int(max(top_Qk.max(initial=0), true_item_P.max(initial=0))) + 1
    place_key = np.where(top_Qk >= 0, np.arange(len(top_Qk))[:, None] * width + top_Qk, -1)
    return np.isin(place_key, true_row_P * width + true_item_P) & (top_Qk >= 0)


def per_order(top_Qk: NDArray[np.integer], true_row_P: Int64, true_item_P: Int64) -> dict[str, Float64]:
    """HR, Recall (hits / true items), Recall_min (hits / min(k, true items)) and NDCG at k, each [Q].

    Queries without a true item must be left out before. Binary gains; the ideal list has min(k, true items) hits.
    """
    k = top_Qk.shape[1]
    hit_Qk = hits(top_Qk, true_row_P, true_item_P)
    num_true = np.bincount(true_row_P, minlength=len(top_Qk))
    if (num_true == 0).any():
        raise InvalidInputError(f"query {int(np.flatnonzero(num_true == 0)[0])} has no true item")
    discount = 1 / np.log2(np.arange(2, k + 2))
    ideal = np.cumsum(discount)[np.minimum(k, num_true) - 1]
    num_hits = hit_Qk.sum(axis=1)
    return {
        "HR": (num_hits > 0).astype(np.float64),
        "Recall": num_hits / num_true,
        "Recall_min": num_hits / np.minimum(k, num_true),
        "NDCG": (hit_Qk * discount).sum(axis=1) / ideal,
    }


def top_k(scores_QN: NDArray[np.floating], k: int, rng: np.random.Generator) -> Int64:
    """The k best items of each row, best first; equal scores in random order, never by index. -inf is never returned
    (-1 instead)."""
    num_items = scores_QN.shape[1]
    shuffle = rng.permutation(num_items)
    shuffled = scores_QN[:, shuffle]
    k_here = min(k, num_items)
    best = np.argpartition(-shuffled, k_here - 1, axis=1)[:, :k_here]
    value = np.take_along_axis(shuffled, best, axis=1)
    order = np.argsort(-value, axis=1, kind="stable")
    top = np.take_along_axis(shuffle[best], order, axis=1)
    top = np.where(np.isneginf(np.take_along_axis(value, order, axis=1)), -1, top)
    return np.pad(top, ((0, 0), (0, k - k_here)), constant_values=-1)


def mean_interval(
    value_Q: Float64,
    user_Q: Int64,
    rng: np.random.Generator,
    num_resamples: int = 1000,
    weight_Q: NDArray[np.number] | None = None,
) -> tuple[float, float, float]:
    """Return the mean over orders and its 95 % interval, by resampling users, whose orders belong together. Give the difference
    of two models' values for a paired interval. `weight_Q`: of the orders; None = all alike."""
    _, user = np.unique(user_Q, return_inverse=True)
    weight_Q = np.ones(len(value_Q)) if weight_Q is None else weight_Q
    total, count = np.bincount(user, weights=value_Q * weight_Q), np.bincount(user, weights=weight_Q)
    drawn = rng.integers(0, len(total), (num_resamples, len(total)))
    means = total[drawn].sum(axis=1) / count[drawn].sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(np.average(value_Q, weights=weight_Q)), float(low), float(high)


def coverage(top_Qk: NDArray[np.integer], num_items: int) -> float:
    """Share of the catalogue that stands in at least one list."""
    return len(np.unique(top_Qk[top_Qk >= 0])) / num_items


def popularity_lift(top_Qk: NDArray[np.integer], frequency_N: Float64, true_item_P: Int64) -> float:
    """Mean popularity of what is recommended over that of what is ordered: 1 = as popular as what people buy."""
    return float(frequency_N[top_Qk[top_Qk >= 0]].mean() / max(frequency_N[true_item_P].mean(), 1e-12))


def gini(top_Qk: NDArray[np.integer], num_items: int) -> float:
    """Inequality of how often items are recommended: 0 = all alike, 1 = one item only."""
    count = np.sort(np.bincount(top_Qk[top_Qk >= 0].ravel(), minlength=num_items)).astype(np.float64)
    rank = np.arange(1, num_items + 1)
    return float((2 * (rank * count).sum() / count.sum() - (num_items + 1)) / num_items)
