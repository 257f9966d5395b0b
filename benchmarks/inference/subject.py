"""What is measured: a model with random weights over a catalogue with random Semantic IDs, of any size. How long an answer
takes depends on shapes, not on what was learned.
"""

# N = items, B = batch, S = tokens, L = code levels

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import nn

from baguni.domain.semantic_ids import SemanticIdTable, unique_suffixes
from baguni.domain.signature import NUM_CANDIDATES, ModelSignature, ModelSpec, model_specs
from trainer.decoding import BeamSearch
from trainer.graphs import FrozenItems, GeneratorGraph, ScorerGraph, UserEncoderGraph, export_onnx
from trainer.model import DualHeadModel, ModelConfig

Arrays = dict[str, NDArray[np.generic]]
CODEBOOK, SUFFIXES = 256, 32
NUM_STATISTICS, TEXT_DIM = 6, 384


@dataclass(frozen=True)
class Subject:
    """A model of one size."""

    num_items: int = 10_000
    num_beams: int = 32
    max_tokens: int = 64
    width: int = 256
    encoder_layers: int = 4
    decoder_layers: int = 2
    seed: int = 0

    @cached_property
    def table(self) -> SemanticIdTable:
        """Random codes, three levels of 256, and the suffixes that make them unique."""
        codes_NL = np.random.default_rng(self.seed).integers(0, CODEBOOK, (self.num_items, 3)).astype(np.int32)
        suffix_N = unique_suffixes(codes_NL)
        return SemanticIdTable(np.c_[codes_NL, suffix_N], (CODEBOOK, CODEBOOK, CODEBOOK, SUFFIXES))

    @cached_property
    def model(self) -> DualHeadModel:
        """Random weights."""
        torch.manual_seed(self.seed)
        config = ModelConfig(
            num_items=self.num_items,
            codebook_sizes=self.table.codebook_sizes,
            text_dim=TEXT_DIM,
            num_statistics=NUM_STATISTICS,
            width=self.width,
            num_heads=4,
            encoder_layers=self.encoder_layers,
            decoder_layers=self.decoder_layers,
            feedforward=2 * self.width,
        )
        return DualHeadModel(config).eval()

    @cached_property
    def items(self) -> FrozenItems:
        """Random item vectors and statistics."""
        generator = torch.Generator().manual_seed(self.seed)
        vectors_NX = torch.randn(self.num_items, self.model.config.vector_dim + 1, generator=generator)
        return FrozenItems(vectors_NX, torch.rand(self.num_items, NUM_STATISTICS, generator=generator))

    @cached_property
    def signature(self) -> ModelSignature:
        """Its tensors."""
        return ModelSignature(
            num_items=self.num_items,
            max_tokens=self.max_tokens,
            codebook_sizes=self.table.codebook_sizes,
            vector_dim=self.model.config.served_dim,
            content_dim=64,
            text_dim=TEXT_DIM,
            num_nodes=self.table.trie.num_nodes,
            num_beams=self.num_beams,
        )

    @property
    def specs(self) -> dict[str, ModelSpec]:
        """Its Triton models."""
        return model_specs(self.signature)

    def graph(self, name: str) -> nn.Module:
        """One of its graphs in torch, as it is exported."""
        if name == "generator":
            return GeneratorGraph(BeamSearch(self.model, self.table.trie, self.num_beams), self.items).eval()
        return {"user_encoder": UserEncoderGraph, "scorer": ScorerGraph}[name](self.model, self.items).eval()

    def export(self, name: str, folder: Path) -> Path:
        """One of its graphs as ONNX, in the folder."""
        path = folder / f"{name}-{self.num_items}-{self.num_beams}-{self.max_tokens}-{self.width}.onnx"
        if not path.is_file():
            export_onnx(self.graph(name), self.specs[name], path)
        return path

    def inputs(self, name: str, batch: int, tokens: int, rng: np.random.Generator, full: bool = True) -> Arrays:
        """Random inputs of one of its graphs, without a filter."""
        arrays = random_histories(self.signature, self.table.codes_NL, batch, tokens, rng, full)
        if name == "generator":
            arrays["node_mask"] = np.ones((batch, 1), bool)
        if name == "scorer":
            arrays["candidate_codes"] = self.table.codes_NL[rng.integers(0, self.num_items, (batch, NUM_CANDIDATES))]
        return arrays


def random_histories(
    signature: ModelSignature,
    codes_NL: NDArray[np.int32],
    batch: int,
    tokens: int,
    rng: np.random.Generator,
    full: bool = False,
) -> Arrays:
    """Histories of random items and features: all of `tokens`, or of random lengths up to it, the first one empty."""
    lengths = np.full(batch, tokens) if full else rng.integers(0, tokens + 1, batch)
    if not full:
        lengths[0] = 0
    there = np.arange(tokens) < lengths[:, None]
    item = rng.integers(0, signature.num_items, (batch, tokens))
    spec = {tensor.name: tensor for tensor in model_specs(signature)["user_encoder"].inputs}
    features, context = (spec[name].shape[-1] for name in ("features", "context"))
    assert isinstance(features, int)
    assert isinstance(context, int)
    drawn = {name: rng.integers(0, _most(spec[name].high) + 1, (batch, tokens)) for name in ("position", "actions")}
    return {
        "item_index": np.where(there, item + 1, 0).astype(np.int32),
        "codes": np.where(there[:, :, None], codes_NL[item], -1).astype(np.int32),
        **{name: np.where(there, values, 0).astype(np.int32) for name, values in drawn.items()},
        "features": (rng.random((batch, tokens, features)) * there[:, :, None]).astype(np.float32),
        "context": rng.random((batch, context)).astype(np.float32),
    }


def session(path: Path, threads: int = 1) -> ort.InferenceSession:
    """The bare ONNX Runtime session of a graph, on so many threads."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _most(high: int | tuple[int, ...] | None) -> int:
    assert isinstance(high, int)
    return high
