"""Latency under load, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.gateway.load import Load


@dataclass(frozen=True)
class Curve:
    """Open loops at growing rates, requests a second."""

    title: str
    rates: Sequence[float]
    recommend: Sequence[Load]
    search: Sequence[Load]


def plot(curves: Sequence[Curve], path: Path) -> None:
    """One panel a curve, on one scale, as PNG."""
    figure, axes = plt.subplots(
        1, len(curves), figsize=(4.6 * len(curves), 3.4), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, curve in zip(axes[0], curves, strict=True):
        for name, loads, colour in (
            ("Recommend", curve.recommend, "#3b7dd8"),
            ("bare vector search", curve.search, "#999999"),
        ):
            for percentile, line in ((50, "o-"), (99, "o--")):
                latency_ms = [load.ms(percentile) for load in loads]
                axis.plot(curve.rates, latency_ms, line, color=colour, label=f"{name}, p{percentile}")
        axis.set_title(curve.title)
        axis.set_xlabel("requests a second, open loop")
        axis.grid(alpha=0.3)
    axes[0][0].set_yscale("log")
    axes[0][0].set_ylabel("latency, ms")
    axes[0][0].legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)
