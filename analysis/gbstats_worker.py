"""Runs in the environment of gbstats: comparisons as JSON on standard input, effects on standard output."""

from __future__ import annotations

import json
import math
import sys
from typing import Any

from gbstats.bayesian.tests import EffectBayesianABTest, EffectBayesianConfig
from gbstats.frequentist.tests import FrequentistConfig, SequentialConfig, SequentialTwoSidedTTest, TwoSidedTTest
from gbstats.models.statistics import ProportionStatistic, RegressionAdjustedStatistic, SampleMeanStatistic
from gbstats.utils import check_srm


def statistic(sums: dict[str, Any], kind: str, adjusted: bool) -> Any:
    """A variation's statistic of gbstats; sums of squares of shares are the sums."""
    n = sums["n"]
    if kind == "share":
        after: Any = ProportionStatistic(n=n, sum=sums["total"])
        before: Any = ProportionStatistic(n=n, sum=sums["before"])
    else:
        after = SampleMeanStatistic(n=n, sum=sums["total"], sum_squares=sums["squares"])
        before = SampleMeanStatistic(n=n, sum=sums["before"], sum_squares=sums["before_squares"])
    if not adjusted:
        return after
    return RegressionAdjustedStatistic(
        n=n, post_statistic=after, pre_statistic=before, post_pre_sum_of_products=sums["products"], theta=0.0
    )


def effect(result: Any) -> dict[str, Any]:
    """One test's result; no number where there is none."""
    problem = getattr(result, "error_message", None) or ""
    numbers = {"expected": result.expected, "low": result.ci[0], "high": result.ci[1]}
    numbers["p_value"] = getattr(result, "p_value", None)
    numbers["chance_to_win"] = getattr(result, "chance_to_win", None)
    shown = {
        name: None if value is None or not math.isfinite(value) else float(value) for name, value in numbers.items()
    }
    if problem or shown["expected"] is None:
        return {**dict.fromkeys(numbers), "problem": problem or "nothing to compare"}
    return {**shown, "problem": ""}


def compare(one: dict[str, Any]) -> dict[str, Any]:
    """All three tests."""
    stats = [lambda side=side: statistic(one[side], one["kind"], one["adjusted"]) for side in ("control", "treatment")]
    frequentist = FrequentistConfig(alpha=one["alpha"])
    sequential = SequentialConfig(alpha=one["alpha"], sequential_tuning_parameter=one["narrowest_at"])
    return {
        "frequentist": effect(TwoSidedTTest(stats[0](), stats[1](), frequentist).compute_result()),
        "sequential": effect(SequentialTwoSidedTTest(stats[0](), stats[1](), sequential).compute_result()),
        "bayesian": effect(
            EffectBayesianABTest(stats[0](), stats[1](), EffectBayesianConfig(alpha=one["alpha"])).compute_result()
        ),
    }


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    json.dump(
        {
            "effects": [compare(one) for one in asked["comparisons"]],
            "ratios": [float(check_srm(list(one["users"]), list(one["weights"]))) for one in asked["shares"]],
        },
        sys.stdout,
    )
