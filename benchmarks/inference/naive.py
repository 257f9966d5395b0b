"""The naive way to generate, as the peer: a Python loop over codes on the same model in torch. The context is copied for every
beam, its keys and values are computed again at every step, and which codes are legal is looked up in Python.
"""

# W = beams, M = context, K = codebook size

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from baguni.domain.semantic_ids import SemanticIdTable
from trainer.model import DualHeadModel, Memory

Prefix = tuple[int, ...]


class NaiveSearch:
    """Beam search, one user at a time."""

    def __init__(self, model: DualHeadModel, table: SemanticIdTable, num_beams: int) -> None:
        self.model, self.num_beams = model, num_beams
        self.next_codes: dict[Prefix, list[int]] = {}
        self.item: dict[Prefix, int] = {}
        for item, codes in enumerate(map(tuple, table.codes_NL.tolist())):
            self.item[codes] = item
            for length in range(len(codes)):
                self.next_codes.setdefault(codes[:length], []).append(codes[length])
        self.next_codes = {prefix: sorted(set(codes)) for prefix, codes in self.next_codes.items()}

    @torch.no_grad()
    def __call__(self, memory: Memory) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Items and log-likelihoods, [B, W], best first."""
        found = [
            self._search(Memory(*(part[row : row + 1] for part in memory))) for row in range(len(memory.codes_BSL))
        ]
        items, scores = zip(*found, strict=True)
        return np.asarray(items), np.asarray(scores, np.float32)

    def _search(self, memory: Memory) -> tuple[list[int], list[float]]:
        beams: list[tuple[Prefix, float]] = [((), 0.0)]
        for level in range(len(self.model.code_heads)):
            log_prob_WK = self._step(memory, [prefix for prefix, _ in beams], level)
            candidates = [
                ((*prefix, code), score + float(log_prob_WK[row, code]))
                for row, (prefix, score) in enumerate(beams)
                for code in self.next_codes[prefix]
            ]
            beams = sorted(candidates, key=lambda beam: -beam[1])[: self.num_beams]
        return [self.item[prefix] for prefix, _ in beams], [score for _, score in beams]

    def _step(self, memory: Memory, prefixes: list[Prefix], level: int) -> NDArray[np.float32]:
        """[W, K] log-likelihoods of every next code, each beam with a copy of the context."""
        model, width = self.model, len(prefixes)
        copied = Memory(*(part.repeat(width, *[1] * (part.ndim - 1)) for part in memory))
        prefix_W1tD = model.first_prefix(copied)
        match_W1S = torch.ones_like(copied.codes_BSL[:, None, :, 0], dtype=torch.bool)
        for depth in range(level):
            code_W = torch.tensor([prefix[depth] for prefix in prefixes])
            prefix_W1tD = model.extended(prefix_W1tD, depth, code_W[:, None])
            match_W1S = match_W1S & (code_W[:, None, None] == copied.codes_BSL[:, None, :, depth])
        keys_values = model.cross_keys_values(copied)
        log_prob_W1K = model.next_code_log_prob(prefix_W1tD, level, keys_values, copied, match_W1S)
        return np.asarray(log_prob_W1K[:, 0].numpy())
