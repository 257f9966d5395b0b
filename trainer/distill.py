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

import numpy as np
import torch
from torch import Tensor

from baguni.domain.semantic_ids import Trie
from trainer.decoding import BeamSearch
from trainer.losses import distillation_kl, distillation_listwise, teacher_is_right
from trainer.model import DualHeadModel, Memory
from trainer.recipes import DistillRecipe
from trainer.retrieval import RetrievalScores, score, whole_catalogue
from trainer.samples import Batch, Shelves, sample_targets


class TeacherScores(NamedTuple):
    """[B, C] each: what the teacher thinks of the candidates, among everything and among what is new."""

    everything_BC: Tensor
    novel_BC: Tensor


class Teacher:
    """A frozen model and the tables of the items that it reads."""

    def __init__(
        self, model: DualHeadModel, text_NT: Tensor, codes_NL: Tensor, values_TNP: Tensor, settings: DistillRecipe
    ) -> None:
        self.model, self.settings = model.eval(), settings
        self.codes_NL, self.values_TNP = codes_NL, values_TNP
        self.catalogue = whole_catalogue(len(text_NT), text_NT.device)
        self.search: BeamSearch | None = None
        if settings.num_beams > 0:
            trie = Trie.build(codes_NL.cpu().numpy().astype(np.int32))
            self.search = BeamSearch(model, trie, settings.num_beams).eval().to(text_NT.device)
        with torch.no_grad():
            self.vectors_NX = model.item_vectors(text_NT)

    @torch.no_grad()
    def read(self, batch: Batch) -> Memory:
        """Encode the histories."""
        return self.model.encode(batch.sequences, self.vectors_NX)

    @torch.no_grad()
    def generated(self, memory: Memory) -> Tensor:
        """Return the [B, beams] items that the teacher finds most likely; -1 where it finds fewer."""
        if self.search is None:
            return memory.codes_BSL.new_zeros((len(memory.codes_BSL), 0)).long()
        everything = torch.ones((len(memory.codes_BSL), 1), dtype=torch.bool, device=memory.codes_BSL.device)
        item_BW, _ = self.search(memory, everything)
        return torch.as_tensor(item_BW).long()

    @torch.no_grad()
    def judge(self, batch: Batch, memory: Memory, item_BC: Tensor) -> TeacherScores:
        """Log-likelihoods of the candidates' Semantic IDs, ensembled with the teacher's own retrieval scores: both heads err,
        but not on the same items. A share of 1 is the generative head alone."""
        shares = (self.settings.generative_share, self.settings.novel_generative_share)
        own_BC = [torch.zeros(item_BC.shape, device=item_BC.device)] * 2
        if min(shares) < 1:
            own = score(self.model, memory, batch, self.catalogue, self.vectors_NX, self.values_TNP)
            own_BC = [part.gather(1, item_BC) for part in (own.everything_BM, own.novel_BM)]
        likelihood_BC = own_BC[0]
        if max(shares) > 0:
            likelihood_BC = self.model.log_likelihood(memory, self.codes_NL[item_BC])
        return TeacherScores(
            *(share * likelihood_BC + (1 - share) * part for share, part in zip(shares, own_BC, strict=True))
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
    generated_BW: Tensor,
) -> tuple[Tensor, Tensor]:
    """item_BC and valid_BC: items of the next order, what the teacher generates, what the user knows best, what the student
    would recommend of everything and of what is new, and others like and unlike it. `scores` are of the whole catalogue.

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
    true_BC = true_BC.masked_fill(~present_BC, -1)
    item_BC = torch.cat([true_BC, generated_BW, known, best, best_new, similar, uniform], dim=1)
    return item_BC.clamp(min=0), (item_BC >= 0) & first_occurrence(item_BC)


def first_occurrence(item_BC: Tensor) -> Tensor:
    """True where no earlier column of the row holds the same item."""
    same_BCC = item_BC.unsqueeze(2) == item_BC.unsqueeze(1)
    return ~same_BCC.tril(-1).any(-1)
