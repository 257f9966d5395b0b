"""The classic peers: each is fitted on the log before the window and scores all items for every order to predict.

A peer knows the orders of the log and of each query's user (`Purchases`); nothing of the items but their number. What was
chosen by how November (validation month) came out stands in `PEERS`, for both settings: "all" (all items of the next
order count) and "novel" (only items that the user never bought, and none of the others may be recommended). Equal
scores are ranked at random.
"""

# B = users or queries of a slice, U = users of the log, P = order lines, N = items, Q = queries, k = length of the lists

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from implicit.nearest_neighbours import BM25Recommender, CosineRecommender
from implicit.utils import ParameterWarning
from scipy import linalg, sparse

from benchmarks.quality.measure import SETTINGS, Float64, Int64, K, Lists, Setting
from benchmarks.quality.queries import OrderQueries, Purchases, log_purchases
from trainer.data.dataset import Dataset
from trainer.metrics import top_k

Scores = Callable[[Purchases], Float64]
"""What the users of a slice had ordered → a score for every item, [B, N]."""

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
        return _decay(queries.age_days_P, self.decay_days) * np.power(self.order_decay, queries.back_P)


@dataclass(frozen=True)
class TifuKnn:
    """TIFU-KNN (Hu et al. 2020, arXiv:2006.00556): decayed frequency within groups of orders and over the groups, mixed
    with that of the users nearest to it.

    Groups have `group_size` orders counted from the newest; the paper counts from the oldest, so that its newest group
    is the incomplete one. Neighbours' vectors are those of the log; a user is no neighbour of their own.
    """

    group_size: int
    within_decay: float
    group_decay: float
    num_neighbours: int
    own_share: float

    def fit(self, log: Purchases) -> Scores:
        """The vectors of all users of the log are the model."""
        vector_UN = self.vectors(log)
        square_U = np.asarray(vector_UN.multiply(vector_UN).sum(axis=1)).ravel()
        num_neighbours = min(self.num_neighbours, len(log) - 1)

        def scores(queries: Purchases) -> Float64:
            own_BN = self.vectors(queries)
            distance_BU = square_U - 2 * (own_BN @ vector_UN.T).toarray()  # + |own|², the same for all of a row
            distance_BU[queries.user_B[:, None] == log.user_B] = np.inf
            near_Bk = np.argpartition(distance_BU, num_neighbours - 1, axis=1)[:, :num_neighbours]
            row = np.repeat(np.arange(len(queries)), num_neighbours)
            share = np.full(near_Bk.size, 1 / max(num_neighbours, 1))
            mean_BU = sparse.csr_matrix((share, (row, near_Bk.ravel())), shape=distance_BU.shape)
            mixed_BN = self.own_share * own_BN + (1 - self.own_share) * (mean_BU @ vector_UN)
            return np.asarray(mixed_BN.toarray(), np.float64)

        return scores

    def vectors(self, purchases: Purchases) -> sparse.csr_matrix:
        """Each user's temporal item frequencies, [B, N]."""
        group_P, place_P = np.divmod(purchases.back_P, self.group_size)
        num_groups_B = np.ceil(purchases.num_orders_B / self.group_size)
        within_P = np.power(self.within_decay, place_P) / self.group_size
        return purchases.matrix(within_P * np.power(self.group_decay, group_P) / num_groups_B[purchases.row_P])


@dataclass(frozen=True)
class UserVectors:
    """A user's item counts: each purchase discounted by its age, the sum as it is or as log(1 + sum)."""

    log_counts: bool = True
    decay_days: float | None = None

    def of(self, purchases: Purchases) -> sparse.csr_matrix:
        """[B, N]."""
        matrix = purchases.matrix(_decay(purchases.age_days_P, self.decay_days))
        return matrix.log1p() if self.log_counts else matrix


@dataclass(frozen=True)
class ItemKnn:
    """Item-item nearest neighbours (Deshpande and Karypis 2004, doi:10.1145/963770.963776), as `implicit` computes them:
    items are alike that stand in the same orders or are bought by the same users. Fitted on counts without decay."""

    similarity: Literal["cosine", "bm25"] = "cosine"
    num_neighbours: int = 50
    together_in: Literal["orders", "users"] = "users"
    vectors: UserVectors = UserVectors()

    def fit(self, log: Purchases) -> Scores:
        """Similarities of each item to its neighbours; an item is its own nearest."""
        together = log.orders() if self.together_in == "orders" else UserVectors(self.vectors.log_counts).of(log)
        if self.similarity == "bm25":
            model = BM25Recommender(self.num_neighbours, K1=1.2, B=0.75, num_threads=1)
        else:
            model = CosineRecommender(self.num_neighbours, num_threads=1)
        with warnings.catch_warnings():  # implicit hands itself a COO matrix, and says so
            warnings.simplefilter("ignore", ParameterWarning)
            model.fit(together, show_progress=False)
        similarity_NN = model.similarity.tocsr()
        return lambda queries: np.asarray((self.vectors.of(queries) @ similarity_NN).toarray(), np.float64)


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


def _decay(age_days_P: Float64, decay_days: float | None) -> Float64:
    return np.ones(len(age_days_P)) if decay_days is None else np.exp(-age_days_P / decay_days)


@dataclass(frozen=True)
class Tuned:
    """A peer with the settings that did best on validation, for each setting of the benchmark."""

    all: Peer
    novel: Peer


_RECENT = PersonalFrequency(decay_days=270, order_decay=0.97, fill_days=28)
COMPLETE_JOURNEY = {
    "global popularity": Tuned(Popularity(), Popularity()),
    "popularity, 4 weeks": Tuned(Popularity(28), Popularity(28)),
    "popularity, tuned window": Tuned(Popularity(14), Popularity(56, "buyers")),
    "personal frequency": Tuned(PersonalFrequency(), PersonalFrequency()),
    "personal frequency × recency": Tuned(_RECENT, _RECENT),
    "TIFU-KNN": Tuned(TifuKnn(15, 0.95, 0.6, 100, 0.5), TifuKnn(3, 0.8, 0.7, 300, 0.7)),
    "ItemKNN": Tuned(
        ItemKnn("cosine", 50, "orders", UserVectors(log_counts=False, decay_days=60)),
        ItemKnn("bm25", 50, "users", UserVectors(log_counts=False, decay_days=90)),
    ),
    "EASE": Tuned(Ease(10, UserVectors()), Ease(500, UserVectors(decay_days=180))),
    "frequency × recency + 0.1 EASE": Tuned(
        FrequencyAndEase(_RECENT, Ease(500, UserVectors(decay_days=90))),
        FrequencyAndEase(_RECENT, Ease(500, UserVectors(decay_days=90))),
    ),
}

_AMAZON_KNN = ItemKnn("bm25", 200, "users", UserVectors(log_counts=False))
_AMAZON_EASE = Ease(100, UserVectors(log_counts=False))
AMAZON = {
    "global popularity": Tuned(Popularity(), Popularity()),
    "ItemKNN": Tuned(_AMAZON_KNN, _AMAZON_KNN),
    "EASE": Tuned(_AMAZON_EASE, _AMAZON_EASE),
}
"""Nobody reviews a product twice: what lives on repeated purchases has nothing to say here."""
PEERS = {"complete-journey": COMPLETE_JOURNEY, "amazon-beauty": AMAZON, "amazon-sports": AMAZON}


def peer_lists(
    dataset: Dataset, queries: OrderQueries, peer: Tuned, settings: Iterable[Setting] = SETTINGS, seed: int = 0
) -> Lists:
    """Fit a peer on the log before the queries' window and rank all items for every query."""
    log = log_purchases(dataset, queries.start_ms)
    scores: dict[str, Scores] = {}
    lists: dict[Setting, Int64] = {}
    for setting in settings:
        model: Peer = getattr(peer, setting)
        if repr(model) not in scores:
            scores[repr(model)] = model.fit(log)
        lists[setting] = ranked(queries, scores[repr(model)], setting == "novel", np.random.default_rng(seed))
    return lists


def ranked(queries: OrderQueries, scores: Scores, novel: bool, rng: np.random.Generator) -> Int64:
    """The K best items of every query, [Q, K]; `novel`: none that the user ordered before."""
    tops = [np.zeros((0, K), np.int64)]
    for start in range(0, len(queries), SLICE):
        bought = queries.purchases(start, start + SLICE)
        scores_BN = scores(bought)
        if novel:
            scores_BN[bought.row_P, bought.item_P] = -np.inf
        tops.append(top_k(scores_BN, K, rng))
    return np.concatenate(tops)
