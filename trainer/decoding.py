"""Beam search over the trie of Semantic IDs, unrolled into one static graph: encode once, share the history's keys and
values among all beams, then per level one decoder step, log-softmax, copies, trie mask, two-stage top-k, parent gather.
A beam carries the sum of its codes' embeddings and which tokens began like it; there is no cache.

No loop over beams, no data-dependent shape: the graph exports to ONNX and builds into one TensorRT engine. Scores are
fp32; illegal codes have a large finite negative; top-k resolves ties by the lower index, so results are deterministic.
"""

# B = batch, W = beams, S = tokens, K = codebook size, D = width, V = trie nodes

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn

from baguni.semantic_ids import ROOT, Trie
from trainer.model import DualHeadModel, Memory, mix_copied

ILLEGAL = -1e9
NO_ITEM = -1


class BeamSearch(nn.Module):
    """An encoded history and a node mask → the `num_beams` most likely items and their log-likelihoods."""

    child_MK: Tensor

    def __init__(self, model: DualHeadModel, trie: Trie, num_beams: int) -> None:
        super().__init__()
        self.model = model
        self.num_beams = num_beams
        self.first_leaf = trie.first_leaf
        self.register_buffer("child_MK", torch.from_numpy(trie.child_MK).int(), persistent=False)

    def forward(self, memory: Memory, node_mask_BV: Tensor) -> tuple[Tensor, Tensor]:
        """Returns item_BW (index, -1 where fewer than W items are allowed) and log_likelihood_BW, best first."""
        model = self.model
        cross = model.cross_keys_values(memory)
        prefix_BWD = model.first_input(memory)
        score_BW = torch.zeros_like(prefix_BWD[:, :, 0])
        node_BW = torch.full_like(score_BW, ROOT, dtype=torch.int64)
        match_BWS = torch.ones_like(memory.codes_BSL[:, None, :, 0], dtype=torch.bool)
        for level, head in enumerate(model.code_heads):
            state_BWD = model.decode(prefix_BWD + model.level_embedding.weight[level], cross, memory)
            written_BWK = F.log_softmax(head(state_BWD).float(), -1)
            gate_BW, weight_BWS = model.copy_weights(state_BWD, memory, match_BWS)
            copied_BWK = weight_BWS @ one_hot(memory.codes_BSL[:, :, level], written_BWK.shape[-1])
            log_prob_BWK = mix_copied(gate_BW.unsqueeze(-1), copied_BWK, written_BWK)
            child_BWK = self.child_MK[node_BW][:, :, : log_prob_BWK.shape[-1]]
            legal = node_mask_BV.gather(1, child_BWK.flatten(1).long()).reshape(child_BWK.shape) > 0
            legal = legal & (child_BWK > 0)
            total_BWK = torch.where(legal, score_BW.unsqueeze(-1) + log_prob_BWK, ILLEGAL)
            score_BW, beam_BW, code_BW = self._best(total_BWK)
            node_BW = child_BWK.flatten(1).gather(1, beam_BW * child_BWK.shape[-1] + code_BW).long()
            node_BW = torch.where(score_BW > ILLEGAL / 2, node_BW, 0)
            if level + 1 < len(model.code_heads):
                prefix_BWD = _take(prefix_BWD, beam_BW) + model.code_embeddings[level](code_BW + 1)
                match_BWS = _take(match_BWS, beam_BW) & (code_BW.unsqueeze(-1) == memory.codes_BSL[:, None, :, level])
        item_BW = torch.where(node_BW > 0, node_BW - self.first_leaf, NO_ITEM)
        return item_BW.int(), score_BW

    def _best(self, total_BWK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Top-k per beam, then over beams: score, parent beam and code of each new beam."""
        num_codes = total_BWK.shape[-1]
        per_beam, code_BWk = total_BWK.topk(min(self.num_beams, num_codes), dim=-1)
        kept = per_beam.shape[-1]
        candidates = per_beam.flatten(1)
        if candidates.shape[1] < self.num_beams:
            candidates = F.pad(candidates, (0, self.num_beams - candidates.shape[1]), value=ILLEGAL)
            code_BWk = F.pad(code_BWk, (0, self.num_beams - kept))  # only the first level can be this narrow
            kept = code_BWk.shape[-1]
        score_BW, flat_BW = candidates.topk(self.num_beams, dim=-1)
        beam_BW = torch.div(flat_BW, kept, rounding_mode="floor")
        return score_BW, beam_BW, code_BWk.flatten(1).gather(1, flat_BW)


def one_hot(code_BS: Tensor, num_codes: int) -> Tensor:
    """[B, S, K] floats; a row of zeros for code -1."""
    return (code_BS.unsqueeze(-1) == torch.arange(num_codes, device=code_BS.device)).float()


def _take(rows_BWX: Tensor, beam_BW: Tensor) -> Tensor:
    """Each new beam's own parent's row."""
    return rows_BWX.gather(1, beam_BW.unsqueeze(-1).expand(-1, -1, rows_BWX.shape[-1]))
