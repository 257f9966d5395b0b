"""Splits in time, by the store's own clock: what is trained on lies before what is predicted."""

# O = orders, Q = queries

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from trainer.data.dataset import Dataset

Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class Queries:
    """Orders to predict: their places among `dataset.orders()`, so that each query's history is all that came before."""

    order_Q: Int64

    def __len__(self) -> int:
        return len(self.order_Q)


def local_ms(moment: datetime, timezone: str) -> int:
    """A naive time on the store's clock, as milliseconds UTC."""
    return int(moment.replace(tzinfo=ZoneInfo(timezone)).timestamp() * 1000)


def last_month_start_ms(dataset: Dataset) -> int:
    """Midnight, by the store's clock, of the first day of the calendar month of the last event."""
    last = datetime.fromtimestamp(int(dataset.time_E.max()) / 1000, UTC).astimezone(ZoneInfo(dataset.store_timezone))
    return local_ms(datetime(last.year, last.month, 1), dataset.store_timezone)


def evaluation_queries(
    dataset: Dataset,
    start_ms: int,
    end_ms: int | None = None,
    mode: Literal["first", "rolling"] = "rolling",
    min_orders: int = 5,
    eligible_before_ms: int | None = None,
) -> Queries:
    """Orders in [start, end) of users with at least `min_orders` orders before `eligible_before_ms` (default: start).

    "first" takes each user's first order of the window only, "rolling" every one.
    """
    orders = dataset.orders()
    early = orders.time_O < (start_ms if eligible_before_ms is None else eligible_before_ms)
    count_U = np.bincount(orders.user_O[early], minlength=len(dataset.user_ids))
    inside = (orders.time_O >= start_ms) & (count_U[orders.user_O] >= min_orders)
    if end_ms is not None:
        inside &= orders.time_O < end_ms
    chosen = np.flatnonzero(inside)
    if mode == "first":
        chosen = chosen[np.unique(orders.user_O[chosen], return_index=True)[1]]
    return Queries(chosen)
