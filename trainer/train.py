"""The training loop of the dual-head model: both heads at once, all prefixes, checkpoints, and batches that depend only
on (seed, step), so that an interrupted run resumes as if it had not been.

Devices, precision and processes are Lightning Fabric's: the same loop runs on one CPU core, under `torchrun` on several
processes (each takes its rows of every batch), and on a GPU. What is kept is a moving average of the weights.
"""

# N = items, B = batch, Q = target items sampled per user, P = item statistics, T = months

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.profiler import record_function

from baguni.domain.errors import BaguniError
from baguni.domain.semantic_ids import SemanticIdTable
from trainer.devices import cpu_fabric
from trainer.distill import Teacher, candidate_lists, distillation_losses
from trainer.files import written_whole
from trainer.losses import code_loss
from trainer.model import DualHeadModel, ModelConfig
from trainer.recipes import Recipe
from trainer.retrieval import sampled, score, some_items, whole_catalogue
from trainer.samples import Batch, OrderSamples, Shelves, sample_targets
from trainer.statistics import ItemStatistics

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Losses = dict[str, float]
FROM_DATA = {"num_factors"}  # a log that is too small has none
PHASES = (
    "waiting for a batch",
    "items",
    "encoder",
    "retrieval head",
    "generative head",
    "distillation",
    "backward",
    "optimiser",
)
"""Names of the parts of a step in a profile; benchmarks/training.py sums them."""


@dataclass(frozen=True)
class TrainingSet:
    """What a run trains on: samples, the items' standardised text embeddings, codes, how often each was ordered, and the
    statistics of each month."""

    samples: OrderSamples
    text_NT: Tensor
    codes_NL: Tensor
    frequency_N: Tensor
    values_TNP: Tensor

    @property
    def num_items(self) -> int:
        """N."""
        return len(self.text_NT)


def build_model(
    recipe: Recipe, table: SemanticIdTable, text_dim: int, statistics: ItemStatistics, ordered_N: Tensor
) -> DualHeadModel:
    """A fresh model of the recipe's sizes. `ordered_N`: True for items that training sees ordered."""
    torch.manual_seed(recipe.seed)
    known = {field.name for field in fields(Recipe)}
    chosen = {
        field.name: getattr(recipe, field.name) for field in fields(ModelConfig) if field.name in known - FROM_DATA
    }
    described = (statistics.num_statistics, statistics.num_factors)
    return DualHeadModel(ModelConfig(len(table), table.codebook_sizes, text_dim, *described, **chosen), ordered_N)


def start_from_popularity(model: DualHeadModel, frequency_N: Tensor) -> None:
    """Item biases start at each item's log share of orders, so that the first steps need not learn popularity."""
    if not model.config.identity:
        return
    share = (frequency_N + 1) / (frequency_N + 1).sum()
    with torch.no_grad():
        model.item_tower.identity.weight[:, -1] = share.log() - share.log().mean()


class TrainingStep(nn.Module):
    """A batch → the losses of both heads. A module, so that Fabric can put it on a device and spread it over processes."""

    text_NT: Tensor
    codes_NL: Tensor
    frequency_N: Tensor
    values_TNP: Tensor
    ordered_M: Tensor

    def __init__(
        self, model: DualHeadModel, data: TrainingSet, recipe: Recipe, teacher: DualHeadModel | None = None
    ) -> None:
        super().__init__()
        self.model, self.recipe, self._shelves = model, recipe, data.samples.shelves
        self._frozen = [] if teacher is None else [teacher]  # in a list: its weights are not this module's
        self._teacher: Teacher | None = None  # made at the first step, on the device of the tables
        for name in ("text_NT", "codes_NL", "frequency_N", "values_TNP"):
            self.register_buffer(name, getattr(data, name), persistent=False)
        self.register_buffer("ordered_M", (data.frequency_N > 0).nonzero()[:, 0], persistent=False)

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        model, recipe, device = self.model, self.recipe, self.text_NT.device
        generator = torch.Generator(device).manual_seed((recipe.seed << 32) + step)
        shelves = Shelves(*(part.to(device) for part in self._shelves))
        teacher = self._its_teacher(device)
        catalogue = whole_catalogue(len(self.text_NT), device)
        candidates = catalogue
        if recipe.negatives == "sampled":
            candidates = sampled(batch, shelves, self.frequency_N + 1, recipe.num_random_negatives, generator)
        elif recipe.negatives == "ordered":
            candidates = some_items(self.ordered_M, len(self.text_NT))
        with record_function("items"):
            vectors_NX = model.item_vectors(self.text_NT)
        with record_function("encoder"):
            memory = model.encode(batch.sequences, vectors_NX)
        losses: dict[str, Tensor] = {}
        if teacher or recipe.everything_weight > 0 or recipe.novel_weight > 0:
            with record_function("retrieval head"):
                scored = catalogue if teacher else candidates  # a teacher's candidates may be any items
                scores = score(model, memory, batch, scored, vectors_NX, self.values_TNP)
                trained = scores.among(candidates.item_M) if scored is not candidates else scores
                losses["retrieval"] = trained.loss(candidates.log_q_M, recipe)
        if recipe.generative_weight > 0:
            with record_function("generative head"):
                weight_N = (self.frequency_N + 1).pow(-recipe.target_power)
                item_BQ, present_BQ = sample_targets(batch, weight_N, recipe.num_targets, generator, recipe.novel_share)
                likelihood_BQL = model.code_log_likelihood(memory, self.codes_NL[item_BQ])
                losses["generative"] = code_loss(likelihood_BQL, present_BQ.float())
        if teacher is not None:
            with record_function("distillation"):
                seen = teacher.read(batch)
                generated_BW = teacher.generated(seen)
                item_BC, valid_BC = candidate_lists(batch, scores, shelves, recipe.distill, generator, generated_BW)
                judgement = teacher.judge(batch, seen, item_BC)
                losses |= distillation_losses(scores, item_BC, valid_BC, judgement, recipe.distill)
        return losses

    def _its_teacher(self, device: torch.device) -> Teacher | None:
        if self._teacher is None and self._frozen:
            tables = (self.text_NT, self.codes_NL, self.values_TNP)
            self._teacher = Teacher(self._frozen[0].to(device), *tables, self.recipe.distill)
        return self._teacher


def train(
    model: DualHeadModel,
    data: TrainingSet,
    recipe: Recipe,
    checkpoint: Path | None = None,
    on_step: Callable[[int, Losses], None] = lambda step, losses: None,
    fabric: Fabric | None = None,
    teacher: DualHeadModel | None = None,
) -> list[Losses]:
    """Train both heads of a fresh model for `recipe.steps` steps or, with a frozen `teacher`, a trained one for
    `recipe.distill.steps` more; resumes from `checkpoint` if it exists. The model ends with the averaged weights. Returns each
    step's losses."""
    fabric = fabric or cpu_fabric(recipe)
    phase, first_step = (recipe, 0) if teacher is None else (recipe.distill, recipe.steps)
    optimizer = torch.optim.AdamW(_parameter_groups(model, recipe), lr=phase.learning_rate)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema_decay))
    history: list[Losses] = []
    if checkpoint is not None and checkpoint.is_file():
        history = _resume(checkpoint, model, average, optimizer)
    else:
        torch.manual_seed(recipe.seed + first_step)
    step_module, optimizer = fabric.setup(TrainingStep(model, data, recipe, teacher), optimizer)
    step_module.train()
    shard = (fabric.global_rank, fabric.world_size)
    steps = (first_step + len(history), first_step + phase.steps)
    for done, batch in batches(data.samples, phase.batch_size or recipe.batch_size, *steps, shard):
        step = done - first_step
        set_learning_rate(optimizer, phase.learning_rate, step, phase.warmup_steps, phase.steps)
        losses = step_module(fabric.to_device(batch), done)
        loss = total_loss(losses, recipe)
        if not torch.isfinite(loss):
            raise BaguniError(f"the loss is {loss.item()} at step {step}: lower the learning rate or check the data")
        optimizer.zero_grad(set_to_none=True)
        with record_function("backward"):
            fabric.backward(loss)
        with record_function("optimiser"):
            fabric.clip_gradients(step_module, optimizer, max_norm=recipe.clip_norm)
            optimizer.step()
            _average(average, model, begin=step < recipe.ema_start * phase.steps)
        shared = {name: cast("Tensor", fabric.all_reduce(value.detach())) for name, value in losses.items()}
        history.append({name: value.item() for name, value in shared.items()})
        on_step(step, history[-1])
        due = len(history) % recipe.checkpoint_every == 0 or len(history) == phase.steps
        if checkpoint is not None and due and fabric.is_global_zero:
            _save(checkpoint, model, average, optimizer, history)
    fabric.barrier()  # the checkpoint is there for all processes
    model.load_state_dict(average.module.state_dict())
    model.eval()
    return history


def total_loss(losses: dict[str, Tensor], recipe: Recipe) -> Tensor:
    """The weighted sum that is minimised."""
    truth = recipe.distill.truth_weight if "kl" in losses else 1.0
    weights = {
        "retrieval": truth,
        "generative": truth * recipe.generative_weight,
        "kl": recipe.distill.kl_weight,
        "listwise": recipe.distill.listwise_weight,
    }
    return torch.stack([weight * losses[name] for name, weight in weights.items() if name in losses]).sum()


def _average(average: AveragedModel, model: nn.Module, begin: bool) -> None:
    """Move the average towards the model; while it begins, it is the model: early weights say nothing."""
    if begin:
        average.module.load_state_dict(model.state_dict())
    else:
        average.update_parameters(model)


def batches(
    samples: OrderSamples, batch_size: int, first_step: int, num_steps: int, shard: tuple[int, int] = (0, 1)
) -> Iterator[tuple[int, Batch]]:
    """(step, batch) from `first_step` to `num_steps`; the next batch is made in a thread while one is trained on. `shard` is
    (rank, number of processes): each process takes its rows of every batch."""
    rank, world_size = shard

    def make(step: int) -> Batch:
        return samples.batch(step_samples(samples, batch_size, step)[rank::world_size], step)

    with ThreadPoolExecutor(1) as maker:
        ahead = maker.submit(make, first_step)
        for step in range(first_step, num_steps):
            with record_function("waiting for a batch"):
                batch = ahead.result()
            if step + 1 < num_steps:
                ahead = maker.submit(make, step + 1)
            yield step, batch


def step_samples(samples: OrderSamples, batch_size: int, step: int) -> NDArray[np.int64]:
    """The samples of a step, by time: a batch of a fresh grouping each epoch."""
    per_epoch = max(len(samples) // batch_size, 1)
    order = samples.sample_order(step // per_epoch, batch_size)
    start = (step % per_epoch) * batch_size
    chosen = order[start : start + batch_size]
    return chosen[np.argsort(samples.time_O[chosen], kind="stable")]


def set_learning_rate(optimizer: Any, peak: float, step: int, warmup: int, total: int) -> None:
    """Linear warm-up, then a cosine down to a tenth of the peak."""
    if step < warmup:
        rate = peak * (step + 1) / warmup
    else:
        progress = (step - warmup) / max(total - warmup, 1)
        rate = peak * (0.1 + 0.45 * (1 + math.cos(math.pi * progress)))
    for group in optimizer.param_groups:
        group["lr"] = rate


def _parameter_groups(model: DualHeadModel, recipe: Recipe) -> list[dict[str, object]]:
    """Weight matrices and, with a rate of their own, item identities decay; other embeddings, norms and biases do not."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    identity = model.item_tower.identity.weight
    decayed = [p for p in model.parameters() if p.ndim >= 2 and id(p) not in embeddings]
    others = [p for p in model.parameters() if (p.ndim < 2 or id(p) in embeddings) and p is not identity]
    return [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
        {"params": [identity], "weight_decay": recipe.identity_decay},
    ]


def _save(path: Path, model: nn.Module, average: AveragedModel, optimizer: Any, history: list[Losses]) -> None:
    state = {
        "model": average.module.state_dict(),
        "trained": model.state_dict(),
        "num_averaged": average.n_averaged,
        "optimizer": optimizer.state_dict(),
        "losses": history,
        "random_state": torch.get_rng_state(),
    }
    with written_whole(path) as file:
        torch.save(state, file)


def _resume(path: Path, model: nn.Module, average: AveragedModel, optimizer: torch.optim.Optimizer) -> list[Losses]:
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["trained"])
    average.module.load_state_dict(state["model"])
    average.n_averaged.copy_(state["num_averaged"])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["random_state"])
    return list(state["losses"])
