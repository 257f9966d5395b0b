"""One experiment: every metric of every variation against the control, now and as it was day by day."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from analysis.metrics import METRICS, Float, Metric, Units, Window, looks, units_of, values
from analysis.statistics import ALPHA, NARROWEST_AT, Comparison, Effects, Shares, Sums, compare
from analysis.tables import Tables
from baguni.domain.errors import InvalidInputError

LOOKS = 30
SMALLEST_RATIO_P = 0.001  # below, users are not split as they should be, and nothing may be concluded
CHANCE_BARS = (0.05, 0.95)


@dataclass(frozen=True)
class Plan:
    """How an experiment is read. `weights` are those of its variations in the order of their keys; none for equal ones.
    `planned_users`: at which the fixed-horizon result may be read, 0 where nobody planned."""

    experiment: str
    control: str
    window: Window = field(default_factory=Window)
    weights: tuple[float, ...] = ()
    planned_users: int = 0
    alpha: float = ALPHA


@dataclass(frozen=True)
class Look:
    """What was known of a metric at a moment."""

    time_ms: int
    num_users: int
    effects: Effects


@dataclass(frozen=True)
class Result:
    """One metric of one variation against the control; `looks` are in the order of time and the last is now."""

    metric: Metric
    variation: str
    control_mean: float
    variation_mean: float
    adjusted: bool
    looks: tuple[Look, ...]

    @property
    def now(self) -> Effects:
        """The last look's."""
        return self.looks[-1].effects


@dataclass(frozen=True)
class Analysis:
    """Everything that there is to say of an experiment."""

    plan: Plan
    users: dict[str, int]
    num_mixed: int
    ratio_p: float
    results: tuple[Result, ...]

    @property
    def is_split_right(self) -> bool:
        """Whether users are split between the variations as they should be."""
        return self.ratio_p >= SMALLEST_RATIO_P

    @property
    def is_complete(self) -> bool:
        """Whether as many users are in it as were planned."""
        return 0 < self.plan.planned_users <= sum(self.users.values())


def analyse(tables: Tables, plan: Plan, metrics: Sequence[Metric] = METRICS) -> Analysis:
    """Raises NotFoundError, InvalidInputError, and UnavailableError without the environment of gbstats."""
    units = units_of(tables, plan.experiment)
    if plan.control not in units.variations:
        raise InvalidInputError(
            f"control is {plan.control!r}, expected a variation of {plan.experiment!r}: {', '.join(units.variations)}"
        )
    shares = _shares(units, plan)
    moments = looks(tables, units, LOOKS)
    others = [variation for variation in units.variations if variation != plan.control]
    asked: list[tuple[Metric, str, int, int, Comparison]] = []
    for metric in metrics:
        for moment in moments:
            after_U, before_U = values(tables, units, metric, plan.window, moment)
            was_in_U = units.frame["first_ms"].to_numpy() <= moment
            adjusted = bool(before_U[was_in_U].any())
            control = _sums(units, plan.control, was_in_U, after_U, before_U)
            for variation in others:
                treatment = _sums(units, variation, was_in_U, after_U, before_U)
                comparison = Comparison(
                    control, treatment, metric.kind, adjusted, plan.alpha, plan.planned_users or NARROWEST_AT
                )
                asked.append((metric, variation, moment, control.n + treatment.n, comparison))
    effects, ratios = compare([comparison for *_, comparison in asked], [shares])
    results = []
    for metric in metrics:
        for variation in others:
            of_it = [
                (one, effect) for one, effect in zip(asked, effects, strict=True) if one[:2] == (metric, variation)
            ]
            last = of_it[-1][0][4]
            seen = tuple(Look(moment, users, effect) for (_, _, moment, users, _), effect in of_it)
            results.append(Result(metric, variation, last.control.mean, last.treatment.mean, last.adjusted, seen))
    counts = dict(zip(units.variations, shares.users, strict=True))
    return Analysis(plan, counts, units.num_mixed, ratios[0], tuple(results))


def conclusion(analysis: Analysis, result: Result) -> str:
    """What may be concluded of a metric, in a sentence."""
    what = f"{result.metric.title}, {result.variation} against {analysis.plan.control}"
    if not analysis.is_split_right:
        return f"{what}: nothing may be concluded, since users are not split as they should be."
    now = result.now
    if now.sequential.problem:
        return f"{what}: nothing can be said yet ({now.sequential.problem})."
    if _excludes_nothing(now.sequential.low, now.sequential.high):
        return (
            f"{what}: {_changed(now.sequential.expected)}, and it may be concluded now, however often it was looked at."
        )
    if analysis.is_complete and now.frequentist.p_value is not None and now.frequentist.p_value < analysis.plan.alpha:
        change = _changed(now.frequentist.expected)
        return f"{what}: {change}, at the planned number of users, unless it was read earlier or later than planned."
    if analysis.is_complete:
        return f"{what}: no difference was found at the planned number of users; one outside the interval is unlikely."
    return f"{what}: nothing may be concluded yet."


def _excludes_nothing(low: float | None, high: float | None) -> bool:
    return low is not None and high is not None and (low > 0 or high < 0)


def _changed(expected: float | None) -> str:
    change = expected or 0.0
    return f"{'more' if change > 0 else 'less'} by {abs(change):.1%}"


def _shares(units: Units, plan: Plan) -> Shares:
    if plan.weights and len(plan.weights) != len(units.variations):
        raise InvalidInputError(
            f"weights are {len(plan.weights)} numbers, expected {len(units.variations)}: of {', '.join(units.variations)}"
        )
    counts = units.frame["variation"].value_counts()
    weights = plan.weights or (1.0,) * len(units.variations)
    return Shares(tuple(int(counts[variation]) for variation in units.variations), weights)


def _sums(
    units: Units, variation: str, was_in_U: np.ndarray[tuple[int], np.dtype[np.bool_]], after_U: Float, before_U: Float
) -> Sums:
    is_its_U = (units.frame["variation"] == variation).to_numpy() & was_in_U
    return Sums.of(after_U[is_its_U], before_U[is_its_U])
