"""Simple recommenders that every model is compared with: popularity, what the user buys often and lately, EASE, and a mix.

Each is fitted on the orders before a moment and scores all items for an order to predict. It knows the orders of the log and
those of the order's user (`Purchases`), nothing of the items but their number. Equal scores are ranked at random.
"""

# B = users or queries of a slice, P = order lines, N = items, Q = queries, k = length of the lists

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, sparse

from trainer.data.queries import OrderQueries, Purchases
from trainer.metrics import top_k

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Scores = Callable[[Purchases], Float64]
"""Function of the orders of a slice of users: a score for every item, [B, N]."""

SLICE = 500  # queries scored at once: 500 rows of 18,357 items are 73 MB


class Peer(Protocol):
    """A recommender with its settings."""

    def fit(self, log: Purchases) -> Scores:
        """Learn from the log."""
        ...


@dataclass(frozen=True)
class Popularity:
    """The same scores for everybody: order lines, buyers or first purchases of each item in the last `days` (None: ever);
    between equals, order lines ever."""

    days: float | None = None
    count: Literal["lines", "buyers", "first purchases"] = "lines"

    def fit(self, log: Purchases) -> Scores:
        """Count."""
        score_N = self.counts(log)
        return lambda queries: np.tile(score_N, (len(queries), 1))

    def counts(self, log: Purchases) -> Float64:
        """[N]; the whole number is the count asked for, the fraction breaks ties."""
        recent_P = np.ones(len(log.item_P), bool) if self.days is None else log.age_days_P <= self.days
        if self.count == "buyers":
            item = np.unique(log.row_P[recent_P] * log.num_items + log.item_P[recent_P]) % log.num_items
        elif self.count == "first purchases":
            oldest_first = np.lexsort((-log.back_P, log.item_P, log.row_P))
            pair = (log.row_P * log.num_items + log.item_P)[oldest_first]
            first = oldest_first[np.r_[True, np.diff(pair) != 0][: len(pair)]]
            item = log.item_P[first[recent_P[first]]]
        else:
            item = log.item_P[recent_P]
        ever_N = np.bincount(log.item_P, minlength=log.num_items)
        return np.asarray(np.bincount(item, minlength=log.num_items) + ever_N / (ever_N.max(initial=0) + 1))


@dataclass(frozen=True)
class PersonalFrequency:
    """How often the user ordered the item, each time discounted by its age and by the orders since; items never ordered
    come after all others, by their popularity of the last `fill_days` (the "top personal" baselines of Li et al. 2023,
    arXiv:2109.10493)."""

    decay_days: float | None = None
    order_decay: float = 1.0
    fill_days: float | None = None

    def fit(self, log: Purchases) -> Scores:
        """Only the fill is learned."""
        fill_N = Popularity(self.fill_days).counts(log)
        fill_N = 1e-9 * fill_N / fill_N.max()  # below every personal score, above the precision of its float64

        def scores(queries: Purchases) -> Float64:
            habit_BN = queries.matrix(self.weights(queries)).toarray()
            return np.asarray(habit_BN + (habit_BN > 0) + fill_N, np.float64)

        return scores

    def weights(self, queries: Purchases) -> Float64:
        """What each order line counts, [P]."""
        return decayed(queries.age_days_P, self.decay_days) * np.power(self.order_decay, queries.back_P)


@dataclass(frozen=True)
class UserVectors:
    """A user's item counts: each purchase discounted by its age, the sum as it is or as log(1 + sum)."""

    log_counts: bool = True
    decay_days: float | None = None

    def of(self, purchases: Purchases) -> sparse.csr_matrix:
        """[B, N]."""
        matrix = purchases.matrix(decayed(purchases.age_days_P, self.decay_days))
        return matrix.log1p() if self.log_counts else matrix


@dataclass(frozen=True)
class Ease:
    """EASE (Steck 2019, arXiv:1905.03375): the item-item weights, none of an item to itself, that rebuild the users'
    vectors with least squares and `regularisation` on the squared weights, in closed form. Fitted without decay."""

    regularisation: float
    vectors: UserVectors = UserVectors()

    def fit(self, log: Purchases) -> Scores:
        """Invert users × users or items × items, whichever is smaller."""
        vectors_UN = UserVectors(self.vectors.log_counts).of(log)
        solve = ease_by_users if vectors_UN.shape[0] < vectors_UN.shape[1] else ease_by_items
        apply = solve(vectors_UN, self.regularisation)
        return lambda queries: apply(self.vectors.of(queries))


def ease_by_items(vectors_UN: sparse.csr_matrix, regularisation: float) -> Callable[[sparse.csr_matrix], Float64]:
    """W = I - P / diag(P) with P = (X'X + regularisation I)⁻¹."""
    gram_NN = (vectors_UN.T @ vectors_UN).toarray().astype(np.float32)  # 18,357 items: 1.3 GB
    np.fill_diagonal(gram_NN, gram_NN.diagonal() + regularisation)
    factor_NN, _ = linalg.lapack.spotrf(gram_NN, lower=True, overwrite_a=True)
    inverse_NN, _ = linalg.lapack.spotri(factor_NN, lower=True, overwrite_c=True)
    weight_NN = np.tril(inverse_NN) + np.tril(inverse_NN, -1).T
    weight_NN /= -weight_NN.diagonal().copy()
    np.fill_diagonal(weight_NN, 0)
    return lambda query_BN: np.asarray(query_BN.astype(np.float32) @ weight_NN, np.float64)


def ease_by_users(vectors_UN: sparse.csr_matrix, regularisation: float) -> Callable[[sparse.csr_matrix], Float64]:
    """The same by the Woodbury identity: regularisation · P = I - X'(XX' + regularisation I)⁻¹X."""
    gram_UU = (vectors_UN @ vectors_UN.T).toarray()
    np.fill_diagonal(gram_UU, gram_UU.diagonal() + regularisation)
    solved_UN = vectors_UN.T.dot(np.linalg.inv(gram_UU)).T
    diagonal_N = 1 - np.asarray(vectors_UN.multiply(solved_UN).sum(axis=0)).ravel()

    def apply(query_BN: sparse.csr_matrix) -> Float64:
        query, overlap_BU = query_BN.toarray(), (query_BN @ vectors_UN.T).toarray()
        return np.asarray(query - (query - overlap_BU @ solved_UN) / diagonal_N, np.float64)

    return apply


@dataclass(frozen=True)
class FrequencyAndEase:
    """Frequency × recency, as the share of the user's decayed orders that have the item, plus a part of EASE."""

    frequency: PersonalFrequency
    ease: Ease
    ease_share: float = 0.1

    def fit(self, log: Purchases) -> Scores:
        """Only EASE is learned."""
        ease = self.ease.fit(log)

        def scores(queries: Purchases) -> Float64:
            weight_P = self.frequency.weights(queries)
            _, first = np.unique(
                queries.row_P * (queries.back_P.max(initial=0) + 1) + queries.back_P, return_index=True
            )
            orders_B = np.bincount(queries.row_P[first], weight_P[first], len(queries))
            share_BN = queries.matrix(weight_P / orders_B[queries.row_P]).toarray()
            return np.asarray(share_BN + self.ease_share * ease(queries), np.float64)

        return scores


def decayed(age_days_P: Float64, decay_days: float | None) -> Float64:
    """Return what an order line of each age counts, [P]."""
    return np.ones(len(age_days_P)) if decay_days is None else np.exp(-age_days_P / decay_days)


def ranked(queries: OrderQueries, scores: Scores, novel: bool, k: int, rng: np.random.Generator) -> Int64:
    """Return the k best items of every query, [Q, k]; `novel`: none that the user ordered before."""
    tops = [np.zeros((0, k), np.int64)]
    for start in range(0, len(queries), SLICE):
        bought = queries.purchases(start, start + SLICE)
        scores_BN = scores(bought)
        if novel:
            scores_BN[bought.row_P, bought.item_P] = -np.inf
        tops.append(top_k(scores_BN, k, rng))
    return np.concatenate(tops)


RECENT = PersonalFrequency(decay_days=270, order_decay=0.97, fill_days=28)
RECENT_AND_EASE = FrequencyAndEase(RECENT, Ease(500, UserVectors(decay_days=90)))
"""Settings that did best on a month of Complete Journey that is no test month."""
