"""The classic peers: those of `trainer.peers`, TIFU-KNN, item-item neighbours, and what is bought for the first time.

`PEERS` contains the settings that did best on November (the validation month), for both questions: "all" (all items of the next
order count) and "novel" (only items that the user never bought, and none of the others may be recommended).
"""

# B = users or queries of a slice, U = users of the log, P = order lines, N = items, Q = queries, k = length of the lists

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from implicit.nearest_neighbours import BM25Recommender, CosineRecommender
from implicit.utils import ParameterWarning
from numpy.typing import NDArray
from scipy import sparse

from baguni.domain.errors import InvalidInputError
from benchmarks.quality.measure import SETTINGS, Float64, Int64, K, Lists, Setting
from trainer.data.dataset import Dataset
from trainer.data.queries import OrderQueries, Purchases, log_purchases
from trainer.peers import (
    RECENT,
    RECENT_AND_EASE,
    Ease,
    Peer,
    PersonalFrequency,
    Popularity,
    Scores,
    UserVectors,
    ranked,
)

FEW, LEAST = 0.5, 1e-3  # keep logarithms of 0 finite


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
class ItemKnn:
    """Item-item nearest neighbours (Deshpande and Karypis 2004, doi:10.1145/963770.963776), as `implicit` computes them:
    items are alike that stand in the same orders or are bought by the same users. Fitted on counts without decay."""

    similarity: Literal["cosine", "bm25"] = "cosine"
    num_neighbours: int = 50
    together_in: Literal["orders", "users"] = "users"
    vectors: UserVectors = UserVectors()  # noqa: RUF009 - frozen

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
class FirstPurchases:
    """Rank what a user may buy for the first time, in closed form: log EASE, a share of the log of how often each item was
    lately bought for the first time, and a share of the log of its text's likeness to what the user bought.

    text_NT: text embeddings of the catalogue; `sharpness`: of their likeness, exp(sharpness · (cosine - 1)); `text_days`: what
    the user bought is discounted by its age
    """

    ease: Ease
    first: Popularity
    first_share: float
    text_share: float
    text_days: float = 90.0
    sharpness: float = 15.0
    text_NT: NDArray[np.float32] | None = field(default=None, repr=False, compare=False)

    def fit(self, log: Purchases) -> Scores:
        """Fit EASE, count, and compare every text with every other. Raises InvalidInputError without texts."""
        if self.text_NT is None:
            raise InvalidInputError("first purchases need the texts of the items")
        text_NT = self.text_NT / np.linalg.norm(self.text_NT, axis=1, keepdims=True).clip(min=1e-12)
        near_NN = np.exp(self.sharpness * (text_NT @ text_NT.T - 1)).astype(np.float32)
        ease, first_N = self.ease.fit(log), np.log(self.first.counts(log) + FEW)
        bought = UserVectors(decay_days=self.text_days)

        def scores(queries: Purchases) -> Float64:
            like_BN = np.asarray(bought.of(queries) @ near_NN, np.float64)
            found = np.log(ease(queries).clip(min=0) + LEAST) + self.first_share * first_N
            return np.asarray(found + self.text_share * np.log(like_BN + LEAST), np.float64)

        return scores


@dataclass(frozen=True)
class Tuned:
    """A peer with the settings that did best on validation, for each setting of the benchmark. `fill`: for users of whom no
    order is known."""

    all: Peer
    novel: Peer
    fill: Peer = Popularity(28)  # noqa: RUF009 - frozen


COMPLETE_JOURNEY = {
    "global popularity": Tuned(Popularity(), Popularity()),
    "popularity, 4 weeks": Tuned(Popularity(28), Popularity(28)),
    "popularity, tuned window": Tuned(Popularity(14), Popularity(56, "buyers")),
    "personal frequency": Tuned(PersonalFrequency(), PersonalFrequency()),
    "personal frequency × recency": Tuned(RECENT, RECENT),
    "TIFU-KNN": Tuned(TifuKnn(15, 0.95, 0.6, 100, 0.5), TifuKnn(3, 0.8, 0.7, 300, 0.7)),
    "ItemKNN": Tuned(
        ItemKnn("cosine", 50, "orders", UserVectors(log_counts=False, decay_days=60)),
        ItemKnn("bm25", 50, "users", UserVectors(log_counts=False, decay_days=90)),
    ),
    "EASE": Tuned(Ease(10, UserVectors()), Ease(500, UserVectors(decay_days=180))),
    "frequency × recency + 0.1 EASE": Tuned(
        RECENT_AND_EASE,
        RECENT_AND_EASE,
    ),
    "closed forms": Tuned(
        RECENT_AND_EASE,
        FirstPurchases(Ease(500, UserVectors(decay_days=180)), Popularity(56, "first purchases"), 0.3, 0.2),
    ),
}

_AMAZON_KNN = ItemKnn("bm25", 200, "users", UserVectors(log_counts=False))
_AMAZON_EASE = Ease(100, UserVectors(log_counts=False))
AMAZON = {
    "global popularity": Tuned(Popularity(), Popularity(), Popularity()),
    "ItemKNN": Tuned(_AMAZON_KNN, _AMAZON_KNN, Popularity()),
    "EASE": Tuned(_AMAZON_EASE, _AMAZON_EASE, Popularity()),
}
"""Nobody reviews a product twice: what lives on repeated purchases has nothing to say here."""
PEERS = {"complete-journey": COMPLETE_JOURNEY, "amazon-beauty": AMAZON, "amazon-sports": AMAZON}


def peer_lists(
    dataset: Dataset,
    queries: OrderQueries,
    peer: Tuned,
    until_ms: int | None = None,
    texts: Callable[[], NDArray[np.float32]] | None = None,
    settings: Iterable[Setting] = SETTINGS,
    seed: int = 0,
) -> Lists:
    """Fit a peer on the log before `until_ms` (None: before the queries' window) and rank all items for every query. `texts`
    returns text embeddings of the catalogue, for a peer that needs them."""
    log = log_purchases(dataset, queries.start_ms if until_ms is None else until_ms)
    scores: dict[str, Scores] = {}
    fill = peer.fill.fit(log)
    lists: dict[Setting, Int64] = {}
    for setting in settings:
        model: Peer = getattr(peer, setting)
        if isinstance(model, FirstPurchases) and texts is not None:
            model = replace(model, text_NT=texts())
        if repr(model) not in scores:
            scores[repr(model)] = filled(model.fit(log), fill)
        lists[setting] = ranked(queries, scores[repr(model)], setting == "novel", K, np.random.default_rng(seed))
    return lists


def filled(scores: Scores, fill: Scores) -> Scores:
    """Return scores that are those of `fill` for users without an order."""

    def of(queries: Purchases) -> Float64:
        found_BN, unknown_B = scores(queries), queries.num_orders_B == 0
        if unknown_B.any():
            found_BN[unknown_B] = fill(queries)[unknown_B]
        return found_BN

    return of
