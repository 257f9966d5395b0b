"""From ranked lists to numbers. Every contender is judged by its lists alone, so that all are judged alike: this file knows
nothing of models.

A contender's lists answer every order of the test month ("rolling"), each with all that the user did before it; the "first"
metrics are those of each user's first order of the month. In the setting "novel" only items that the user never ordered
count, none of those may be listed, and orders without one drop out.
"""

# Q = queries (orders to predict), k = length of the lists, N = items, P = true items of all queries, O = orders

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from baguni.domain.errors import InvalidInputError
from trainer.data.dataset import Orders
from trainer.data.queries import OrderQueries
from trainer.metrics import coverage, gini, mean_interval, per_order, popularity_lift

K = 10
Setting = Literal["all", "novel"]
SETTINGS: tuple[Setting, ...] = ("all", "novel")
MODES = ("rolling", "first")
METRICS = ("HR", "Recall", "Recall_min", "NDCG")
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Bool = NDArray[np.bool_]
Lists = Mapping[Setting, NDArray[np.integer]]
"""{"all": [Q, K], "novel": [Q, K]} item indexes, best first, -1 = empty place."""
Values = dict[Setting, dict[str, Float64]]
"""{setting: {"NDCG@10": one value per query of that setting}}."""


@dataclass(frozen=True)
class Truth:
    """What was ordered, and who had bought what before."""

    queries: OrderQueries

    def __len__(self) -> int:
        return len(self.queries)

    @property
    def num_items(self) -> int:
        """Items of the catalogue."""
        return len(self.queries.dataset.catalog.items)

    @property
    def modes(self) -> tuple[str, ...]:
        """Rolling and first, or only rolling where every user has one order to predict."""
        return MODES[:1] if self.queries.first_Q.all() else MODES

    def kept(self, setting: Setting) -> Int64:
        """The queries that have a true item in a setting."""
        return np.unique(self.queries.truth(setting == "novel")[0])

    def within(self, setting: Setting, mode: str) -> Bool:
        """Which of the kept queries belong to a mode."""
        kept = self.kept(setting)
        return self.queries.first_Q[kept] if mode == "first" else np.ones(len(kept), bool)

    def users(self, setting: Setting) -> Int64:
        """The users of the kept queries."""
        return self.queries.user_Q[self.kept(setting)]

    @property
    def size_Q(self) -> Int64:  # noqa: N802 - a shape suffix
        """Number of items of each order."""
        return np.bincount(self.queries.true_row_P, minlength=len(self))

    @property
    def num_before_Q(self) -> Int64:  # noqa: N802 - a shape suffix
        """Number of orders of the user before each query."""
        return self.queries.order_Q - np.searchsorted(self._orders.user_O, self.queries.user_Q)

    def bought(self, row_P: Int64, item_P: Int64) -> Bool:
        """Whether the user of the query had ordered the item before it."""
        key_P = self.queries.user_Q[row_P] * self.num_items + item_P
        key, first_line = self._first_lines
        place = np.minimum(np.searchsorted(key, key_P), len(key) - 1)
        query_line_P = self._orders.first_O[self.queries.order_Q[row_P]]
        return np.asarray((key[place] == key_P) & (first_line[place] < query_line_P))

    @cached_property
    def _orders(self) -> Orders:
        return self.queries.dataset.orders()

    @cached_property
    def _first_lines(self) -> tuple[Int64, Int64]:
        """Each (user, item) of the log as one key, ascending, and its first line in the log's order."""
        user_P = np.repeat(self._orders.user_O, self._orders.last_O - self._orders.first_O)
        return np.unique(user_P * self.num_items + self._orders.item_P, return_index=True)


def order_values(lists: Lists, truth: Truth, ks: Sequence[int] = (K,)) -> Values:
    """Every metric at every k, one value per query that counts. Raises InvalidInputError if lists break the protocol."""
    check_lists(lists, truth)
    values: Values = {}
    for setting in SETTINGS:
        row, item = truth.queries.truth(setting == "novel")
        kept = truth.kept(setting)
        top, row = lists[setting][kept], np.searchsorted(kept, row)
        at = {k: per_order(top[:, :k], row, item) for k in ks}
        values[setting] = {f"{name}@{k}": at[k][name] for k in ks for name in METRICS}
    return values


def check_lists(lists: Lists, truth: Truth) -> None:
    """Refuse lists of another shape, of unknown items, or with bought items in the novel setting."""
    for setting in SETTINGS:
        top = lists[setting]
        if top.shape != (len(truth), K):
            raise InvalidInputError(f"lists {setting!r} have shape {top.shape}, expected {(len(truth), K)}")
        if len(top) and (top.max() >= truth.num_items or top.min() < -1):
            raise InvalidInputError(f"lists {setting!r} name item {top.max()}, expected -1 to {truth.num_items - 1}")
    row, place = np.nonzero(lists["novel"] >= 0)
    owned = truth.bought(row, lists["novel"][row, place].astype(np.int64))
    if owned.any():
        raise InvalidInputError(f"list {row[owned][0]} of the novel setting names an item that its user had bought")


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval over users. `spread` is the standard deviation of the seeds' means, `seeds` these."""

    mean: float
    low: float
    high: float
    spread: float | None = None
    seeds: tuple[float, ...] = ()


@dataclass(frozen=True)
class Paired:
    """The difference of two contenders on the same orders, with its 95 % interval over users; `base` is the second's mean."""

    difference: float
    low: float
    high: float
    base: float

    @property
    def relative(self) -> float | None:
        """The difference in units of the second contender."""
        return self.difference / self.base if self.base else None


def estimate(value_by_seed: Sequence[Float64], user_Q: Int64, weight_Q: Int64 | None = None) -> Estimate:
    """Return the mean over orders and seeds. The interval is over users: each order's value is its mean over the seeds.
    `weight_Q`: what each order counts; None = all alike."""
    value_Q = np.mean(value_by_seed, axis=0)
    mean, low, high = mean_interval(value_Q, user_Q, np.random.default_rng(0), weight_Q=weight_Q)
    seeds = tuple(float(np.average(value, weights=weight_Q)) for value in value_by_seed)
    return Estimate(mean, low, high, float(np.std(seeds, ddof=1)) if len(seeds) > 1 else None, seeds)


def compare(ours: Sequence[Float64], theirs: Sequence[Float64], user_Q: Int64, weight_Q: Int64 | None = None) -> Paired:
    """Return first minus second, order by order, each averaged over its own seeds. `weight_Q`: what each order counts."""
    mean_ours, mean_theirs = np.mean(ours, axis=0), np.mean(theirs, axis=0)
    rng = np.random.default_rng(0)
    difference, low, high = mean_interval(mean_ours - mean_theirs, user_Q, rng, weight_Q=weight_Q)
    return Paired(difference, low, high, float(np.average(mean_theirs, weights=weight_Q)))


def breadth(lists: Lists, truth: Truth, frequency_N: Float64, setting: Setting) -> dict[str, float]:
    """How much of the catalogue the lists show. `frequency_N`: orders of each item before the test month."""
    top = lists[setting][truth.kept(setting)]
    return {
        "coverage": coverage(top, truth.num_items),
        "popularity lift": popularity_lift(top, frequency_N, truth.queries.truth(setting == "novel")[1]),
        "Gini": gini(top, truth.num_items),
    }
