"""Where a training runs: one process on the CPU or on a GPU, or one process of several under `torchrun`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal

import torch

from trainer.recipes import Recipe

if TYPE_CHECKING:  # seconds to import, and only trainings need it
    from lightning_fabric import Fabric

BF16_INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "bf16")  # of x86 and of Arm, as torch calls them


def precision_here(recipe: Recipe) -> Literal["32-true", "bf16-mixed"]:
    """The recipe's precision, or full precision on a CPU that has no instructions for half of it: there, bf16 is emulated and a
    step takes fifteen times as long (AMD EPYC with AVX2: 4 s, not 0.25)."""
    if torch.cuda.is_available() or any(torch.cpu.get_capabilities().get(name) for name in BF16_INSTRUCTIONS):
        return recipe.precision
    return "32-true"


def cpu_fabric(recipe: Recipe) -> Fabric:
    """One process on the CPU."""
    from lightning_fabric import Fabric

    return Fabric(accelerator="cpu", devices=1, precision=precision_here(recipe))


def launch(recipe: Recipe) -> Fabric:
    """The machine's best device, in the recipe's precision where it has that. Under `torchrun`, this process's share of a
    group: gradients are averaged over it, and each process takes its rows of every batch."""
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import DDPStrategy

    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    nodes = int(os.environ.get("WORLD_SIZE", "1")) // processes
    fabric = Fabric(
        accelerator="cuda" if torch.cuda.is_available() else "cpu",
        devices=processes,
        num_nodes=nodes,
        strategy=DDPStrategy(find_unused_parameters=True) if processes * nodes > 1 else "auto",  # parts may be off
        precision=precision_here(recipe),
    )
    fabric.launch()
    return fabric
