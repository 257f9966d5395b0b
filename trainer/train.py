"""The training loop of the dual-head model: both heads at once, all prefixes, checkpoints, and batches that depend only
on (seed, step), so that an interrupted run resumes as if it had not been.
"""

# N = items, B = batch, Q = target items sampled per user

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from baguni.errors import BaguniError
from baguni.semantic_ids import SemanticIdTable
from trainer.losses import code_loss
from trainer.model import DualHeadModel, ModelConfig
from trainer.recipes import Recipe
from trainer.retrieval import sampled, score, whole_catalogue
from trainer.samples import Batch, OrderSamples, sample_targets

Losses = dict[str, float]


@dataclass(frozen=True)
class TrainingSet:
    """What a run trains on: samples, the items' standardised text embeddings, codes, and how often each was ordered."""

    samples: OrderSamples
    text_NT: Tensor
    codes_NL: Tensor
    frequency_N: Tensor

    @property
    def num_items(self) -> int:
        """N."""
        return len(self.text_NT)


def build_model(recipe: Recipe, table: SemanticIdTable, text_dim: int) -> DualHeadModel:
    """A fresh model of the recipe's sizes."""
    torch.manual_seed(recipe.seed)
    sizes = ("width", "num_heads", "encoder_layers", "decoder_layers", "feedforward", "vector_dim")
    rates = ("dropout", "id_dropout", "token_dropout")
    chosen = {name: getattr(recipe, name) for name in (*sizes, *rates)}
    return DualHeadModel(ModelConfig(len(table), table.codebook_sizes, text_dim, **chosen))


def start_from_popularity(model: DualHeadModel, frequency_N: Tensor) -> None:
    """Item biases start at each item's log share of orders, so that the first steps need not learn popularity."""
    share = (frequency_N + 1) / (frequency_N + 1).sum()
    with torch.no_grad():
        model.item_tower.identity.weight[:, -1] = share.log() - share.log().mean()


def train(
    model: DualHeadModel,
    data: TrainingSet,
    recipe: Recipe,
    checkpoint: Path | None = None,
    on_step: Callable[[int, Losses], None] = lambda step, losses: None,
) -> list[Losses]:
    """Train both heads for `recipe.steps` steps; resumes from `checkpoint` if it exists. Returns each step's losses."""
    optimizer = torch.optim.AdamW(_parameter_groups(model, recipe.weight_decay), lr=recipe.learning_rate)
    history: list[Losses] = []
    if checkpoint is not None and checkpoint.is_file():
        history = _resume(checkpoint, model, optimizer)
    else:
        start_from_popularity(model, data.frequency_N)
        torch.manual_seed(recipe.seed)
    model.train()
    for step, batch in batches(data.samples, recipe.batch_size, len(history), recipe.steps):
        set_learning_rate(optimizer, recipe.learning_rate, step, recipe.warmup_steps, recipe.steps)
        losses = _step(model, optimizer, batch, data, recipe, step)
        history.append(losses)
        on_step(step, losses)
        if checkpoint is not None and (len(history) % recipe.checkpoint_every == 0 or len(history) == recipe.steps):
            _save(checkpoint, model, optimizer, history)
    model.eval()
    return history


def batches(samples: OrderSamples, batch_size: int, first_step: int, num_steps: int) -> Iterator[tuple[int, Batch]]:
    """(step, batch) from `first_step` to `num_steps`; the next batch is made in a thread while one is trained on."""
    with ThreadPoolExecutor(1) as maker:
        ahead = maker.submit(samples.batch, step_samples(samples, batch_size, first_step), first_step)
        for step in range(first_step, num_steps):
            batch = ahead.result()
            if step + 1 < num_steps:
                ahead = maker.submit(samples.batch, step_samples(samples, batch_size, step + 1), step + 1)
            yield step, batch


def step_samples(samples: OrderSamples, batch_size: int, step: int) -> NDArray[np.int64]:
    """The samples of a step: consecutive pieces of a fresh permutation each epoch."""
    per_epoch = max(len(samples) // batch_size, 1)
    order = samples.sample_order(step // per_epoch)
    start = (step % per_epoch) * batch_size
    return order[start : start + batch_size]


def set_learning_rate(optimizer: torch.optim.Optimizer, peak: float, step: int, warmup: int, total: int) -> None:
    """Linear warm-up, then a cosine down to a tenth of the peak."""
    if step < warmup:
        rate = peak * (step + 1) / warmup
    else:
        progress = (step - warmup) / max(total - warmup, 1)
        rate = peak * (0.1 + 0.45 * (1 + math.cos(math.pi * progress)))
    for group in optimizer.param_groups:
        group["lr"] = rate


def _step(
    model: DualHeadModel, optimizer: torch.optim.Optimizer, batch: Batch, data: TrainingSet, recipe: Recipe, step: int
) -> Losses:
    rng = np.random.default_rng([recipe.seed, 2, step])
    if recipe.negatives == "catalogue":
        candidates = whole_catalogue(data.num_items)
    else:
        candidates = sampled(batch, data.samples, data.frequency_N + 1, recipe.num_random_negatives, rng)
    memory = model.encode(batch.history)
    retrieval = score(model, memory, batch, candidates, data.text_NT).loss(candidates.log_q_M, recipe.novel_weight)
    weight_N = (data.frequency_N + 1).rsqrt()
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    item_BQ, present_BQ = sample_targets(batch, weight_N, recipe.num_targets, generator)
    codes_BQL = data.codes_NL[item_BQ]
    generative = code_loss(model.code_logits(memory, codes_BQL), codes_BQL, present_BQ.float())
    loss = retrieval + recipe.generative_weight * generative
    if not torch.isfinite(loss):
        raise BaguniError(f"the loss is {loss.item()} at step {step}: lower the learning rate or check the data")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
    optimizer.step()
    return {"retrieval": retrieval.item(), "generative": generative.item()}


def _parameter_groups(model: DualHeadModel, weight_decay: float) -> list[dict[str, object]]:
    """Weight matrices decay; embeddings, norms and biases do not."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    decayed = [p for p in model.parameters() if p.ndim >= 2 and id(p) not in embeddings]
    others = [p for p in model.parameters() if p.ndim < 2 or id(p) in embeddings]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def _save(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, history: list[Losses]) -> None:
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "losses": history,
        "random_state": torch.get_rng_state(),
    }
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def _resume(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Losses]:
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["random_state"])
    return list(state["losses"])
