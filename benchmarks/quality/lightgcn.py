"""LightGCN (He et al. 2020, arXiv:2002.02126) as a peer: the kind of graph model that the published design was compared with.

Users and items are the nodes of a graph, an edge is what a user bought. A node's vector is the mean over the layers of the
neighbours' vectors, weighted by 1 / √(degree · degree). It is trained in .venv-peers, see `lightgcn_pyg`; this side reads the
vectors and ranks. A user's vector is computed from what they have bought before the query, so that it is not a month old.
"""

# U = users of the log, N = items, B = users of a slice, E = edges, D = size of a vector, J = layers and the input

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from benchmarks.quality.measure import K, Lists
from benchmarks.quality.peer_process import PeerProcess
from trainer.data.dataset import Dataset
from trainer.data.queries import OrderQueries, Purchases, log_purchases
from trainer.peers import UserVectors, ranked
from trainer.run import Progress, silent

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
SCRIPT = Path(__file__).with_name("lightgcn_pyg.py")


@dataclass(frozen=True)
class LightGcnRecipe:
    """How a LightGCN is trained.

    loss: "bpr", with one negative item for each edge, as published, or "softmax" over all items, which is stronger
    temperature: divides the scores in the softmax
    regularisation: weight of the squared input vectors of the nodes in a batch, for each edge
    log_counts: an edge weighs log(1 + orders of the item), otherwise 1; decay_days: each order is discounted by its age
    batch_size: edges of a step
    """

    width: int = 64
    num_layers: int = 2
    loss: Literal["bpr", "softmax"] = "softmax"
    temperature: float = 0.2
    learning_rate: float = 5e-3
    regularisation: float = 1e-4
    log_counts: bool = True
    decay_days: float | None = None
    batch_size: int = 4096
    steps: int = 1000
    seed: int = 0

    @property
    def edges(self) -> UserVectors:
        """Return what an edge weighs."""
        return UserVectors(self.log_counts, self.decay_days)


COMPLETE_JOURNEY = LightGcnRecipe()
AMAZON = LightGcnRecipe(log_counts=False)
LIGHTGCN = {"complete-journey": COMPLETE_JOURNEY, "amazon-beauty": AMAZON, "amazon-sports": AMAZON}


@dataclass(frozen=True)
class LightGcn:
    """A trained model, in its folder."""

    process: PeerProcess
    recipe: LightGcnRecipe
    seed: int
    samples_per_s: float = 0.0

    @classmethod
    def train(
        cls, dataset: Dataset, before_ms: int, recipe: LightGcnRecipe, folder: Path, progress: Progress = silent
    ) -> LightGcn:
        """Train on the log before a time; a folder with a model of the same recipe is used as it is."""
        process = PeerProcess("LightGCN", SCRIPT, folder)
        process.train(recipe, lambda: training_arrays(log_purchases(dataset, before_ms), recipe), progress)
        return cls(process, recipe, recipe.seed)

    @property
    def training_s(self) -> float:
        """Seconds of training."""
        return float(self.process.facts["seconds"])

    def lists(self, queries: OrderQueries) -> Lists:
        """Rank for every query."""
        return {
            "all": ranked(queries, self.scores, False, K, np.random.default_rng(self.seed)),
            "novel": ranked(queries, self.scores, True, K, np.random.default_rng(self.seed)),
        }

    def scores(self, queries: Purchases) -> Float64:
        """Return [B, N]. Users that the log does not know have the neighbours' vectors only."""
        found = self._vectors
        edges_BN = found.normalised(self.recipe.edges.of(queries))
        row_B = np.searchsorted(found.user_U, queries.user_B).clip(max=len(found.user_U) - 1)
        known_B = found.user_U[row_B] == queries.user_B
        user_BD = found.user_UD[row_B] * known_B[:, None]
        for layer_ND in found.item_JND[:-1]:
            user_BD = user_BD + edges_BN @ layer_ND
        return np.asarray((user_BD / len(found.item_JND)) @ found.item_JND.mean(axis=0).T, np.float64)

    @cached_property
    def _vectors(self) -> _Vectors:
        with np.load(self.process.folder / "vectors.npz") as found, np.load(self.process.folder / "log.npz") as log:
            return _Vectors(log["user_U"], found["user_UD"], found["item_JND"], log["item_degree_N"])


@dataclass(frozen=True)
class _Vectors:
    """user_U: numbers of the log's users; user_UD and item_JND[0]: input vectors, then those of each layer."""

    user_U: NDArray[np.int64]
    user_UD: Float32
    item_JND: Float32
    item_degree_N: Float64

    def normalised(self, edges_BN: sparse.csr_matrix) -> sparse.csr_matrix:
        """Return the edges of some users, each divided by √(degree of the user · degree of the item)."""
        degree_B = np.asarray(edges_BN.sum(axis=1)).ravel()
        return normalised(edges_BN, degree_B, self.item_degree_N)


def normalised(edges_UN: sparse.csr_matrix, degree_U: Float64, degree_N: Float64) -> sparse.csr_matrix:
    """Return edge / √(degree · degree); an item that the log does not have is no neighbour."""
    per_user, per_item = (
        np.divide(1.0, np.sqrt(each), out=np.zeros(len(each)), where=each > 0) for each in (degree_U, degree_N)
    )
    return sparse.diags(per_user) @ edges_UN @ sparse.diags(per_item)


def training_arrays(log: Purchases, recipe: LightGcnRecipe) -> dict[str, NDArray[np.generic]]:
    """Return the edges (user_E, item_E, weight_E), normalised, the users' numbers and the items' degrees."""
    edges_UN = recipe.edges.of(log)
    degree_U, degree_N = (np.asarray(edges_UN.sum(axis=axis)).ravel() for axis in (1, 0))
    edges = normalised(edges_UN, degree_U, degree_N).tocoo()
    return {
        "user_E": edges.row.astype(np.int64),
        "item_E": edges.col.astype(np.int64),
        "weight_E": edges.data.astype(np.float32),
        "user_U": log.user_B,
        "item_degree_N": degree_N,
    }
