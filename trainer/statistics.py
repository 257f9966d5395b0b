"""What a release knows of each item from its sales: how popular it was lately, and how people come back to it.

Statistics are taken at the start of every calendar month from what came before it, and stand for that month: a sample of the
past sees them as old as a served request sees those of its release, and never what was sold later.
"""

# N = items, P = statistics of an item, T = months

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from baguni.sequences import DAY_MS
from trainer.data.dataset import Dataset
from trainer.data.splits import local_ms

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class ItemStatistics:
    """start_T: when each month starts, ms UTC, ascending. values_TNP: what was known of each item then."""

    start_T: Int64
    values_TNP: Float32

    @property
    def num_statistics(self) -> int:
        """P."""
        return self.values_TNP.shape[2]

    @property
    def newest_NP(self) -> Float32:  # noqa: N802 - a shape suffix
        """What a release serves with."""
        return np.asarray(self.values_TNP[-1])

    def month(self, time_ms: Int64) -> Int64:
        """The month in force at each time; times before the first month get the first, and those after the last the last."""
        return np.clip(np.searchsorted(self.start_T, time_ms, side="right") - 1, 0, len(self.start_T) - 1)

    @classmethod
    def of(cls, log: Dataset, end_ms: int, window_days: tuple[int, ...]) -> ItemStatistics:
        """Statistics of every month from the log's first to the one that starts at or before `end_ms`, plus `end_ms` itself.

        No window, no statistics: P = 0, for data whose clock says nothing.
        """
        starts = _month_starts(log, end_ms)
        values = [_at(log.before(start), start, window_days) for start in starts]
        return cls(np.asarray(starts, np.int64), np.stack(values))


def _month_starts(log: Dataset, end_ms: int) -> list[int]:
    if len(log.time_E) == 0:
        return [end_ms]
    first = datetime.fromtimestamp(int(log.time_E.min()) / 1000, UTC).astimezone(ZoneInfo(log.store_timezone))
    starts, month = [], first.year * 12 + first.month - 1
    while (start := local_ms(datetime(month // 12, month % 12 + 1, 1), log.store_timezone)) < end_ms:
        starts.append(start)
        month += 1
    return [*starts, end_ms]


def _at(log: Dataset, now_ms: int, window_days: tuple[int, ...]) -> Float32:
    """[N, P]: log sales in each window and ever, the share of sales to people who had the item, and their usual interval."""
    num_items = len(log.catalog)
    if not window_days:
        return np.zeros((num_items, 0), np.float32)
    ordered = log.order_E >= 0
    user, item, time = log.user_E[ordered], log.item_E[ordered], log.time_E[ordered]
    by_pair = np.lexsort((time, item, user))
    user, item, time = user[by_pair], item[by_pair], time[by_pair]
    again = np.r_[False, (user[1:] == user[:-1]) & (item[1:] == item[:-1])][: len(user)]
    interval_days = np.r_[0, np.diff(time)][: len(time)] / DAY_MS
    sales_N = np.bincount(item, minlength=num_items)
    repeats_N = np.bincount(item[again], minlength=num_items)
    log_interval_N = np.bincount(item[again], weights=np.log1p(interval_days[again]), minlength=num_items)
    columns = [
        np.log1p(np.bincount(item[time >= now_ms - days * DAY_MS], minlength=num_items)) / 4 for days in window_days
    ]
    columns += [
        np.log1p(sales_N) / 4,
        repeats_N / (sales_N + 10.0),
        log_interval_N / (repeats_N + 3.0) / 4,
    ]
    return np.stack(columns, axis=1).astype(np.float32)
