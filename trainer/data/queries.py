"""The orders to predict, and what every model may know of each: the user's orders before it, all of them.

A user's orders stand in the sequence (time, order id), so of two orders of one instant the second has the first in its
history; in Complete Journey that is so for 4 of the 10,732 orders of December and 3 of the 10,564 of November. Nothing
of the order itself, and nothing later, can be read through these classes.
"""

# Q = queries, B = users or queries of a slice, O = orders, P = order lines, E = events, N = items

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from baguni.domain.sequences import DAY_MS, EventBatch
from trainer.data.dataset import Dataset, Orders, expand
from trainer.data.splits import evaluation_queries

Bool = NDArray[np.bool_]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class Purchases:
    """All order lines of B users, each seen from a moment of its own ("now").

    user_B:       user index
    num_orders_B: how many orders the user has
    row_P:        which of the B users, ascending
    item_P:       item index, distinct within an order
    back_P:       orders back from now: 0 = the newest
    age_days_P:   days since the order, by the store's clock
    """

    num_items: int
    user_B: Int64
    num_orders_B: Int64
    row_P: Int64
    item_P: Int64
    back_P: Int64
    age_days_P: Float64

    def __len__(self) -> int:
        return len(self.user_B)

    def matrix(self, weight_P: Float64) -> sparse.csr_matrix:
        """[B, N], the sum of the weights of each user's lines of each item."""
        shape = (len(self), self.num_items)
        return sparse.csr_matrix((np.asarray(weight_P, np.float64), (self.row_P, self.item_P)), shape=shape)

    def orders(self) -> sparse.csr_matrix:
        """[O, N], ones: every order's items."""
        _, order_P = np.unique(self.row_P * (self.num_orders_B.max(initial=0) + 1) + self.back_P, return_inverse=True)
        shape = (int(self.num_orders_B.sum()), self.num_items)
        return sparse.csr_matrix((np.ones(len(order_P)), (order_P, self.item_P)), shape=shape)


@dataclass(frozen=True)
class OrderQueries:
    """The orders of a window of time, sorted by (user, time): every one is a query, its items are the truth.

    user_Q, time_Q: who orders, and when (milliseconds, UTC)
    first_Q:        whether it is the user's first order of the window
    true_row_P:     the query of each true item, ascending; true_item_P: the item
    novel_P:        whether the user never ordered this true item before
    """

    dataset: Dataset
    start_ms: int
    order_Q: Int64
    user_Q: Int64
    time_Q: Int64
    first_Q: Bool
    true_row_P: Int64
    true_item_P: Int64
    novel_P: Bool

    @classmethod
    def of(
        cls,
        dataset: Dataset,
        start_ms: int,
        end_ms: int | None = None,
        min_orders: int = 5,
        eligible_before_ms: int | None = None,
    ) -> OrderQueries:
        """Every order in [start, end) of users with `min_orders` orders before `eligible_before_ms` (default: start)."""
        orders = dataset.orders()
        chosen = evaluation_queries(dataset, start_ms, end_ms, "rolling", min_orders, eligible_before_ms).order_Q
        user_Q = orders.user_O[chosen]
        row_P, line_P = expand(orders.first_O[chosen], orders.last_O[chosen])
        item_P = orders.item_P[line_P]
        return cls(
            dataset=dataset,
            start_ms=start_ms,
            order_Q=chosen,
            user_Q=user_Q,
            time_Q=orders.time_O[chosen],
            first_Q=np.r_[True, np.diff(user_Q) != 0][: len(user_Q)],
            true_row_P=row_P,
            true_item_P=item_P,
            novel_P=_first_purchases(orders, len(dataset.catalog.items))[line_P],
        )

    def __len__(self) -> int:
        return len(self.order_Q)

    def at(self, rows: Int64) -> OrderQueries:
        """Return some of the queries, by their ascending places."""
        kept_P = np.isin(self.true_row_P, rows)
        return replace(
            self,
            order_Q=self.order_Q[rows],
            user_Q=self.user_Q[rows],
            time_Q=self.time_Q[rows],
            first_Q=self.first_Q[rows],
            true_row_P=np.searchsorted(rows, self.true_row_P[kept_P]),
            true_item_P=self.true_item_P[kept_P],
            novel_P=self.novel_P[kept_P],
        )

    def truth(self, novel: bool = False) -> tuple[Int64, Int64]:
        """true_row_P and true_item_P; `novel`: only items that the user never ordered before (some queries have none)."""
        kept = self.novel_P if novel else slice(None)
        return self.true_row_P[kept], self.true_item_P[kept]

    def purchases(self, start: int = 0, stop: int | None = None) -> Purchases:
        """What the users of the queries [start, stop) had ordered before, as of each query's time."""
        order_B, time_B = self.order_Q[start:stop], self.time_Q[start:stop]
        first_B = np.searchsorted(self._orders.user_O, self.user_Q[start:stop])
        return _purchases(self.dataset, self._orders, self.user_Q[start:stop], first_B, order_B, time_B)

    def history(self, start: int = 0, stop: int | None = None) -> EventBatch:
        """All events of the users of the queries [start, stop) before each query, clicks included, nothing cut off.

        Before means earlier in time or, at the same instant, of an order that comes earlier in the sequence.
        """
        data, user_B, time_B = self.dataset, self.user_Q[start:stop], self.time_Q[start:stop]
        number_B = self._orders.number_O[self.order_Q[start:stop]]
        row_E, index_E = expand(*(np.searchsorted(data.user_E, user_B, side) for side in ("left", "right")))
        time_E, order_E = data.time_E[index_E], data.order_E[index_E]
        same_instant = (time_E == time_B[row_E]) & (order_E >= 0) & (order_E < number_B[row_E])
        kept = ((time_E < time_B[row_E]) | same_instant) & (order_E != number_B[row_E])
        row_E, index_E, order_E = row_E[kept], index_E[kept], order_E[kept]
        width = int(order_E.max(initial=0)) + 1  # a user may stand in several rows: order numbers must differ there
        order_E = np.where(order_E >= 0, row_E * width + order_E, -1)
        return EventBatch(row_E, data.item_E[index_E], data.action_E[index_E], order_E, data.time_E[index_E])

    @cached_property
    def _orders(self) -> Orders:
        return self.dataset.orders()


def log_purchases(dataset: Dataset, now_ms: int) -> Purchases:
    """Every user with at least one order before `now_ms`, as of then: what a peer is fitted on."""
    earlier = dataset.before(now_ms)
    orders = earlier.orders()
    users, first_B = np.unique(orders.user_O, return_index=True)
    stop_B = np.r_[first_B[1:], len(orders.user_O)][: len(users)]
    return _purchases(earlier, orders, users, first_B, stop_B, np.full(len(users), now_ms))


def _purchases(
    dataset: Dataset, orders: Orders, user_B: Int64, first_B: Int64, stop_B: Int64, now_ms_B: Int64
) -> Purchases:
    """The lines of the orders [first, stop) of each user."""
    row_O, order_O = expand(first_B, stop_B)
    within_O, line_P = expand(orders.first_O[order_O], orders.last_O[order_O])
    back_O = stop_B[row_O] - 1 - order_O
    now_B, clock_O = (_store_clock_days(ms, dataset.store_timezone) for ms in (now_ms_B, orders.time_O[order_O]))
    return Purchases(
        num_items=len(dataset.catalog.items),
        user_B=user_B,
        num_orders_B=stop_B - first_B,
        row_P=row_O[within_O],
        item_P=orders.item_P[line_P],
        back_P=back_O[within_O],
        age_days_P=(now_B[row_O] - clock_O)[within_O],
    )


def _first_purchases(orders: Orders, num_items: int) -> Bool:
    """Of each order line: whether no earlier order of the user has the item."""
    user_P = np.repeat(orders.user_O, orders.last_O - orders.first_O)
    first_P = np.zeros(len(orders.item_P), bool)
    first_P[np.unique(user_P * num_items + orders.item_P, return_index=True)[1]] = True
    return first_P


def _store_clock_days(time_ms: Int64, timezone: str) -> Float64:
    """Days on the store's own clock, so that a window of days begins at midnight also across a change of the clocks."""
    moment = pd.DatetimeIndex(time_ms.astype("datetime64[ms]")).tz_localize("UTC").tz_convert(timezone)
    return np.asarray(moment.tz_localize(None).as_unit("ms").asi8 / DAY_MS, np.float64)
