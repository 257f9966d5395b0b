"""Where a training runs: one process on the CPU or on a GPU, or one process of several under `torchrun`."""

from __future__ import annotations

import os

import torch
from lightning_fabric import Fabric

from trainer.recipes import Recipe


def launch(recipe: Recipe) -> Fabric:
    """The machine's best device, in the recipe's precision. Under `torchrun`, this process's share of a group: gradients are
    averaged over it, and each process takes its rows of every batch."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    nodes = int(os.environ.get("WORLD_SIZE", "1")) // processes
    fabric = Fabric(
        accelerator="cuda" if torch.cuda.is_available() else "cpu",
        devices=processes,
        num_nodes=nodes,
        strategy="ddp" if processes * nodes > 1 else "auto",
        precision=recipe.precision,
    )
    fabric.launch()
    return fabric
