"""From the values of each order to the ladder's rows: who is better, by how much, and how sure that is."""

# U = users, Q = queries, R = resamples

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.ladder.models import Values
from benchmarks.ladder.rungs import rungs_of
from benchmarks.quality.measure import Truth
from benchmarks.quality.shop import Shop
from benchmarks.result import RESULTS, Row, write_result

Float64 = NDArray[np.float64]
RESAMPLES, HR, NDCG = 1_000, "HR@10", "NDCG@10"
FILE = re.compile(r"(?P<rung>.+)-seed(?P<seed>\d+)\.npz")
MIN_OF_TEACHER, MIN_SHARE = 0.80, 0.61
PLANTED_GAIN, PLANTED_SHARE = 1.3, 0.60


class Means:
    """Mean over orders and seeds of each model of a rung, with resamples of users and of seeds."""

    def __init__(self, by_seed: list[Values], setting: str, metric: str, user_Q: NDArray[np.int64]) -> None:
        _, user_Q = np.unique(user_Q, return_inverse=True)
        rng, num_users = np.random.default_rng(0), int(user_Q.max(initial=0)) + 1
        users_RU = np.stack([_drawn(rng, num_users) for _ in range(RESAMPLES)])
        seeds_RS = np.stack([_drawn(rng, len(by_seed)) for _ in range(RESAMPLES)]) / len(by_seed)
        orders_R = users_RU @ np.bincount(user_Q, minlength=num_users)
        self.num_seeds = len(by_seed)
        self._mean: dict[str, tuple[float, Float64]] = {}
        for variant in sorted(set.intersection(*(values.variants for values in by_seed))):
            value_SQ = np.stack([values.by_name[variant, setting, metric].astype(np.float64) for values in by_seed])
            sum_SU = np.stack([np.bincount(user_Q, weights=value_Q, minlength=num_users) for value_Q in value_SQ])
            resampled_R = ((users_RU @ sum_SU.T) * seeds_RS).sum(axis=1) / orders_R
            self._mean[variant] = (float(value_SQ.mean()), resampled_R)

    @property
    def variants(self) -> list[str]:
        """Return the models that every seed has."""
        return list(self._mean)

    def of(self, variant: str) -> tuple[float, float, float]:
        """Return a mean with its 95 % interval."""
        return _interval(*self._mean[variant])

    def difference(self, first: str, second: str) -> tuple[float, float, float]:
        """Return the first less the second, with its 95 % interval, paired."""
        (one, one_R), (two, two_R) = self._mean[first], self._mean[second]
        return _interval(one - two, one_R - two_R)

    def share(self) -> tuple[float, float, float]:
        """Return the share of the gap between A and the teacher that C closes, with its 95 % interval; NaN if the
        interval of the teacher less A reaches 0."""
        if self.difference("teacher", "A")[1] <= 0:
            return np.nan, np.nan, np.nan
        (a, a_R), (c, c_R), (t, t_R) = (self._mean[name] for name in ("A", "C", "teacher"))
        return _interval((c - a) / (t - a), (c_R - a_R) / (t_R - a_R))


def _drawn(rng: np.random.Generator, size: int) -> NDArray[np.float32]:
    """Return how often each of `size` is drawn in as many draws."""
    return np.bincount(rng.integers(0, size, size), minlength=size).astype(np.float32)


def _interval(value: float, value_R: Float64) -> tuple[float, float, float]:
    low, high = np.percentile(value_R, [2.5, 97.5])
    return value, float(low), float(high)


def _in_words(estimate: tuple[float, float, float]) -> str:
    return f"{estimate[0]:.4f} [{estimate[1]:.4f}, {estimate[2]:.4f}]"


def rung_rows(data: str, rung: str, means: Mapping[str, Means]) -> list[Row]:
    """Return the rows of a rung. `means`: of HR@10 and NDCG@10."""
    hits = means[HR]
    where = f"{data}, {rung}, {hits.num_seeds} seeds"
    rows = [
        Row.reported(f"{where}: {name} of {variant} ({_in_words(each.of(variant))})", each.of(variant)[0], "")
        for name, each in means.items()
        for variant in each.variants
    ]
    share, low, high = hits.share()
    a, c, teacher = (hits.of(name)[0] for name in ("A", "C", "teacher"))
    said = f"{where}: share of the gap in {HR} between A and the teacher that C closes [{low:.2f}, {high:.2f}]"
    if (data, rung) == ("complete-journey", "design"):
        rows.append(
            Row.at_least_times(f"{where}: {HR} of C over the teacher", c, "", MIN_OF_TEACHER, ("teacher", teacher))
        )
        rows.append(Row.at_least(said, share, "", MIN_SHARE))
    elif (data, rung) == ("planted", "design"):
        rows.append(Row.at_least_times(f"{where}: {HR} of the teacher over A", teacher, "", PLANTED_GAIN, ("A", a)))
        rows.append(Row.at_least(said, share, "", PLANTED_SHARE))
    else:
        rows.append(Row.reported(said, share, ""))
    rows.append(Row.reported(f"{where}: {HR} of C over A (the source has 1.66)", c, "", ("A", a)))
    for control in ("A+", "self"):
        if control in hits.variants:
            difference = hits.difference("C", control)
            rows.append(Row.reported(f"{where}: {HR} of C less {control} ({_in_words(difference)})", difference[0], ""))
    return rows


def write_ladder(folder: Path, shops: Mapping[str, Shop]) -> list[Row]:
    """Write the rows of everything that was measured on these data sets."""
    rows: list[Row] = []
    for data, shop in shops.items():
        by_rung: dict[str, list[Values]] = defaultdict(list)
        for path in sorted((folder / data).glob("*.npz")):
            if found := FILE.fullmatch(path.name):
                by_rung[found["rung"]].append(Values.load(path))
        user_Q = Truth(shop.queries).users("all")
        for rung in rungs_of(data):
            if by_rung[rung.name]:
                means = {metric: Means(by_rung[rung.name], "all", metric, user_Q) for metric in (HR, NDCG)}
                rows += rung_rows(data, rung.name, means)
    write_result(RESULTS / "ladder.json", "ladder", "make bench-ladder", rows)
    return rows
