"""What came of a forecast of days, where some purchases were not seen before the watch ended. Arithmetic only."""

# P = pairs of a user and a target, J = knots of a hazard, Q = anything scored

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.segments.repurchase import expected_days, within_days

WITHIN_DAYS = (7, 14)
MAX_COMPARED = 5_000  # pairs of which every two are compared: 25 million comparisons
Float64 = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Outcome:
    """Days to each pair's next purchase; where it was not bought, `watched_days`, for which all were watched."""

    days_P: Float64
    bought_P: Bools
    watched_days: float

    def of_hazard(self, hazard_PJ: Float64, rng: np.random.Generator) -> dict[str, Any]:
        """Scores of a hazard, with the share of pairs that it foresees to be bought in time, and that were."""
        chances = [within_days(hazard_PJ, days) for days in WITHIN_DAYS]
        capped_P = expected_days(hazard_PJ, self.watched_days)
        return self._scores(expected_days(hazard_PJ), capped_P, chances, rng) | {
            f"bought within {days} days, foreseen and observed": [
                _mean(chance_P),
                _mean(self.bought_P & (self.days_P <= days)),
            ]
            for days, chance_P in zip(WITHIN_DAYS, chances, strict=True)
        }

    def of_days(self, expected_P: Float64, rng: np.random.Generator) -> dict[str, Any]:
        """Scores of plain days."""
        capped_P = np.minimum(expected_P, self.watched_days)
        return self._scores(expected_P, capped_P, [-expected_P for _ in WITHIN_DAYS], rng)

    def _scores(
        self, expected_P: Float64, capped_P: Float64, likely: Sequence[Float64], rng: np.random.Generator
    ) -> dict[str, Any]:
        """`capped_P`: expected days of which no more than those watched count. `likely`: for each of WITHIN_DAYS, something
        that grows with the chance of a purchase within them."""
        some = np.sort(rng.permutation(len(self.days_P))[:MAX_COMPARED])
        error_P = np.abs(expected_P - self.days_P)[self.bought_P]
        return {
            f"AUC within {days} days": auc(score_P, self.bought_P & (self.days_P <= days))
            for days, score_P in zip(WITHIN_DAYS, likely, strict=True)
        } | {
            "concordance": concordance(expected_P[some], self.days_P[some], self.bought_P[some]),
            "root mean square error of days in the month": _mean((capped_P - self.days_P) ** 2) ** 0.5,
            "median error where bought, days": float(np.median(error_P)) if len(error_P) else float("nan"),
        }


def _mean(value_P: NDArray[Any]) -> float:
    return float(value_P.mean()) if len(value_P) else float("nan")


def auc(score_Q: Float64, positive_Q: Bools) -> float:
    """Chance that a positive has a higher score than a negative, ties counting half; nan where one kind is missing.

    >>> auc(np.array([3.0, 1.0, 2.0, 2.0]), np.array([True, False, True, False]))
    0.875
    """
    num_positive, num_negative = int(positive_Q.sum()), int((~positive_Q).sum())
    if num_positive == 0 or num_negative == 0:
        return float("nan")
    _, value_Q, count = np.unique(score_Q, return_inverse=True, return_counts=True)
    rank_Q = (np.cumsum(count) - (count - 1) / 2)[value_Q]
    return float((rank_Q[positive_Q].sum() - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative))


def concordance(expected_P: Float64, days_P: Float64, bought_P: Bools) -> float:
    """Harrell's C: of two pairs of which one was bought, and the other later or not yet, the share in which it was expected
    earlier; ties count half. Nan where no two can be compared.

    >>> concordance(np.array([1.0, 9.0, 5.0]), np.array([2.0, 4.0, 8.0]), np.array([True, True, False]))
    0.6666666666666666
    """
    right, compared = 0.0, 0
    for rows in np.array_split(np.flatnonzero(bought_P), max(1, int(bought_P.sum()) // 500)):
        later = days_P[None, :] > days_P[rows, None]
        earlier = (expected_P[rows, None] < expected_P[None, :]) + 0.5 * (expected_P[rows, None] == expected_P[None, :])
        right += float(earlier[later].sum())
        compared += int(later.sum())
    return right / compared if compared else float("nan")
