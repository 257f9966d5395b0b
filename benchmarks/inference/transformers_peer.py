"""What most generative recommenders do: Hugging Face `generate` on a T5 of the same size, beams kept legal by a trie behind
`prefix_allowed_tokens_fn`.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import T5Config, T5ForConditionalGeneration

from benchmarks.inference.subject import CODEBOOK, Subject

PAD, END, FIRST = 0, 1, 2  # ids of the two special tokens, and of the first code


class TransformersSearch:
    """`generate` of a T5 with random weights, on one token an item."""

    def __init__(self, subject: Subject) -> None:
        levels = subject.table.codes_NL.shape[1]
        config = T5Config(
            vocab_size=FIRST + CODEBOOK * levels,
            d_model=subject.width,
            d_kv=subject.width // 4,
            d_ff=2 * subject.width,
            num_heads=4,
            num_layers=subject.encoder_layers,
            num_decoder_layers=subject.decoder_layers,
            decoder_start_token_id=PAD,
            pad_token_id=PAD,
            eos_token_id=END,
        )
        torch.manual_seed(subject.seed)
        self.model = T5ForConditionalGeneration(config).eval()
        self.num_beams, self.levels = subject.num_beams, levels
        self.next_tokens: dict[tuple[int, ...], list[int]] = {}
        tokens_NL = subject.table.codes_NL + FIRST + CODEBOOK * np.arange(levels)
        for row in map(tuple, tokens_NL.tolist()):
            for length in range(levels):
                self.next_tokens.setdefault(row[:length], []).append(row[length])
        self.next_tokens = {prefix: sorted(set(tokens)) for prefix, tokens in self.next_tokens.items()}

    @torch.no_grad()
    def __call__(self, codes_BSL: NDArray[np.generic]) -> NDArray[np.int64]:
        """Generated codes, [B · W, L], for histories of as many tokens as items."""
        tokens_BS = torch.from_numpy(codes_BSL[:, :, 0].astype(np.int64)) + FIRST
        generated = self.model.generate(
            input_ids=tokens_BS,
            attention_mask=torch.ones_like(tokens_BS),
            num_beams=self.num_beams,
            num_return_sequences=self.num_beams,
            max_new_tokens=self.levels,
            min_new_tokens=self.levels,
            prefix_allowed_tokens_fn=self._allowed,
        )
        return np.asarray(generated[:, 1:].numpy())

    def _allowed(self, batch: int, tokens: torch.Tensor) -> list[int]:
        return self.next_tokens.get(tuple(tokens[1:].tolist()), [END])
