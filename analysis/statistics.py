"""GrowthBook's statistics, by its own `gbstats`, in an environment of its own: it needs an older NumPy than the rest.

`make analysis` makes that environment; all comparisons of an analysis are one call of it.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from analysis.metrics import Float
from baguni.domain.errors import UnavailableError

PYTHON = Path(".venv-analysis/bin/python")
WORKER = Path(__file__).with_name("gbstats_worker.py")
ALPHA = 0.05
NARROWEST_AT = 5_000.0


@dataclass(frozen=True)
class Sums:
    """What a test needs of a variation's users: their number, and sums of the metric, of its value before, and of products."""

    n: int
    total: float
    squares: float
    before: float
    before_squares: float
    products: float

    @classmethod
    def of(cls, after_U: Float, before_U: Float) -> Sums:
        """Of one variation's users."""
        return cls(
            len(after_U),
            float(after_U.sum()),
            float(np.square(after_U).sum()),
            float(before_U.sum()),
            float(np.square(before_U).sum()),
            float((after_U * before_U).sum()),
        )

    @property
    def mean(self) -> float:
        """Of the metric."""
        return self.total / self.n if self.n else 0.0


@dataclass(frozen=True)
class Comparison:
    """A variation against the control. `kind`: share or mean; `adjusted`: by what users did before (CUPED); `narrowest_at`: the
    number of users at which the sequential interval is narrowest, which must be chosen before there are any."""

    control: Sums
    treatment: Sums
    kind: str
    adjusted: bool
    alpha: float = ALPHA
    narrowest_at: float = NARROWEST_AT


@dataclass(frozen=True)
class Effect:
    """A relative effect with its interval at 1 − alpha: .05 is 5 % more. `p_value` is None for the Bayesian one,
    `chance_to_win` for the others. No numbers where there is nothing to compare, and `problem` says why."""

    expected: float | None
    low: float | None
    high: float | None
    p_value: float | None = None
    chance_to_win: float | None = None
    problem: str = ""


@dataclass(frozen=True)
class Effects:
    """The same comparison in three ways: valid at one planned moment, valid at any moment, and as a probability."""

    frequentist: Effect
    sequential: Effect
    bayesian: Effect


@dataclass(frozen=True)
class Shares:
    """Users of each variation, and the weights that they were assigned by."""

    users: tuple[int, ...]
    weights: tuple[float, ...]


def compare(
    comparisons: Sequence[Comparison], shares: Sequence[Shares] = (), python: Path = PYTHON
) -> tuple[list[Effects], list[float]]:
    """Effects, in their order, and of each of `shares` the p-value that the ratio of users is as it should be. Raises
    UnavailableError without the environment."""
    if not python.exists():
        raise UnavailableError("gbstats", f"{python} is not there; `make analysis` makes it")
    asked = {"comparisons": [asdict(one) for one in comparisons], "shares": [asdict(one) for one in shares]}
    done = subprocess.run(
        [str(python), str(WORKER)], input=json.dumps(asked), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise UnavailableError("gbstats", done.stderr[-2_000:])
    found = json.loads(done.stdout)
    effects = [
        Effects(*(Effect(**one[name]) for name in ("frequentist", "sequential", "bayesian")))
        for one in found["effects"]
    ]
    return effects, found["ratios"]
