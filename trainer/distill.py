"""Distillation: the retrieval head learns the generative head's judgement.

The teacher's score of an item is the log-likelihood of its whole Semantic ID, exact, for a list of candidates in one
batched pass that shares the history's keys and values. The student learns it by KL divergence (Hinton et al. 2015,
arXiv:1503.02531) and by the teacher's ranking (ListMLE), beside its own loss, for both queries: among everything, and among
what the user never bought.

The teacher is a frozen copy of the trained model; the student goes on from the same weights, encoder and generative head
included, so one encoder still serves both heads.
"""

# B = batch, C = candidates per user, N = items, S = tokens, M = candidate items of a step

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from trainer.losses import distillation_kl, distillation_listwise, teacher_is_right
from trainer.model import DualHeadModel
from trainer.recipes import DistillRecipe
from trainer.retrieval import RetrievalScores, score, whole_catalogue
from trainer.samples import Batch, Shelves, sample_targets


class TeacherScores(NamedTuple):
    """[B, C] each: what the teacher thinks of the candidates, among everything and among what is new."""

    everything_BC: Tensor
    novel_BC: Tensor


@torch.no_grad()
def teacher_scores(
    teacher: DualHeadModel,
    batch: Batch,
    item_BC: Tensor,
    text_NT: Tensor,
    codes_NL: Tensor,
    values_TNP: Tensor,
    settings: DistillRecipe,
) -> TeacherScores:
    """Log-likelihoods of the candidates' Semantic IDs, ensembled with the teacher's own retrieval scores: both heads err, but
    not on the same items. A share of 1 is the generative head alone."""
    catalogue = whole_catalogue(len(text_NT), text_NT.device)
    vectors_NX = teacher.item_vectors(text_NT)
    memory = teacher.encode(batch.sequences, vectors_NX)
    likelihood_BC = teacher.log_likelihood(memory, codes_NL[item_BC])
    own = score(teacher, memory, batch, catalogue, vectors_NX, values_TNP)
    return TeacherScores(
        *(
            share * likelihood_BC + (1 - share) * part.gather(1, item_BC)
            for share, part in (
                (settings.generative_share, own.everything_BM),
                (settings.novel_generative_share, own.novel_BM),
            )
        )
    )


def distillation_losses(
    scores: RetrievalScores, item_BC: Tensor, valid_BC: Tensor, teacher: TeacherScores, settings: DistillRecipe
) -> dict[str, Tensor]:
    """KL and listwise losses, each the sum over both queries, and the share of users for whom the teacher is followed."""
    positive_BC = scores.positive_BM.gather(1, item_BC) * valid_BC
    new_BC = scores.owned_BM.gather(1, item_BC) == 0
    losses = dict.fromkeys(("kl", "listwise", "followed"), positive_BC.new_zeros(()))
    for scores_BM, teacher_BC, valid in (
        (scores.everything_BM, teacher.everything_BC, valid_BC),
        (scores.novel_BM, teacher.novel_BC, valid_BC & new_BC),
    ):
        student_BC = scores_BM.gather(1, item_BC)
        follow_B = valid.any(-1).float()
        if settings.gated:
            follow_B = teacher_is_right(student_BC, teacher_BC, valid, positive_BC * valid)
        losses["kl"] = losses["kl"] + distillation_kl(student_BC, teacher_BC, valid, follow_B, settings.temperature)
        losses["listwise"] = losses["listwise"] + distillation_listwise(student_BC, teacher_BC, valid, follow_B)
        losses["followed"] = losses["followed"] + follow_B.mean() / 2
    return losses


def candidate_lists(
    batch: Batch,
    scores: RetrievalScores,
    shelves: Shelves,
    settings: DistillRecipe,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """item_BC and valid_BC: items of the next order, what the user knows best, what the student would recommend of
    everything and of what is new, and others like and unlike it. `scores` are of the whole catalogue.

    An item that stands twice in a list is valid once.
    """
    num_items, device = scores.everything_BM.shape[1], scores.everything_BM.device
    true_BC, present_BC = sample_targets(batch, torch.ones(num_items, device=device), settings.num_true, generator)
    known = batch.sequences.item_BS[:, : settings.num_known].long() - 1
    num_student = min(settings.num_student, num_items)
    best = scores.everything_BM.detach().topk(num_student, dim=-1).indices
    best_new = scores.new_BM.detach().topk(num_student, dim=-1).indices
    picked = torch.randint(num_student, (settings.num_same_category,), generator=generator, device=device)
    similar = shelves.same_category(best_new[:, picked], generator)
    uniform = torch.randint(num_items, (batch.size, settings.num_random), generator=generator, device=device)
    item_BC = torch.cat([true_BC.masked_fill(~present_BC, -1), known, best, best_new, similar, uniform], dim=1)
    return item_BC.clamp(min=0), (item_BC >= 0) & first_occurrence(item_BC)


def first_occurrence(item_BC: Tensor) -> Tensor:
    """True where no earlier column of the row holds the same item."""
    same_BCC = item_BC.unsqueeze(2) == item_BC.unsqueeze(1)
    return ~same_BCC.tril(-1).any(-1)
