"""SASRec with a softmax loss as a peer: what it is trained on, its recipes, and the process that trains and ranks.

The model is trained and asked in .venv-peers, see `sasrec_rectools`. This side knows the data and no model.
"""

# Q = queries, S = places of a sequence, P = order lines, N = items, k = length of the lists

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from baguni.domain.errors import InvalidInputError
from benchmarks.quality.measure import Lists
from benchmarks.quality.peer_process import PeerProcess
from trainer.data.dataset import Dataset
from trainer.data.queries import OrderQueries, Purchases, log_purchases
from trainer.run import Progress, silent

Bool = NDArray[np.bool_]
Int64 = NDArray[np.int64]
SCRIPT = Path(__file__).with_name("sasrec_rectools.py")
MAX_VALIDATION_USERS = 5000


@dataclass(frozen=True)
class SasRecRecipe:
    """How a SASRec is trained.

    max_length:    places of a sequence; a place is an order line
    every_window:  train on all windows of a user's lines, not only on the newest
    order_ends:    an order is followed by a place that says so; it is read, never predicted. Else what follows an order's
                   lines is more of them, in training, but the next order, when it counts
    num_negatives: items drawn for the softmax of each place; None: all items of the catalogue
    shared_negatives: draw them once for all places of a batch: faster
    patience:      epochs without a better validation score before it stops; 0: train `max_epochs` on everything
    """

    width: int = 64
    num_blocks: int = 1
    num_heads: int = 1
    dropout: float = 0.2
    max_length: int = 50
    every_window: bool = False
    order_ends: bool = False
    num_negatives: int | None = 256
    shared_negatives: bool = False
    learning_rate: float = 1e-3
    batch_size: int = 128
    max_epochs: int = 200
    patience: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        if self.order_ends and self.patience:
            raise InvalidInputError("order_ends needs patience 0: what is left out to validate would be an order's end")


AMAZON = SasRecRecipe()
"""That of eSASRec's authors for Beauty and Sports (Tikhonovich et al. 2025, arXiv:2508.06450); theirs waits 50 epochs."""
COMPLETE_JOURNEY = SasRecRecipe(
    max_length=100,
    every_window=True,
    order_ends=True,
    num_negatives=1024,
    shared_negatives=True,
    learning_rate=2e-3,
    batch_size=16,
    max_epochs=3,
    patience=0,
)
"""The best of three recipes tried on November, at its best epoch of four: little tuning, for want of time."""
SASREC = {"complete-journey": COMPLETE_JOURNEY, "amazon-beauty": AMAZON, "amazon-sports": AMAZON}


@dataclass(frozen=True)
class SasRec:
    """A trained model, in its folder."""

    process: PeerProcess
    recipe: SasRecRecipe
    samples_per_s: float = 0.0  # a sample is a sequence of lines, no order

    @classmethod
    def train(
        cls, dataset: Dataset, before_ms: int, recipe: SasRecRecipe, folder: Path, progress: Progress = silent
    ) -> SasRec:
        """Train on the log before a time; a folder with a model of the same recipe is used as it is."""
        process = PeerProcess("SASRec", SCRIPT, folder)
        process.train(recipe, lambda: training_arrays(log_purchases(dataset, before_ms), recipe), progress)
        return cls(process, recipe)

    @property
    def training_s(self) -> float:
        """Seconds of training, validation included."""
        return float(self.process.facts["seconds"])

    def lists(self, queries: OrderQueries) -> Lists:
        """Rank for every query."""
        folder = self.process.folder
        with np.load(folder / "log.npz") as log:
            known, count_N = np.unique(log["item_P"]), log["count_N"]
        arrays = query_arrays(queries.purchases(), known, self.recipe)
        np.savez(folder / "queries.npz", allow_pickle=False, **arrays, count_N=count_N)
        self.process.run("rank", silent)
        with np.load(folder / "lists.npz") as found:
            return {"all": found["all"], "novel": found["novel"]}


def training_arrays(log: Purchases, recipe: SasRecRecipe) -> dict[str, Int64]:
    """The sequences (sequence_P, item_P) and, with `patience`, the left-out last line of up to 5,000 users, with what came
    before it (see `query_arrays`)."""
    row_P, item_P = lines_in_time(log, recipe.seed, recipe.order_ends)
    last_P = last_of_each(row_P) & (recipe.patience > 0)
    row, item = row_P[~last_P], item_P[~last_P]
    sequence, windowed = windows(row, item, recipe.max_length, recipe.every_window)
    count_N = np.bincount(item[item < log.num_items], minlength=log.num_items)
    arrays = {"sequence_P": sequence, "item_P": windowed, "count_N": count_N}
    if not recipe.patience:
        return arrays
    chosen = np.random.default_rng(recipe.seed).permutation(np.unique(row))[:MAX_VALIDATION_USERS]
    target_P, before_P = last_P & np.isin(row_P, chosen), np.isin(row, chosen)
    row, item = np.unique(row[before_P], return_inverse=True)[1], item[before_P]
    history = padded_known(row, item, len(chosen), np.unique(windowed), recipe.max_length)
    return arrays | {"target_Q": item_P[target_P], "item_QS": history, "bought_row_P": row, "bought_item_P": item}


def query_arrays(bought: Purchases, known: Int64, recipe: SasRecRecipe) -> dict[str, Int64]:
    """item_QS: each query's newest lines of known items, oldest first, padded in front with -1; bought_row_P and
    bought_item_P: all its lines."""
    row_P, item_P = lines_in_time(bought, recipe.seed, recipe.order_ends)
    item_QS = padded_known(row_P, item_P, len(bought), known, recipe.max_length)
    return {"item_QS": item_QS, "bought_row_P": bought.row_P, "bought_item_P": bought.item_P}


def lines_in_time(purchases: Purchases, seed: int, order_ends: bool = False) -> tuple[Int64, Int64]:
    """Row and item of each line, oldest first; within an order at random, or the model would learn how items are
    numbered. `order_ends`: after each order the item number N."""
    row_P, back_P, item_P = purchases.row_P, purchases.back_P, purchases.item_P
    chance_P = np.random.default_rng(seed).random(len(item_P))
    if order_ends:
        last = np.flatnonzero(np.r_[(np.diff(row_P) != 0) | (np.diff(back_P) != 0), True][: len(row_P)])
        row_P, back_P = np.r_[row_P, row_P[last]], np.r_[back_P, back_P[last]]
        item_P, chance_P = np.r_[item_P, np.full(len(last), purchases.num_items)], np.r_[chance_P, np.ones(len(last))]
    by_time = np.lexsort((chance_P, -back_P, row_P))
    return row_P[by_time], item_P[by_time]


def windows(row_P: Int64, item_P: Int64, max_length: int, every_window: bool) -> tuple[Int64, Int64]:
    """Each user's newest `max_length` + 1 lines as a sequence: that many have `max_length` targets. `every_window`: and so
    on back, overlapping by one line, so that every line but a user's first is a target once.

    >>> windows(np.array([0, 0, 0, 0]), np.array([5, 6, 7, 8]), 2, True)
    (array([0, 0, 1, 1, 1]), array([5, 6, 6, 7, 8]))
    """
    back_P = places_from_end(row_P)
    window_P = back_P // max_length
    shared = np.flatnonzero((back_P % max_length == 0) & (back_P > 0))  # a window's newest line and the next's oldest
    line = np.r_[np.arange(len(row_P)), shared]
    window = np.r_[window_P, window_P[shared] - 1]
    if not every_window:
        line, window = line[window == 0], window[window == 0]
    by_time = np.lexsort((line, -window, row_P[line]))
    line, window = line[by_time], window[by_time]
    new = (np.diff(row_P[line]) != 0) | (np.diff(window) != 0)
    return np.cumsum(np.r_[False, new][: len(line)]), item_P[line]


def padded(row_P: Int64, item_P: Int64, num_rows: int, length: int) -> Int64:
    """The newest `length` items of each row, padded in front with -1.

    >>> padded(np.array([0, 0, 0, 2]), np.array([5, 6, 7, 8]), 3, 2)
    array([[ 6,  7],
           [-1, -1],
           [-1,  8]])
    """
    back_P = places_from_end(row_P)
    newest = back_P < length
    item_QS = np.full((num_rows, length), -1, np.int64)
    item_QS[row_P[newest], length - 1 - back_P[newest]] = item_P[newest]
    return item_QS


def padded_known(row_P: Int64, item_P: Int64, num_rows: int, known: Int64, length: int) -> Int64:
    """`padded`, as if there were only the known items."""
    in_model = np.isin(item_P, known)
    return padded(row_P[in_model], item_P[in_model], num_rows, length)


def places_from_end(row_P: Int64) -> Int64:
    """0 for the last line of each row, 1 for the one before, and so on; rows ascend."""
    return np.searchsorted(row_P, row_P, side="right") - 1 - np.arange(len(row_P))


def last_of_each(row_P: Int64) -> Bool:
    """The last line of each row; rows ascend."""
    return np.asarray(places_from_end(row_P) == 0)
