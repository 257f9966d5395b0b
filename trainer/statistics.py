"""What a release knows of each item from its sales: how popular it was lately, how people come back to it, and who buys it.

Statistics are taken at the start of every calendar month from what came before it, and stand for that month: a sample of the
past sees them as old as a served request sees those of its release, and never what was sold later.
"""

# N = items, U = users, P = statistics of an item, of which the last K are factors, T = months, X = text dim

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import svds

from baguni.domain.sequences import DAY_MS
from trainer.data.dataset import Dataset
from trainer.data.splits import local_ms
from trainer.files import written_whole

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]
FACTOR_DECAY_DAYS = 180.0
FACTOR_REGULARISATION = 500.0
TEXT_REGULARISATION = 1_000.0


@dataclass(frozen=True)
class ItemStatistics:
    """start_T: when each month starts, ms UTC, ascending. values_TNP: what was known of each item then; the last
    `num_factors` columns are `collaborative_factors`, whose axes turn from month to month: only products within a month mean
    anything."""

    start_T: Int64
    values_TNP: Float32
    num_factors: int = 0

    @property
    def num_statistics(self) -> int:
        """P."""
        return self.values_TNP.shape[2]

    @property
    def newest_NP(self) -> Float32:  # noqa: N802 - a shape suffix
        """What a release serves with."""
        return np.asarray(self.values_TNP[-1])

    def completed(self, text_NX: Float32, ordered_N: NDArray[np.bool_]) -> ItemStatistics:
        """The same, but items that nobody has ordered have in the newest month what their texts promise."""
        values_TNP = self.values_TNP.copy()
        promised = TextRegression.fit(text_NX[ordered_N], self.newest_NP[ordered_N])
        values_TNP[-1, ~ordered_N] = promised(text_NX[~ordered_N])
        return replace(self, values_TNP=values_TNP)

    def save(self, path: Path) -> None:
        """Write them; several processes of one training may do so at once."""
        with written_whole(path) as file:
            np.savez(file, start_T=self.start_T, values_TNP=self.values_TNP, num_factors=self.num_factors)

    @classmethod
    def load(cls, path: Path) -> ItemStatistics:
        """Read what `save` wrote."""
        with np.load(path) as file:
            return cls(file["start_T"], file["values_TNP"], int(file["num_factors"]))

    def month(self, time_ms: Int64) -> Int64:
        """The month in force at each time; times before the first month get the first, and those after the last the last."""
        return np.clip(np.searchsorted(self.start_T, time_ms, side="right") - 1, 0, len(self.start_T) - 1)

    @classmethod
    def of(cls, log: Dataset, end_ms: int, window_days: tuple[int, ...], num_factors: int = 0) -> ItemStatistics:
        """Statistics of every month from the log's first to the one that starts at or before `end_ms`, plus `end_ms` itself.

        No window and no factor, no statistics: P = 0, for data whose clock says nothing.
        """
        starts = _month_starts(log, end_ms)
        values = []
        for start in starts:
            known = log.before(start)
            values.append(np.c_[_at(known, start, window_days), collaborative_factors(known, start, num_factors)])
        return cls(np.asarray(starts, np.int64), np.stack(values), num_factors)


@dataclass(frozen=True)
class TextRegression:
    """What an item's text says of its statistics: text · weight_XP + bias_P, by ridge regression over items that are sold."""

    weight_XP: Float32
    bias_P: Float32

    @classmethod
    def fit(cls, text_NX: Float32, values_NP: Float32) -> TextRegression:
        """From standardised text embeddings and statistics; from no item, zeros."""
        size, width = text_NX.shape[1], values_NP.shape[1]
        if len(text_NX) == 0:
            return cls(np.zeros((size, width), np.float32), np.zeros(width, np.float32))
        mean_X, mean_P = text_NX.mean(axis=0), values_NP.mean(axis=0)
        centred = text_NX - mean_X
        gram = (centred.T @ centred).astype(np.float64) + TEXT_REGULARISATION * np.eye(size)
        weight = np.linalg.solve(gram, centred.T @ (values_NP - mean_P)).astype(np.float32)
        return cls(weight, mean_P - mean_X @ weight)

    def __call__(self, text_NX: Float32) -> Float32:
        """[N, P]."""
        return np.asarray(text_NX @ self.weight_XP + self.bias_P)


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


def collaborative_factors(log: Dataset, now_ms: int, num_factors: int) -> Float32:
    """[N, K] factors c, so that Σ w_i c_i · c_j is what buyers of the items i, each with a weight w_i, are expected to have of
    the item j: ridge regression of the users' decayed log counts on themselves, in closed form, cut to its largest K singular
    values (PureSVD, Cremonesi et al. 2010, doi:10.1145/1864708.1864721, shrunk like EASE, Steck 2019, arXiv:1905.03375).

    Zeros where the log is too small to have so many.
    """
    factors_NK = np.zeros((len(log.catalog), num_factors), np.float32)
    ordered = log.order_E >= 0
    age_days_E = (now_ms - log.time_E[ordered]) / DAY_MS
    shape = (len(log.user_ids), len(log.catalog))
    lines = (np.exp(-age_days_E / FACTOR_DECAY_DAYS), (log.user_E[ordered], log.item_E[ordered]))
    counts_UN = sparse.csr_matrix(lines, shape=shape).log1p()
    rank = min(num_factors, min(shape) - 1)
    if rank < 1 or counts_UN.nnz == 0:
        return factors_NK
    _, size_K, items_KN = svds(counts_UN, k=rank, v0=np.ones(min(shape)))
    share_K = size_K**2 / (size_K**2 + FACTOR_REGULARISATION)
    factors_NK[:, :rank] = (np.sqrt(share_K)[:, None] * items_KN).T[:, ::-1]
    return factors_NK
