"""Expected days to a user's next purchase of an item or of a category, from the generative head.

The head says what an order contains if it is made at a given time. How often the user orders, and how many lines, comes from
their own last three months. Together they are a hazard, the rate per day at which the target is bought:

    h(d) = a · orders per day · (1 − exp(−lines per order · p(target | user, now + d)))  +  b · purchases per day so far

    S(d) = exp(−∫ h)         still not bought after d days
    expected days = ∫ S      from 0 to HORIZON_DAYS: what will never be bought is expected at the horizon

What is assumed: the user's rhythm stays as it was; lines of an order are drawn independently; p is asked of the head at
KNOT_DAYS from now with the history of today (the target grows older, and so does everything else), and is linear in between.
The second term is a floor: the head reads a limited number of tokens, and gives next to nothing to what it does not see.
`a` and `b` are two numbers for a whole shop and kind of target, fitted by maximum likelihood, with censoring, on what was
bought again in the CALIBRATION_DAYS before now. Where the head was trained on these weeks, it is trusted a little too much.
"""

# B = users, P = pairs of a user and a target, J = knots, H = days of the horizon

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from baguni.domain.sequences import DAY_MS
from trainer.data.dataset import Orders
from trainer.segments.next_item import NextItem, category_probabilities
from trainer.segments.purchases import Habits, Pairs, Purchases

KNOT_DAYS = (0.5, 7.5, 28.5)  # noons, as "now" is a midnight: nobody orders at midnight, so no model knows midnights
HORIZON_DAYS = 182
RHYTHM_DAYS = 91
CALIBRATION_DAYS = 28
PRIOR_DAYS = 28.0  # a user's rhythm is worth as much as the shop's after so many days,
PRIOR_ORDERS = 4.0  # and the size of orders after so many orders
FIT_STEPS = 200
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class Rhythm:
    """How often users order, how much, and for how long they have been known, by user index."""

    orders_per_day_U: Float64
    lines_per_order_U: Float64
    known_days_U: Float64

    @classmethod
    def of(cls, orders: Orders, num_users: int, now_ms: int) -> Rhythm:
        """From the orders of the RHYTHM_DAYS before now, drawn towards the shop's mean. A new user counts from the first
        order on."""
        past = orders.time_O < now_ms
        first_U = np.full(num_users, now_ms, np.int64)
        np.minimum.at(first_U, orders.user_O[past], orders.time_O[past])
        known_days_U = (now_ms - first_U) / DAY_MS
        days_U = np.minimum(known_days_U, RHYTHM_DAYS)
        recent = past & (orders.time_O >= now_ms - RHYTHM_DAYS * DAY_MS)
        lines_O = (orders.last_O - orders.first_O)[recent]
        orders_U = np.bincount(orders.user_O[recent], minlength=num_users)
        lines_U = np.bincount(orders.user_O[recent], weights=lines_O, minlength=num_users)
        rate, size = orders_U.sum() / max(days_U.sum(), 1.0), lines_U.sum() / max(orders_U.sum(), 1)
        return cls(
            (orders_U + rate * PRIOR_DAYS) / (days_U + PRIOR_DAYS),
            (lines_U + size * PRIOR_ORDERS) / (orders_U + PRIOR_ORDERS),
            known_days_U,
        )

    def head_hazard(self, user_P: Int64, probability_PJ: Float64) -> Float64:
        """[P, J] purchases per day: orders per day, times the chance that one has the target."""
        lines_P1, rate_P1 = self.lines_per_order_U[user_P, None], self.orders_per_day_U[user_P, None]
        return rate_P1 * -np.expm1(-lines_P1 * probability_PJ)

    def purchases_per_day(self, habits: Habits) -> Float64:
        """[P] since the user's first order of anything, but at least PRIOR_DAYS ago."""
        return np.asarray(habits.count_P / np.maximum(self.known_days_U[habits.pairs.user_P], PRIOR_DAYS))


class HazardParts(NamedTuple):
    """What a hazard is made of, each [P, J]."""

    head_PJ: Float64
    habit_PJ: Float64

    def cumulative(self, days_P: Float64) -> tuple[Float64, Float64]:
        """Each part, summed up to each pair's own day."""
        return cumulative(self.head_PJ, days_P), cumulative(self.habit_PJ, days_P)

    def at_days(self, days_P: Float64) -> tuple[Float64, Float64]:
        """Each part on each pair's own day."""
        return at_days(self.head_PJ, days_P), at_days(self.habit_PJ, days_P)


@dataclass(frozen=True)
class Calibration:
    """How much each part of a hazard counts. The head alone, as it is, unless fitted."""

    head: float = 1.0
    habit: float = 0.0

    def __call__(self, parts: HazardParts) -> Float64:
        return self.head * parts.head_PJ + self.habit * parts.habit_PJ

    @classmethod
    def fit(cls, parts: HazardParts, days_P: Float64, bought_P: NDArray[np.bool_]) -> Calibration:
        """Maximum likelihood of what was bought after `days_P`, or not yet, by expectation maximisation: every purchase is
        shared out between the parts, and a part counts as many purchases as it got over its cumulative hazard."""
        if not bought_P.any():
            return cls()
        expected = [max(float(part_P.sum()), 1e-12) for part_P in parts.cumulative(days_P)]
        rate = [part_P[bought_P] for part_P in parts.at_days(days_P)]
        head, habit = 0.5, 0.5
        for _ in range(FIT_STEPS):
            total = np.maximum(head * rate[0] + habit * rate[1], 1e-12)
            head *= float((rate[0] / total).sum()) / expected[0]
            habit *= float((rate[1] / total).sum()) / expected[1]
        return cls(head, habit)


def knot_weights(day: Float64) -> Float64:
    """[days, J] how much each knot counts on each day: linear between knots, constant outside."""
    return np.stack([np.interp(day, KNOT_DAYS, row) for row in np.eye(len(KNOT_DAYS))], axis=1)


def at_days(hazard_PJ: Float64, days_P: Float64) -> Float64:
    """Each pair's hazard on its own day."""
    return (hazard_PJ * knot_weights(days_P)).sum(axis=1)


def cumulative(hazard_PJ: Float64, days_P: Float64) -> Float64:
    """Each pair's hazard, summed up to its own day."""
    return (hazard_PJ * _knot_integrals(days_P)).sum(axis=1)


def survival(hazard_PJ: Float64, day_H: Float64) -> Float64:
    """[P, H] chance that the target has not been bought by each day."""
    return np.exp(-hazard_PJ @ _knot_integrals(day_H).T)


def expected_days(hazard_PJ: Float64, horizon_days: float = HORIZON_DAYS) -> Float64:
    """Mean days to the next purchase, of which at most the horizon counts.

    >>> expected_days(np.full((1, 3), 1 / 7)).round(2)
    array([7.])
    """
    day_H = np.linspace(0.0, horizon_days, max(2, round(2 * horizon_days) + 1))
    return np.asarray(np.trapezoid(survival(hazard_PJ, day_H), day_H, axis=1))


def within_days(hazard_PJ: Float64, days: float) -> Float64:
    """Chance that the target is bought within so many days."""
    return 1 - survival(hazard_PJ, np.asarray([days]))[:, 0]


def hazard_parts(
    next_item: NextItem, targets: Sequence[Habits], now_ms: int, stage: str = "forecast"
) -> list[HazardParts]:
    """Of each of the `targets`' pairs, from what is known now, which should be a midnight and what the habits are as of."""
    rhythm = Rhythm.of(next_item.orders, len(next_item.dataset.user_ids), now_ms)
    found = []
    knots = knot_probabilities(next_item, [habits.pairs for habits in targets], now_ms, stage)
    for habits, probability_PJ in zip(targets, knots, strict=True):
        habit_PJ = np.tile(rhythm.purchases_per_day(habits)[:, None], len(KNOT_DAYS))
        found.append(HazardParts(rhythm.head_hazard(habits.pairs.user_P, probability_PJ), habit_PJ))
    return found


def calibrate(next_item: NextItem, kinds: Sequence[Purchases], user_B: Int64, now_ms: int) -> list[Calibration]:
    """One calibration per kind of target, from what these users bought again in the CALIBRATION_DAYS before now."""
    start_ms = now_ms - CALIBRATION_DAYS * DAY_MS
    targets = [purchases.habits(start_ms).repeated(user_B) for purchases in kinds]
    return [
        Calibration.fit(parts, *purchases.next_purchases(habits.pairs, start_ms, now_ms))
        for purchases, habits, parts in zip(
            kinds, targets, hazard_parts(next_item, targets, start_ms, "calibration"), strict=True
        )
    ]


def knot_probabilities(
    next_item: NextItem, targets: Sequence[Pairs], now_ms: int, stage: str = "forecast"
) -> list[Float64]:
    """[P, J] p(target | user, time) at KNOT_DAYS from now, from what is known now, of each of the `targets`' pairs, which
    are sorted by user: all are read off the same probabilities."""
    user_B = np.unique(np.concatenate([pairs.user_P for pairs in targets]))
    known_B = np.full(len(user_B), now_ms, np.int64)
    found = [np.zeros((len(pairs), len(KNOT_DAYS))) for pairs in targets]
    for knot, days in enumerate(KNOT_DAYS):
        now_B = known_B + int(days * DAY_MS)
        for part, item_BN in next_item.batches(user_B, known_B, now_B, f"{stage}, day {days:g}"):
            category_BC = category_probabilities(item_BN, next_item.categories)
            users = user_B[part]
            for pairs, knots_PJ in zip(targets, found, strict=True):
                first, stop = np.searchsorted(pairs.user_P, [users[0], users[-1] + 1])
                row = np.searchsorted(users, pairs.user_P[first:stop])
                probability = category_BC if pairs.of_categories else item_BN
                knots_PJ[first:stop, knot] = probability.numpy()[row, pairs.target_P[first:stop]]
    return found


def _knot_integrals(days: Float64) -> Float64:
    """[days, J] integrals of `knot_weights` from 0 to each day, exact: the weights are linear between knots."""
    corner = np.r_[0.0, KNOT_DAYS]
    weight = knot_weights(corner)
    areas = np.cumsum(np.diff(corner)[:, None] * (weight[1:] + weight[:-1]) / 2, axis=0)
    area = np.r_[np.zeros((1, len(KNOT_DAYS))), areas]
    before = np.searchsorted(corner, days, side="right") - 1
    rest = days - corner[before]
    return area[before] + rest[:, None] * (weight[before] + knot_weights(days)) / 2
