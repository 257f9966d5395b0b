"""Beam search over the trie of Semantic IDs, unrolled into one static graph: encode once, share the history's keys and
values among all beams, then per level one decoder step, log-softmax, trie mask, two-stage top-k, parent gather.

No loop over beams, no data-dependent shape: the graph exports to ONNX and builds into one TensorRT engine. Scores are
fp32; illegal codes have a large finite negative; top-k resolves ties by the lower index, so results are deterministic.
"""

# B = batch, W = beams, L = levels, K = codebook size, D = width, V = trie nodes

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn

from baguni.semantic_ids import ROOT, Trie
from trainer.model import Attention, DualHeadModel, History

ILLEGAL = -1e9
NO_ITEM = -1


class BeamSearch(nn.Module):
    """History and node mask → the `num_beams` most likely items and their log-likelihoods."""

    child_MK: Tensor

    def __init__(self, model: DualHeadModel, trie: Trie, num_beams: int) -> None:
        super().__init__()
        self.model = model
        self.num_beams = num_beams
        self.first_leaf = trie.first_leaf
        self.register_buffer("child_MK", torch.from_numpy(trie.child_MK).int(), persistent=False)

    def forward(self, history: History, node_mask_BV: Tensor) -> tuple[Tensor, Tensor]:
        """Returns item_BW (index, -1 where fewer than W items are allowed) and log_likelihood_BW, best first."""
        model = self.model
        memory = model.encode(history)
        cross = model.cross_keys_values(memory)
        x_BWD = model.first_input(memory) + model.level_embedding.weight[0]
        score_BW = torch.zeros_like(x_BWD[:, :, 0])
        node_BW = torch.full_like(score_BW, ROOT, dtype=torch.int64)
        caches: list[tuple[Tensor, Tensor]] = []
        for level, head in enumerate(model.code_heads):
            caches, state_BWD = self._decoder_step(x_BWD, caches, cross, memory.mask_B11M)
            log_prob_BWK = F.log_softmax(head(state_BWD).float(), -1)
            child_BWK = self.child_MK[node_BW][:, :, : log_prob_BWK.shape[-1]]
            legal = node_mask_BV.gather(1, child_BWK.flatten(1).long()).reshape(child_BWK.shape) > 0
            legal = legal & (child_BWK > 0)
            total_BWK = torch.where(legal, score_BW.unsqueeze(-1) + log_prob_BWK, ILLEGAL)
            score_BW, beam_BW, code_BW = self._best(total_BWK)
            node_BW = child_BWK.flatten(1).gather(1, beam_BW * child_BWK.shape[-1] + code_BW).long()
            node_BW = torch.where(score_BW > ILLEGAL / 2, node_BW, 0)
            if level + 1 < len(model.code_heads):
                caches = [(_take(keys, beam_BW), _take(values, beam_BW)) for keys, values in caches]
                x_BWD = model.code_embeddings[level](code_BW + 1) + model.level_embedding.weight[level + 1]
        item_BW = torch.where(node_BW > 0, node_BW - self.first_leaf, NO_ITEM)
        return item_BW.int(), score_BW

    def _decoder_step(
        self,
        x_BWD: Tensor,
        caches: list[tuple[Tensor, Tensor]],
        cross: list[tuple[Tensor, Tensor]],
        mask_B11M: Tensor,
    ) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
        """One level, every beam. A cache holds keys and values of the codes so far, [B, heads, W, level, D / heads]."""
        grown = []
        for number, block in enumerate(self.model.decoder):
            y_BWD = block.norm1(x_BWD)
            keys, values = (part.unsqueeze(3) for part in block.own.keys_values(y_BWD))
            if caches:
                keys = torch.cat([caches[number][0], keys], dim=3)
                values = torch.cat([caches[number][1], values], dim=3)
            grown.append((keys, values))
            x_BWD = x_BWD + _attend_own_codes(block.own, y_BWD, keys, values)
            x_BWD = block.attend_history(x_BWD, cross[number], mask_B11M)
        return grown, self.model.decoder_norm(x_BWD)

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


def _attend_own_codes(attention: Attention, x_BWD: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Each beam attends to its own codes only: at most L of them, so products and sums beat batched matmuls."""
    query = attention.heads(attention.query(x_BWD)).unsqueeze(3)
    weight = ((query * keys).sum(-1) * query.shape[-1] ** -0.5).softmax(-1)
    attended = (weight.unsqueeze(-1) * values).sum(3)
    output: Tensor = attention.out(attended.transpose(1, 2).flatten(2))
    return output


def _take(cache: Tensor, beam_BW: Tensor) -> Tensor:
    index = beam_BW[:, None, :, None, None].expand(-1, cache.shape[1], -1, cache.shape[3], cache.shape[4])
    return cache.gather(2, index)
