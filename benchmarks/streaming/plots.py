"""How soon events are seen, and what a history costs as it grows, as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter


def plot(
    seconds: Mapping[str, Sequence[float]], bytes_a_user: Sequence[tuple[float, float]], cap: int, path: Path
) -> None:
    """Two panels, as PNG."""
    figure, (fresh, memory) = plt.subplots(1, 2, figsize=(9.2, 3.4), layout="constrained")
    for (name, values), colour in zip(seconds.items(), ("#999999", "#3b7dd8"), strict=False):
        share = np.arange(1, len(values) + 1) / len(values)
        fresh.plot(1e3 * np.sort(np.asarray(values)), 100 * share, color=colour, label=name)
    fresh.set_xscale("log")
    fresh.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    fresh.xaxis.set_major_formatter(ScalarFormatter())
    fresh.xaxis.set_minor_formatter(NullFormatter())
    fresh.set_xlabel("ms from a click produced to a list that knows it")
    fresh.set_ylabel("% of clicks")
    fresh.legend()
    events, size = zip(*bytes_a_user, strict=True)
    memory.plot(events, np.asarray(size) / 1e3, "o-", color="#3b7dd8", markersize=3)
    memory.axvline(cap, color="#999999", linestyle="--", linewidth=1)
    memory.annotate(f" only the newest\n {cap} are kept", (cap, 0.1), color="#666666", fontsize=8)
    memory.set_ylim(bottom=0)
    memory.set_xlabel("events of each user so far")
    memory.set_ylabel("kB of Redis a user")
    for axis in (fresh, memory):
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)
