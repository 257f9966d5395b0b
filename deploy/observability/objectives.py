"""The service level objectives, and the recording and alert rules that follow from them:

python -m deploy.observability.objectives      writes prometheus/objectives.yaml

An alert fires when so much of a month's budget burns in a long window, and still does in a short one (Beyer et al., The Site
Reliability Workbook, 2018, chapter 5).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

FILE = Path(__file__).parent / "prometheus" / "objectives.yaml"
WINDOWS = ("5m", "30m", "1h", "6h", "3d")
RUNBOOK = "docs/runbook.md#"
HEAD = "# Written by `make observability` from deploy/observability/objectives.py.\n"
# What a caller did wrong, or may not do, is no failure of ours; what was refused for being too much is.
CALLERS_FAULT = "OK|INVALID_ARGUMENT|NOT_FOUND|FAILED_PRECONDITION|UNAUTHENTICATED|PERMISSION_DENIED|UNIMPLEMENTED"
RECOMMEND = ("baguni_request_duration_seconds", 'method="Recommend"')  # a histogram, and which of its series
EVENTS = ("baguni_event_visible_lag_seconds",)


@dataclass(frozen=True)
class Objective:
    """`target`: the share that is good, over 30 days. `bad` and `all`: PromQL of the rates, over WINDOW."""

    name: str
    title: str
    target: float
    bad: str
    all: str

    @property
    def recorded(self) -> str:
        """The recorded share of what is bad, less its window."""
        return f"baguni:{self.name}:bad_ratio"

    def recording_rules(self) -> list[dict[str, Any]]:
        """The share of what is bad, over each window."""
        return [
            {
                "record": f"{self.recorded}_{window}",
                "expr": f"({self.bad}) / ({self.all})".replace("WINDOW", window),
            }
            for window in WINDOWS
        ]

    def alert_rules(self) -> list[dict[str, Any]]:
        """One a pace of burning."""
        return [
            {
                "alert": f"{self.name.title().replace('_', '')}{pace.name}",
                "expr": " and ".join(
                    f"{self.recorded}_{window} > {pace.factor * (1 - self.target):.6g}" for window in pace.windows
                ),
                "for": pace.lasting,
                "labels": {"severity": pace.severity, "objective": self.name},
                "annotations": {
                    "summary": f"{self.title}: the budget burns {pace.factor:g} times too fast",
                    "description": f"{{{{ $value | humanizePercentage }}}} were bad over {pace.windows[0]}; the objective "
                    f"allows {1 - self.target:.2%} of 30 days.",
                    "runbook_url": f"{RUNBOOK}{self.name.replace('_', '')}{pace.name.lower()}",
                },
            }
            for pace in PACES
        ]


@dataclass(frozen=True)
class Pace:
    """How fast a budget burns: `factor` times what the objective allows, over both windows."""

    name: str
    factor: float
    windows: tuple[str, str]
    lasting: str
    severity: str


PACES = (
    Pace("BurnsFast", 14.4, ("1h", "5m"), "2m", "page"),
    Pace("Burns", 6.0, ("6h", "30m"), "15m", "page"),
    Pace("BurnsSlowly", 1.0, ("3d", "6h"), "1h", "ticket"),
)


def _rate(series: tuple[str, ...], part: str = "count", *more: str) -> str:
    """Of a histogram's part; `more`: further conditions."""
    metric, *conditions = (*series, *more)
    chosen = f"{{{', '.join(conditions)}}}" if conditions else ""
    return f"sum(rate({metric}_{part}{chosen}[WINDOW]))"


OBJECTIVES = (
    Objective(
        "recommend_availability",
        "Recommend answers",
        0.999,
        _rate(RECOMMEND, "count", f'code!~"{CALLERS_FAULT}"') + " or vector(0)",
        _rate(RECOMMEND),
    ),
    Objective(
        "recommend_latency",
        "Recommend within 200 ms",
        0.99,
        _rate(RECOMMEND) + " - " + _rate(RECOMMEND, "bucket", 'le="0.2"'),
        _rate(RECOMMEND),
    ),
    Objective(
        "freshness",
        "Events seen within a second",
        0.99,
        _rate(EVENTS) + " - " + _rate(EVENTS, "bucket", 'le="1.0"'),
        _rate(EVENTS),
    ),
)


def rules() -> dict[str, Any]:
    """The file's content."""
    recording = [rule for objective in OBJECTIVES for rule in objective.recording_rules()]
    alerts = [rule for objective in OBJECTIVES for rule in objective.alert_rules()]
    return {
        "groups": [
            {"name": "objectives", "interval": "30s", "rules": recording},
            {"name": "burn-rates", "rules": alerts},
        ]
    }


def render() -> str:
    """As YAML."""
    written: str = yaml.safe_dump(rules(), sort_keys=False, width=160)
    return HEAD + written


if __name__ == "__main__":
    FILE.write_text(render())
