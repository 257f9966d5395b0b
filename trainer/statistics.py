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
from scipy import linalg, sparse

from baguni.domain.sequences import DAY_MS
from trainer.data.dataset import Dataset
from trainer.data.splits import local_ms
from trainer.files import written_whole

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
FACTOR_DECAY_DAYS = 180.0
FACTOR_REGULARISATION = 500.0
TEXT_REGULARISATION = 1_000.0
EXACT_SIZE = 500  # users or items: a matrix with fewer is decomposed exactly
WIDTH = 2  # of a subspace, in factors: what lies beyond them makes those at the edge exact sooner
FIRST_ITERATIONS, LATER_ITERATIONS = 6, 2


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
        starts, subspace = _month_starts(log, end_ms), Subspace()
        values = []
        for start in starts:
            known = log.before(start)
            factors_NK = collaborative_factors(known, start, num_factors, subspace)
            values.append(np.c_[_at(known, start, window_days), factors_NK])
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


def collaborative_factors(log: Dataset, now_ms: int, num_factors: int, subspace: Subspace | None = None) -> Float32:
    """[N, K] factors c, so that Σ w_i c_i · c_j is what buyers of the items i, each with a weight w_i, are expected to have of
    the item j: ridge regression of the users' decayed log counts on themselves, in closed form, cut to its largest K singular
    values (PureSVD, Cremonesi et al. 2010, doi:10.1145/1864708.1864721, shrunk like EASE, Steck 2019, arXiv:1905.03375).

    Zeros where the log is too small to have so many. `subspace` goes from one month to the next.
    """
    factors_NK = np.zeros((len(log.catalog), num_factors), np.float32)
    ordered = log.order_E >= 0
    age_days_E = (now_ms - log.time_E[ordered]) / DAY_MS
    shape = (len(log.user_ids), len(log.catalog))
    lines = (np.exp(-age_days_E / FACTOR_DECAY_DAYS), (log.user_E[ordered], log.item_E[ordered]))
    counts_UN = sparse.csr_matrix(lines, shape=shape, dtype=np.float32).log1p()
    rank = min(num_factors, min(shape) - 1)
    if rank < 1 or counts_UN.nnz == 0:
        return factors_NK
    if min(shape) <= EXACT_SIZE:
        _, size_K, items_KN = np.linalg.svd(counts_UN.toarray(), full_matrices=False)
        size_K, items_NK = size_K[:rank], items_KN[:rank].T
    else:
        size_K, items_NK = (subspace or Subspace()).largest(counts_UN, rank)
    factors_NK[:, :rank] = np.sqrt(size_K**2 / (size_K**2 + FACTOR_REGULARISATION)) * items_NK
    return factors_NK


class Subspace:
    """The largest singular vectors of a matrix that changes little from one call to the next, by subspace iteration (Halko et
    al. 2011, doi:10.1137/090771806). It starts from the vectors of the call before, so that few iterations are enough."""

    def __init__(self) -> None:
        self._items_NJ: Float32 | None = None

    def largest(self, counts_UN: sparse.csr_matrix, rank: int) -> tuple[Float32, Float32]:
        """Return the `rank` largest singular values, falling, and their right vectors, [N, rank]."""
        iterations, start_NJ = LATER_ITERATIONS, self._items_NJ
        width = min(WIDTH * rank, min(counts_UN.shape))
        if start_NJ is None or start_NJ.shape[1] != width:
            iterations = FIRST_ITERATIONS
            start_NJ = np.random.default_rng(0).standard_normal((counts_UN.shape[1], width)).astype(np.float32)
        for _ in range(iterations):
            start_NJ = _orthonormal(counts_UN.T @ (counts_UN @ start_NJ))
        start_NJ = _orthonormal(start_NJ)  # the first time leaves errors of rounding
        seen_UJ = counts_UN @ start_NJ
        square_J, turn_JJ = np.linalg.eigh(seen_UJ.T.astype(np.float64) @ seen_UJ)
        self._items_NJ = items_NJ = start_NJ @ turn_JJ[:, ::-1].astype(np.float32)
        return np.sqrt(square_J[::-1][:rank].clip(min=0)).astype(np.float32), items_NJ[:, :rank]


def _orthonormal(vectors_NJ: Float32) -> Float32:
    """Return a basis of the columns, orthonormal but for rounding. By Cholesky: much faster than Householder for many items."""
    vectors_NJ = vectors_NJ / np.linalg.norm(vectors_NJ, axis=0).clip(min=1e-12)
    gram_JJ = (vectors_NJ.T @ vectors_NJ).astype(np.float64)
    lower_JJ = np.linalg.cholesky(gram_JJ + 1e-5 * np.eye(len(gram_JJ)))
    inverse_JJ = linalg.solve_triangular(lower_JJ, np.eye(len(gram_JJ)), lower=True)
    return np.asarray(vectors_NJ @ inverse_JJ.T.astype(np.float32))
