"""Distillation: the retrieval head learns the generative head's judgement.

The teacher's score of an item is the log-likelihood of its whole Semantic ID, exact, for a list of candidates in one
batched pass that shares the history's keys and values. The student learns it by KL divergence (Hinton et al. 2015,
arXiv:1503.02531) and by the teacher's ranking (ListMLE), beside its own loss. Encoder and generative head are frozen: the
teacher stays as good as it was, and one encoder pass serves both. The student learns from users for whom the teacher is
right: where it is not (`teacher_is_right`), its judgement would only do harm.
"""

# B = batch, C = candidates per user, N = items, S = tokens, M = candidate items of a step

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from trainer.losses import distillation_kl, distillation_listwise, teacher_is_right
from trainer.model import DualHeadModel
from trainer.recipes import DistillRecipe, Recipe
from trainer.retrieval import RetrievalScores, score, whole_catalogue
from trainer.samples import Batch, sample_targets
from trainer.train import Losses, TrainingSet, batches, set_learning_rate


def distill(
    model: DualHeadModel,
    data: TrainingSet,
    recipe: Recipe,
    on_step: Callable[[int, Losses], None] = lambda step, losses: None,
) -> list[Losses]:
    """Train the retrieval head of a trained model for `recipe.distill.steps` steps; returns each step's losses."""
    settings = recipe.distill
    student = [*model.queries.parameters(), *model.repeat_head.parameters(), *model.item_tower.parameters()]
    optimizer = torch.optim.AdamW(student, lr=settings.learning_rate, weight_decay=recipe.weight_decay)
    torch.manual_seed(recipe.seed + 1)
    model.eval()
    model.item_tower.train()
    history = []
    for step, batch in batches(data.samples, settings.batch_size, 0, settings.steps):
        set_learning_rate(optimizer, settings.learning_rate, step, settings.steps // 10, settings.steps)
        losses = _losses(model, data, batch, recipe, np.random.default_rng([recipe.seed, 3, step]))
        total = losses["retrieval"] + settings.kl_weight * losses["kl"] + settings.listwise_weight * losses["listwise"]
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        optimizer.step()
        history.append({name: value.item() for name, value in losses.items()})
        on_step(step, history[-1])
    model.eval()
    return history


def _losses(
    model: DualHeadModel, data: TrainingSet, batch: Batch, recipe: Recipe, rng: np.random.Generator
) -> dict[str, Tensor]:
    with torch.no_grad():
        memory = model.encode(batch.history)
    catalogue = whole_catalogue(data.num_items)
    scores = score(model, memory, batch, catalogue, data.text_NT)
    item_BC, valid_BC = candidate_lists(batch, scores, data, recipe.distill, rng)
    with torch.no_grad():
        teacher_BC = model.log_likelihood(memory, data.codes_NL[item_BC])
    student_BC = scores.everything_BM.gather(1, item_BC)
    positive_BC = scores.positive_BM.gather(1, item_BC) * valid_BC
    gate_B = teacher_is_right(student_BC, teacher_BC, valid_BC, positive_BC)
    return {
        "retrieval": scores.loss(None, recipe.novel_weight),
        "kl": distillation_kl(student_BC, teacher_BC, valid_BC, gate_B, recipe.distill.temperature),
        "listwise": distillation_listwise(student_BC, teacher_BC, valid_BC, gate_B),
        "gated": gate_B.mean(),
    }


def candidate_lists(
    batch: Batch, scores: RetrievalScores, data: TrainingSet, settings: DistillRecipe, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """item_BC and valid_BC: items of the next order, what the user knows best, what the student would recommend, and others
    like and unlike it.

    An item that stands twice in a list is valid once.
    """
    true_BC, present_BC = sample_targets(
        batch, torch.ones(data.num_items), settings.num_true, torch.Generator().manual_seed(int(rng.integers(2**31)))
    )
    known = batch.history.item_BS[:, : settings.num_known].long() - 1
    best = scores.everything_BM.detach().topk(min(settings.num_student, data.num_items), dim=-1).indices
    seeds = best[:, torch.from_numpy(rng.integers(0, best.shape[1], settings.num_same_category))]
    similar = torch.from_numpy(data.samples.same_category(seeds.flatten().numpy(), rng)).view_as(seeds)
    uniform = torch.from_numpy(rng.integers(0, data.num_items, (batch.size, settings.num_random)))
    item_BC = torch.cat([true_BC.masked_fill(~present_BC, -1), known, best, similar, uniform], dim=1)
    return item_BC.clamp(min=0), (item_BC >= 0) & first_occurrence(item_BC)


def first_occurrence(item_BC: Tensor) -> Tensor:
    """True where no earlier column of the row holds the same item."""
    same_BCC = item_BC.unsqueeze(2) == item_BC.unsqueeze(1)
    return ~same_BCC.tril(-1).any(-1)
