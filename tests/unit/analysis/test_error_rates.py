"""What the statistics promise, by simulation: no effect is found where there is none, more often than promised, and the effect
that is there is found as often as it should be.

Every run is an experiment of its own; bounds are two standard errors of what is promised, with seeds that are fixed.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from analysis.statistics import Comparison, Effects, Shares, Sums, compare

pytestmark = pytest.mark.slow

RUNS, USERS = 400, 1_500  # users of each variation
ALPHA = 0.05
TWO_ERRORS = 2 * math.sqrt(ALPHA * (1 - ALPHA) / RUNS)
LOOKS = (0.2, 0.4, 0.6, 0.8, 1.0)


def users(rng: np.random.Generator, count: int, lift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Orders of a user after and before exposure: some users order much, so the one says much of the other."""
    taste = rng.gamma(0.8, 1.5, count)
    return rng.poisson(taste * (1 + lift)).astype(float), rng.poisson(taste).astype(float)


def runs(
    seed: int, lift: float, adjusted: bool, kind: str = "mean", shares: tuple[float, ...] = (1.0,)
) -> list[list[Effects]]:
    """Effects of every run, at each share of its users."""
    rng, asked = np.random.default_rng(seed), []
    for _ in range(RUNS):
        sides = [users(rng, USERS), users(rng, USERS, lift)]
        if kind == "share":
            sides = [((after > 0).astype(float), (before > 0).astype(float)) for after, before in sides]
        for share in shares:
            some = int(share * USERS)
            control, treatment = (Sums.of(after[:some], before[:some]) for after, before in sides)
            asked.append(Comparison(control, treatment, kind, adjusted, ALPHA, narrowest_at=2 * USERS))
    effects, _ = compare(asked)
    return [effects[start : start + len(shares)] for start in range(0, len(effects), len(shares))]


def share_significant(found: list[Effects]) -> float:
    return float(np.mean([one.frequentist.p_value is not None and one.frequentist.p_value < ALPHA for one in found]))


@pytest.mark.parametrize(("kind", "adjusted"), [("mean", False), ("mean", True), ("share", False), ("share", True)])
def test_without_an_effect_one_in_twenty_is_found(kind: str, adjusted: bool) -> None:
    found = [one for (one,) in runs(1, 0.0, adjusted, kind)]
    assert abs(share_significant(found) - ALPHA) <= TWO_ERRORS
    chances = np.asarray([0.5 if one.bayesian.chance_to_win is None else one.bayesian.chance_to_win for one in found])
    wins = np.mean(abs(chances - 0.5) > 0.5 - ALPHA / 2)
    assert abs(wins - ALPHA) <= TWO_ERRORS


def test_who_looks_five_times_finds_too_much_unless_the_interval_allows_it() -> None:
    """Fixed-horizon results are for one look; the sequential ones keep their promise."""
    found = runs(2, 0.0, False, shares=LOOKS)
    ever_fixed = np.mean([min(map(_p, looks)) < ALPHA for looks in found])
    ever_sequential = np.mean(
        [any((look.sequential.low or 0) > 0 or (look.sequential.high or 0) < 0 for look in looks) for looks in found]
    )
    assert ever_fixed > 2 * ALPHA
    assert ever_sequential <= ALPHA + TWO_ERRORS


def _p(look: Effects) -> float:
    return 1.0 if look.frequentist.p_value is None else look.frequentist.p_value


@pytest.mark.parametrize("adjusted", [False, True])
def test_an_effect_is_found_as_often_as_it_should_be_and_lies_in_the_interval(adjusted: bool) -> None:
    lift = 0.1
    found = [one for (one,) in runs(3, lift, adjusted)]
    covered = np.mean([(one.frequentist.low or 1) <= lift <= (one.frequentist.high or -1) for one in found])
    assert abs(covered - (1 - ALPHA)) <= TWO_ERRORS
    estimate = np.mean([one.frequentist.expected or 0.0 for one in found])
    widths = np.asarray([(one.frequentist.high or 0) - (one.frequentist.low or 0) for one in found])
    assert abs(estimate - lift) <= 2 * widths.mean() / (2 * 1.96) / math.sqrt(RUNS)
    # The power by the widths of the intervals: how often an estimate is 1.96 of its errors away from 0.
    error = widths.mean() / (2 * 1.96)
    power = 0.5 * math.erfc((1.96 - lift / error) / math.sqrt(2))
    assert abs(share_significant(found) - power) <= 2 * math.sqrt(power * (1 - power) / RUNS) + 0.02


def test_what_users_did_before_narrows_the_interval() -> None:
    widths = [
        np.mean([(one.frequentist.high or 0) - (one.frequentist.low or 0) for (one,) in runs(4, 0.1, adjusted)])
        for adjusted in (False, True)
    ]
    assert widths[1] < 0.85 * widths[0]


def test_a_split_that_is_not_as_it_should_be() -> None:
    _, found = compare(
        [], [Shares((5_000, 5_000), (1, 1)), Shares((5_000, 5_400), (1, 1)), Shares((3_000, 6_000), (1, 2))]
    )
    assert found[0] == pytest.approx(1.0)
    assert found[1] < 0.001
    assert found[2] == pytest.approx(1.0)
