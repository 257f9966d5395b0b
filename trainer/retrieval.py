"""What the retrieval head is trained on: scores of candidate items, and which of them are true.

The candidates of a step are shared by all its users: the whole catalogue, or a sample with the log of each item's chance
of being in it. It knows batches and the model's outputs, not the optimiser.
"""

# B = batch, M = candidate items of the step, N = items, S = tokens, P = target lines of the batch

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor

from baguni.domain.signature import EVERYTHING, NOVEL
from trainer.losses import multi_positive_infonce
from trainer.model import MASKED, DualHeadModel, Memory, Sequences
from trainer.recipes import Recipe
from trainer.samples import Batch, Shelves


@dataclass(frozen=True)
class Candidates:
    """item_M, log_q_M (None = every item is there), and slot_N1: item index + 1 → its place in item_M, or M."""

    item_M: Tensor
    log_q_M: Tensor | None
    slot_N1: Tensor

    def slots(self, item: Tensor) -> Tensor:
        """Places of items given by index, M for those that are no candidates."""
        return self.slot_N1[item + 1]


def whole_catalogue(num_items: int, device: torch.device | None = None) -> Candidates:
    """Every item."""
    return some_items(torch.arange(num_items, device=device), num_items)


def some_items(item_M: Tensor, num_items: int, log_q_M: Tensor | None = None) -> Candidates:
    """The items with these indexes."""
    slot_N1 = torch.full((num_items + 1,), len(item_M), device=item_M.device)
    slot_N1[item_M + 1] = torch.arange(len(item_M), device=item_M.device)
    return Candidates(item_M, log_q_M, slot_N1)


def sampled(
    batch: Batch, shelves: Shelves, popularity_N: Tensor, num_random: int, generator: torch.Generator
) -> Candidates:
    """The batch's targets, hard negatives and `num_random` uniform ones.

    Hard negatives: one of the same category for each target line, and as many items that the users bought before. logQ is the
    log of an item's chance to be among them: 1 − exp(−expected draws), for draws that do not depend on each other.
    """
    num_items, target = len(popularity_N), batch.target_item_P

    def random(size: int, below: int) -> Tensor:
        return torch.randint(below, (size,), generator=generator, device=target.device)

    similar = shelves.same_category(target, generator)
    bought = batch.owned_item[:0]
    if len(batch.owned_item):
        bought = batch.owned_item[random(len(target), len(batch.owned_item))]
    item_M = torch.cat([target, similar, bought, random(num_random, num_items)]).unique()
    expected_N = expected_draws(shelves, popularity_N / popularity_N.sum(), len(target), len(bought), num_random)
    return some_items(item_M, num_items, (-torch.expm1(-expected_N[item_M])).log())


def expected_draws(shelves: Shelves, share_N: Tensor, num_targets: int, num_bought: int, num_random: int) -> Tensor:
    """Return [N], how often each item is drawn on average. `share_N`: of the sales, which sum to 1."""
    own_N = (num_targets + num_bought) * share_N
    return own_N + num_targets * shelves.mean_of_category(share_N) + num_random / len(share_N)


@dataclass(frozen=True)
class RetrievalScores:
    """Scores of both queries over the candidates, and what is true: 1.0 where an item is in the next order."""

    everything_BM: Tensor
    novel_BM: Tensor
    positive_BM: Tensor
    owned_BM: Tensor

    @property
    def new_BM(self) -> Tensor:  # noqa: N802 - a shape suffix
        """Scores of the query for what is new, with no chance for what was bought."""
        return self.novel_BM.masked_fill(self.owned_BM > 0, MASKED)

    def among(self, item_M: Tensor) -> RetrievalScores:
        """Return the scores of some of the candidates, by their places."""
        parts = (self.everything_BM, self.novel_BM, self.positive_BM, self.owned_BM)
        return RetrievalScores(*(part[:, item_M] for part in parts))

    def loss(self, log_q_M: Tensor | None, recipe: Recipe) -> Tensor:
        """InfoNCE of both queries, weighted; the second sees only items never bought before."""
        total = self.everything_BM.new_zeros(())
        for weight, scores_BM, positive_BM in (
            (recipe.everything_weight, self.everything_BM, self.positive_BM),
            (recipe.novel_weight, self.new_BM, self.positive_BM * (1 - self.owned_BM)),
        ):
            if weight > 0:
                loss = multi_positive_infonce(scores_BM, positive_BM, log_q_M, recipe.positives, recipe.size_power)
                total = total + weight * loss
        return total


def score(
    model: DualHeadModel, memory: Memory, batch: Batch, candidates: Candidates, vectors_NX: Tensor, values_TNP: Tensor
) -> RetrievalScores:
    """Score a batch against its candidates; each user meets the item statistics of their own month."""
    user_BQX = model.user_embedding(memory)
    vectors_MX, values_TMP = vectors_NX[candidates.item_M], values_TNP[:, candidates.item_M]
    everything, novel = (
        score_items(user_BQX[:, query], vectors_MX, values_TMP, batch.month_B) for query in (EVERYTHING, NOVEL)
    )
    repeat_BS = model.repeat_score(memory, batch.sequences)
    return RetrievalScores(
        with_repeat_score(everything, repeat_BS, batch.sequences, candidates),
        novel,
        _marks(batch.size, batch.target_row_P, candidates.slots(batch.target_item_P), len(candidates.item_M)),
        _marks(batch.size, batch.owned_row, candidates.slots(batch.owned_item), len(candidates.item_M)),
    )


def score_items(user_BX: Tensor, vectors_MX: Tensor, values_TMP: Tensor, month_B: Tensor) -> Tensor:
    """[B, M]: u · v, where the statistics inside v are those of each user's month. One matrix product a month: the rows of a
    training batch are sorted by time."""
    size = vectors_MX.shape[1] - 1
    learned = user_BX[:, :size] @ vectors_MX[:, :size].T + vectors_MX[:, -1]
    if values_TMP.shape[2] == 0:
        return learned
    months, counts = month_B.unique_consecutive(return_counts=True)
    weights = user_BX[:, size:-1].split(counts.tolist())
    pairs = zip(weights, months.tolist(), strict=True)
    return learned + torch.cat([weight_bP @ values_TMP[month].T for weight_bP, month in pairs])


def with_repeat_score(scores_BM: Tensor, repeat_BS: Tensor, sequences: Sequences, candidates: Candidates) -> Tensor:
    """Add each token's repeat score to its item's score; tokens whose item is no candidate are left out."""
    slot_BS = candidates.slot_N1[sequences.item_BS.long()]
    return F.pad(scores_BM, (0, 1)).scatter_add(1, slot_BS, repeat_BS)[:, :-1]


def _marks(batch: int, row: Tensor, slot: Tensor, num_candidates: int) -> Tensor:
    marks = torch.zeros(batch, num_candidates + 1, device=row.device)
    marks[row, slot] = 1.0
    return marks[:, :-1]
