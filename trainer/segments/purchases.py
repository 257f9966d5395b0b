"""What users bought before a time and when they bought it again: pairs of a user and a target, an item or a category.

Only orders are purchases; a target counts once an order. Nothing at or after `before_ms` reaches a pair, only its outcome.
"""

# P = pairs, Q = purchases: an order has a target, U = users, N = items

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from baguni.domain.sequences import DAY_MS
from trainer.data.dataset import Dataset
from trainer.segments.next_item import Categories

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class Pairs:
    """Users and targets, sorted by user, then by target. `of_categories`: targets are categories, else items."""

    user_P: Int64
    target_P: Int64
    of_categories: bool

    def __len__(self) -> int:
        return len(self.user_P)


@dataclass(frozen=True)
class Habits:
    """What each pair did before: purchases, and days from the first to the last and from the last to now."""

    pairs: Pairs
    count_P: Int64
    span_days_P: Float64
    since_days_P: Float64

    @property
    def interval_days_P(self) -> Float64:  # noqa: N802 - a shape suffix
        """Mean days between purchases; 0 of what was bought once."""
        return np.asarray(self.span_days_P / np.maximum(self.count_P - 1, 1))

    def target_interval_days(self, target_P: Int64) -> Float64:
        """Mean days between all users' purchases of each of these targets; over all targets where nobody came back."""
        target, intervals = self.pairs.target_P, self.count_P - 1
        size = int(max(target.max(initial=0), target_P.max(initial=0))) + 1
        days = np.bincount(target, weights=self.span_days_P, minlength=size)
        count = np.bincount(target, weights=intervals, minlength=size)
        overall = self.span_days_P.sum() / max(intervals.sum(), 1)
        return np.asarray(np.where(count > 0, days / np.maximum(count, 1), overall)[target_P])

    def repeated(self, user_B: Int64) -> Habits:
        """The pairs of some users that bought at least twice."""
        return self.only((self.count_P >= 2) & np.isin(self.pairs.user_P, user_B))

    def only(self, keep_P: NDArray[np.bool_]) -> Habits:
        """Some of the pairs."""
        pairs = Pairs(self.pairs.user_P[keep_P], self.pairs.target_P[keep_P], self.pairs.of_categories)
        return Habits(pairs, self.count_P[keep_P], self.span_days_P[keep_P], self.since_days_P[keep_P])


@dataclass(frozen=True)
class Purchases:
    """Every order that has a target, once, sorted by (user, target, time)."""

    user_Q: Int64
    target_Q: Int64
    time_Q: Int64
    of_categories: bool

    @classmethod
    def of(cls, dataset: Dataset, categories: Categories | None = None, depth: int = 0) -> Purchases:
        """Of items, or of the categories of one depth."""
        orders = dataset.orders()
        order_P = np.repeat(np.arange(len(orders.user_O)), orders.last_O - orders.first_O)
        target_P = orders.item_P
        if categories is not None:
            categories.at_depth(depth)
            target_P = categories.item_ND[orders.item_P, depth - 1]
        width = int(target_P.max(initial=0)) + 1
        key = np.unique(order_P[target_P >= 0] * width + target_P[target_P >= 0])
        order, target = key // width, key % width
        user, time = orders.user_O[order], orders.time_O[order]
        sort = np.lexsort((time, target, user))
        return cls(user[sort], target[sort], time[sort], categories is not None)

    def habits(self, before_ms: int) -> Habits:
        """Every pair that bought before a time."""
        past = self.time_Q < before_ms
        user, target, time = self.user_Q[past], self.target_Q[past], self.time_Q[past]
        new = np.r_[True, (np.diff(user) != 0) | (np.diff(target) != 0)][: len(user)]
        first = np.flatnonzero(new)
        last = np.r_[first[1:], len(user)] - 1
        return Habits(
            Pairs(user[first], target[first], self.of_categories),
            last - first + 1,
            (time[last] - time[first]) / DAY_MS,
            (before_ms - time[last]) / DAY_MS,
        )

    def next_purchases(self, pairs: Pairs, start_ms: int, end_ms: int) -> tuple[Float64, NDArray[np.bool_]]:
        """Days from the start to each pair's first purchase in [start, end), and whether there was one; where not, days to
        the end: what came later is not known (censored)."""
        inside = (self.time_Q >= start_ms) & (self.time_Q < end_ms)
        width = int(max(self.target_Q.max(initial=0), pairs.target_P.max(initial=0))) + 1
        key, first = np.unique(self.user_Q[inside] * width + self.target_Q[inside], return_index=True)
        key_P = pairs.user_P * width + pairs.target_P
        bought_P = np.isin(key_P, key)
        days_P = np.full(len(pairs), (end_ms - start_ms) / DAY_MS)
        days_P[bought_P] = (self.time_Q[inside][first[np.searchsorted(key, key_P[bought_P])]] - start_ms) / DAY_MS
        return days_P, bought_P
