"""A shop's catalogue and event log in memory: columns, sorted by user and time."""

# N = items, E = events, O = orders, P = lines of all orders

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from baguni.domain.catalog import Catalog
from baguni.domain.history import Action, HistoryEvent

Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class Orders:
    """All orders, sorted by (user, time). The items of order o are item_P[first_O[o]:last_O[o]]."""

    user_O: Int64
    time_O: Int64
    number_O: Int64
    first_O: Int64
    last_O: Int64
    item_P: Int64


@dataclass(frozen=True)
class Dataset:
    """Events sorted by (user, time, order, item); `order_E` is a number unique over the data set, -1 where no order.

    `user_E` and `item_E` index `user_ids` and `catalog.items`; `time_E` is in milliseconds, UTC.
    """

    name: str
    store_timezone: str
    catalog: Catalog
    user_ids: tuple[str, ...]
    order_ids: tuple[str, ...]
    user_E: Int64
    item_E: Int64
    action_E: Int64
    order_E: Int64
    time_E: Int64

    @cached_property
    def user_index(self) -> dict[str, int]:
        """user_id → user index."""
        return {user_id: index for index, user_id in enumerate(self.user_ids)}

    def before(self, time_ms: int) -> Dataset:
        """The events before a time; the catalogue and all indexes stay."""
        return self._where(self.time_E < time_ms)

    def orders(self) -> Orders:
        """The orders, each with its distinct items."""
        ordered = np.flatnonzero(self.order_E >= 0)
        number, user, time, item = (column[ordered] for column in (self.order_E, self.user_E, self.time_E, self.item_E))
        latest = np.zeros(int(number.max(initial=-1)) + 1, np.int64)
        np.maximum.at(latest, number, time)
        sort = np.lexsort((item, number, latest[number], user))
        number, user, item = number[sort], user[sort], item[sort]
        distinct = np.r_[True, (np.diff(number) != 0) | (np.diff(item) != 0)][: len(number)]
        number, user, item = number[distinct], user[distinct], item[distinct]
        first = np.flatnonzero(np.r_[True, np.diff(number) != 0][: len(number)])
        return Orders(user[first], latest[number[first]], number[first], first, np.r_[first[1:], len(number)], item)

    def history(self, user_index: int) -> list[HistoryEvent]:
        """One user's events as the history store takes them, oldest first."""
        start, stop = np.searchsorted(self.user_E, [user_index, user_index + 1])
        items = self.catalog.items
        return [
            HistoryEvent(items[i].item_id, Action(a), t, self.order_ids[o] if o >= 0 else "")
            for i, a, o, t in zip(
                self.item_E[start:stop].tolist(),
                self.action_E[start:stop].tolist(),
                self.order_E[start:stop].tolist(),
                self.time_E[start:stop].tolist(),
                strict=True,
            )
        ]

    def _where(self, keep: NDArray[np.bool_]) -> Dataset:
        names = ("user_E", "item_E", "action_E", "order_E", "time_E")
        return replace(self, **{name: getattr(self, name)[keep] for name in names})


def expand(first: Int64, stop: Int64) -> tuple[Int64, Int64]:
    """Ranges, flattened: the row of each element and the element.

    >>> expand(np.array([3, 7]), np.array([5, 8]))
    (array([0, 0, 1]), array([3, 4, 7]))
    """
    length = np.maximum(stop - first, 0)
    row = np.repeat(np.arange(len(first)), length)
    within = np.arange(len(row)) - np.repeat(np.cumsum(length) - length, length)
    return row, first[row] + within
