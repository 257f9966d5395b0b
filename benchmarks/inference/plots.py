"""What a user costs, as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.inference.growth import Curve


def plot(curves: Sequence[Curve], path: Path) -> None:
    """One panel a curve, on one scale of time, as PNG."""
    figure, axes = plt.subplots(1, len(curves), figsize=(4 * len(curves), 3.2), sharey=True, layout="constrained")
    for axis, curve in zip(axes, curves, strict=True):
        axis.plot(curve.sizes, curve.ms, "o-", color="#3b7dd8")
        axis.set_xscale("log", base=10 if curve.sizes[-1] >= 1_000 else 2)
        axis.set_xticks(curve.sizes, [f"{size:,}" for size in curve.sizes])
        axis.minorticks_off()
        axis.set_xlabel(curve.axis)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("generator, ms a user, one core")
    axes[0].set_ylim(bottom=0)
    figure.savefig(path, dpi=110)
    plt.close(figure)
