"""Beam search over the trie of Semantic IDs, unrolled into one static graph: encode once, share the history's keys and
values among all beams, then per level one decoder step, log-softmax, copies, the children of each beam's node, two-stage
top-k, parent gather. A beam carries its prefix (`DualHeadModel.extended`) and which tokens began like it; there is no cache.

No loop over beams, no data-dependent shape: the graph exports to ONNX and builds into one TensorRT engine. Scores are
fp32; illegal codes have a large finite negative; top-k resolves ties by the lower index, so results are deterministic.
"""

# B = batch, W = beams, S = tokens, K = codebook size, D = width, V = trie nodes, or 1, C = children of a node, R = leaves

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn

from baguni.domain.semantic_ids import ROOT, Trie
from trainer.model import DualHeadModel, Memory

ILLEGAL = -1e9
NO_ITEM = -1


class BeamSearch(nn.Module):
    """An encoded history and a node mask → the `num_beams` most likely items and their log-likelihoods."""

    first_child_M: Tensor
    code_V: Tensor
    item_R: Tensor

    def __init__(self, model: DualHeadModel, trie: Trie, num_beams: int) -> None:
        super().__init__()
        self.model = model
        self.num_beams = num_beams
        self.first_leaf, self.max_children = trie.first_leaf, trie.max_children
        for name in ("first_child_M", "code_V", "item_R"):
            self.register_buffer(name, torch.from_numpy(getattr(trie, name)).int(), persistent=False)

    def forward(self, memory: Memory, node_mask_BV: Tensor) -> tuple[Tensor, Tensor]:
        """Returns item_BW (index, -1 where fewer than W items are allowed) and log_likelihood_BW, best first. A mask of one
        column, all ones, allows everything."""
        model = self.model
        cross = model.cross_keys_values(memory)
        prefix_BWtD = model.first_prefix(memory)
        score_BW = torch.zeros_like(prefix_BWtD[:, :, 0, 0]).float()
        node_BW = torch.full_like(score_BW, ROOT, dtype=torch.int32)
        match_BWS = torch.ones_like(memory.codes_BSL[:, None, :, 0], dtype=torch.bool)
        for level in range(len(model.code_heads)):
            log_prob_BWK = model.next_code_log_prob(prefix_BWtD, level, cross, memory, match_BWS)
            child_BWC = self._children(node_BW, level)
            allowed_BWC = node_mask_BV.gather(1, self._column(child_BWC, node_mask_BV).flatten(1)).view_as(child_BWC)
            code_BWC = _look_up(self.code_V, child_BWC)
            total_BWC = score_BW.unsqueeze(-1) + log_prob_BWK.gather(-1, code_BWC.long())
            total_BWC = torch.where((child_BWC > 0) & allowed_BWC, total_BWC, ILLEGAL)
            score_BW, beam_BW, place_BW = self._best(total_BWC)
            chosen_BW = beam_BW * child_BWC.shape[-1] + place_BW
            node_BW = torch.where(score_BW > ILLEGAL / 2, child_BWC.flatten(1).gather(1, chosen_BW), 0)
            if level + 1 < len(model.code_heads):
                code_BW = code_BWC.flatten(1).gather(1, chosen_BW)
                parents_BWtD = _take(prefix_BWtD.flatten(2), beam_BW).unflatten(2, (-1, prefix_BWtD.shape[-1]))
                prefix_BWtD = model.extended(parents_BWtD, level, code_BW)
                match_BWS = _take(match_BWS, beam_BW) & (code_BW.unsqueeze(-1) == memory.codes_BSL[:, None, :, level])
        item_BW = _look_up(self.item_R, (node_BW - self.first_leaf).clamp(min=0))
        return torch.where(node_BW > 0, item_BW, NO_ITEM).int(), score_BW

    def _children(self, node_BW: Tensor, level: int) -> Tensor:
        """[B, W, C] each beam's possible next nodes in the order of their codes, as many as any node of the level has; 0
        where this one has fewer."""
        first_BW, stop_BW = _look_up(self.first_child_M, node_BW), _look_up(self.first_child_M, node_BW + 1)
        child_BWC = first_BW.unsqueeze(-1) + torch.arange(
            self.max_children[level], dtype=torch.int32, device=node_BW.device
        )
        return torch.where(child_BWC < stop_BW.unsqueeze(-1), child_BWC, 0)

    @staticmethod
    def _column(child_BWC: Tensor, node_mask_BV: Tensor) -> Tensor:
        """Where in the mask each node stands."""
        return child_BWC.long().clamp(max=node_mask_BV.shape[1] - 1)

    def _best(self, total_BWC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Top-k per beam, then over beams: score, parent beam and place among its children of each new beam."""
        per_beam, place_BWk = total_BWC.topk(min(self.num_beams, total_BWC.shape[-1]), dim=-1)
        kept = per_beam.shape[-1]
        candidates = per_beam.flatten(1)
        missing = self.num_beams - candidates.shape[1]
        if missing > 0:
            candidates = F.pad(candidates, (0, missing), value=ILLEGAL)
        score_BW, flat_BW = candidates.topk(self.num_beams, dim=-1)
        flat_BW = flat_BW.clamp(max=place_BWk.shape[1] * kept - 1)  # what was padded points nowhere, and is illegal
        beam_BW = torch.div(flat_BW, kept, rounding_mode="floor")
        return score_BW, beam_BW, place_BWk.flatten(1).gather(1, flat_BW)


def _look_up(table_V: Tensor, index: Tensor) -> Tensor:
    """`table_V[index]`, as the Gather that ONNX Runtime and TensorRT run on int32."""
    return table_V.index_select(0, index.flatten()).view_as(index)


def _take(rows_BWX: Tensor, beam_BW: Tensor) -> Tensor:
    """Each new beam's own parent's row."""
    return rows_BWX.gather(1, beam_BW.unsqueeze(-1).expand(-1, -1, rows_BWX.shape[-1]))
