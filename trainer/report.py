"""A run's losses as a picture."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib as mpl
import numpy as np

from trainer.train import Losses

mpl.use("Agg")


def plot_losses(stages: dict[str, list[Losses]], path: Path) -> None:
    """One panel per loss and stage, each step as a dot and its running median as a line; also as JSON beside it."""
    import matplotlib.pyplot as plt

    panels = [(stage, name) for stage, losses in stages.items() if losses for name in losses[0]]
    figure, axes = plt.subplots(
        1, len(panels), figsize=(3.6 * len(panels), 3.2), constrained_layout=True, squeeze=False
    )
    for axis, (stage, name) in zip(axes[0], panels, strict=True):
        values = np.asarray([losses[name] for losses in stages[stage]])
        window = max(len(values) // 20, 1)
        smooth = [np.median(values[max(0, step - window) : step + 1]) for step in range(len(values))]
        axis.plot(values, ".", markersize=2, alpha=0.35, color="tab:gray")
        axis.plot(smooth, color="tab:blue")
        axis.set_title(f"{stage}: {name}", fontsize=10)
        axis.set_xlabel("step")
        axis.set_ylabel({"kl": "nats · T²", "gated": "share of users"}.get(name, "nats"))
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    path.with_suffix(".json").write_text(json.dumps(stages) + "\n")
