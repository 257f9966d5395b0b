"""What the retrieval head is trained on: scores of candidate items, and which of them are true.

The candidates of a step are shared by all its users: the whole catalogue, or a sample with the log of each item's chance
of being in it. It knows batches and the model's outputs, not the optimiser.
"""

# B = batch, M = candidate items of the step, N = items, S = tokens, P = target lines of the batch

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor

from baguni.signature import EVERYTHING, NOVEL
from trainer.losses import MASKED, multi_positive_infonce
from trainer.model import DualHeadModel, History, Memory
from trainer.samples import Batch, OrderSamples


@dataclass(frozen=True)
class Candidates:
    """item_M, log_q_M (None = every item is there), and slot_N1: item index + 1 → its place in item_M, or M."""

    item_M: Tensor
    log_q_M: Tensor | None
    slot_N1: Tensor

    def slots(self, item: Tensor) -> Tensor:
        """Places of items given by index, M for those that are no candidates."""
        return self.slot_N1[item + 1]


def whole_catalogue(num_items: int) -> Candidates:
    """Every item."""
    return Candidates(torch.arange(num_items), None, torch.cat([torch.tensor([num_items]), torch.arange(num_items)]))


def sampled(
    batch: Batch, samples: OrderSamples, popularity_N: Tensor, num_random: int, rng: np.random.Generator
) -> Candidates:
    """The batch's targets, hard negatives and `num_random` uniform ones.

    Hard negatives: one of the same category for each target line, and as many items that the users bought before. logQ is
    the log of the expected number of draws of an item, at most 0.
    """
    num_items = len(popularity_N)
    target = batch.target_item_P
    similar = torch.from_numpy(samples.same_category(target.numpy(), rng))
    bought = (
        batch.owned_item[torch.from_numpy(rng.integers(0, max(len(batch.owned_item), 1), len(target)))]
        if len(batch.owned_item)
        else batch.owned_item
    )
    uniform = torch.from_numpy(rng.integers(0, num_items, num_random))
    item_M = torch.cat([target, similar, bought, uniform]).unique()
    share_N = popularity_N / popularity_N.sum()
    expected_N = (len(target) + len(bought)) * share_N + (len(similar) + num_random) / num_items
    slot_N1 = torch.full((num_items + 1,), len(item_M))
    slot_N1[item_M + 1] = torch.arange(len(item_M))
    return Candidates(item_M, expected_N[item_M].clamp(max=1.0).log(), slot_N1)


@dataclass(frozen=True)
class RetrievalScores:
    """Scores of both queries over the candidates, and what is true: 1.0 where an item is in the next order."""

    everything_BM: Tensor
    novel_BM: Tensor
    positive_BM: Tensor
    owned_BM: Tensor

    def loss(self, log_q_M: Tensor | None, novel_weight: float) -> Tensor:
        """InfoNCE of both queries; the second sees only items never bought before."""
        everything = multi_positive_infonce(self.everything_BM, self.positive_BM, log_q_M)
        new_positive = self.positive_BM * (1 - self.owned_BM)
        novel = multi_positive_infonce(self.novel_BM.masked_fill(self.owned_BM > 0, MASKED), new_positive, log_q_M)
        return everything + novel_weight * novel


def score(
    model: DualHeadModel, memory: Memory, batch: Batch, candidates: Candidates, text_NT: Tensor
) -> RetrievalScores:
    """Score a batch against its candidates."""
    user_BQV = model.user_embedding(memory)
    vectors_MV = model.item_vectors(text_NT[candidates.item_M], candidates.item_M)
    repeat_BS = model.repeat_score(memory, batch.history)
    everything = with_repeat_score(user_BQV[:, EVERYTHING] @ vectors_MV.T, repeat_BS, batch.history, candidates)
    return RetrievalScores(
        everything,
        user_BQV[:, NOVEL] @ vectors_MV.T,
        _marks(batch.size, batch.target_row_P, candidates.slots(batch.target_item_P), len(candidates.item_M)),
        _marks(batch.size, batch.owned_row, candidates.slots(batch.owned_item), len(candidates.item_M)),
    )


def with_repeat_score(scores_BM: Tensor, repeat_BS: Tensor, history: History, candidates: Candidates) -> Tensor:
    """Add each token's repeat score to its item's score; tokens whose item is no candidate are left out."""
    slot_BS = candidates.slot_N1[history.item_BS.long()]
    return F.pad(scores_BM, (0, 1)).scatter_add(1, slot_BS, repeat_BS)[:, :-1]


def _marks(batch: int, row: Tensor, slot: Tensor, num_candidates: int) -> Tensor:
    marks = torch.zeros(batch, num_candidates + 1)
    marks[row, slot] = 1.0
    return marks[:, :-1]
