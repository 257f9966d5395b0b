"""What each user of an experiment did within a window after their first exposure, and before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.tables import Tables
from baguni.domain.errors import InvalidInputError, NotFoundError

DAY_MS = 86_400_000
Float = NDArray[np.float64]


@dataclass(frozen=True)
class Metric:
    """A number of each user: whether they did something (`share`), or the sum of something (`mean`)."""

    name: str
    title: str
    kind: Literal["share", "mean"]
    action: str
    is_value: bool = False  # what it is worth, not how often


METRICS = (
    Metric("click_rate", "users who clicked", "share", "click"),
    Metric("cart_rate", "users who put something into the cart", "share", "cart"),
    Metric("conversion", "users who ordered", "share", "order"),
    Metric("orders", "orders per user", "mean", "order"),
    Metric("revenue", "revenue per user", "mean", "order", is_value=True),
)


@dataclass(frozen=True)
class Window:
    """Days after the first exposure that count, and days before it for the covariate; 0 for none."""

    days: float = 14.0
    before_days: float = 28.0


@dataclass(frozen=True)
class Units:
    """The users of one experiment; those who saw more than one variation are left out, and counted. One row a user."""

    frame: pd.DataFrame  # unit_id, variation, first_ms
    num_mixed: int

    @property
    def variations(self) -> list[str]:
        """Their keys, in order."""
        return sorted(self.frame["variation"].unique())


def units_of(tables: Tables, experiment: str) -> Units:
    """Raises NotFoundError for an experiment that nobody was in, InvalidInputError for one with one variation."""
    exposed = tables.exposures[tables.exposures["experiment"] == experiment]
    if not len(exposed):
        known = ", ".join(sorted(tables.exposures["experiment"].unique())[:10]) or "none at all"
        raise NotFoundError(f"nobody was exposed to experiment {experiment!r}; exposures are of {known}")
    per_unit = exposed.groupby("unit_id").agg(
        variation=("variation", "first"), num=("variation", "nunique"), first_ms=("time_ms", "min")
    )
    pure = per_unit[per_unit["num"] == 1].drop(columns="num").reset_index()
    if pure["variation"].nunique() < 2:
        raise InvalidInputError(f"experiment {experiment!r} has exposures to {sorted(pure['variation'].unique())} only")
    return Units(pure, int((per_unit["num"] > 1).sum()))


def values(
    tables: Tables, units: Units, metric: Metric, window: Window, until_ms: int | None = None
) -> tuple[Float, Float]:
    """Of each unit, in their order, the metric after its exposure, and the same before it. `until_ms`: as it was known then."""
    actions = tables.actions[tables.actions["action"] == metric.action]
    joined = actions.merge(units.frame[["unit_id", "first_ms"]], on="unit_id")
    since_ms = joined["time_ms"] - joined["first_ms"]
    last_ms = np.inf if until_ms is None else until_ms
    is_after = (since_ms >= 0) & (since_ms < window.days * DAY_MS) & (joined["time_ms"] <= last_ms)
    is_before = (since_ms < 0) & (since_ms >= -window.before_days * DAY_MS)
    return _of_units(joined[is_after], units, metric), _of_units(joined[is_before], units, metric)


def looks(tables: Tables, units: Units, at_most: int) -> Sequence[int]:
    """Moments, a day or more apart, at which the experiment is looked at; the last is the end of what is known."""
    first = int(units.frame["first_ms"].min())
    last = int(max(units.frame["first_ms"].max(), tables.actions["time_ms"].max() if len(tables.actions) else 0))
    num_days = max(int(np.ceil((last - first) / DAY_MS)), 1)
    days = np.unique(np.linspace(1, num_days, min(at_most, num_days)).astype(int))
    return [min(first + int(day) * DAY_MS, last) for day in days]


def _of_units(actions: pd.DataFrame, units: Units, metric: Metric) -> Float:
    grouped = actions.groupby("unit_id")["value"]
    sums = grouped.sum() if metric.is_value else grouped.count()
    found = units.frame["unit_id"].map(sums).fillna(0.0).to_numpy(np.float64)
    return (found > 0).astype(np.float64) if metric.kind == "share" else found
