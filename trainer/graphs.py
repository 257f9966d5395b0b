"""The graphs of a release: thin modules that give the trained ones the tensors of `baguni.domain.signature`, and their export
to ONNX.
"""

# N = items, B = batch, L = code levels, T = text dim, P = item statistics

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn
from torch.export import Dim

from baguni.domain.signature import ModelSpec
from trainer.decoding import ILLEGAL, BeamSearch
from trainer.model import DualHeadModel, Sequences, with_statistics
from trainer.rqvae import RqVae
from trainer.statistics import TextRegression

OPSET = 20
MAX_BATCH = 1024


class FrozenItems(nn.Module):
    """What a release knows of its items, fixed: the rows that the encoder looks up for each token."""

    vectors_NX: Tensor
    statistics_NP: Tensor

    def __init__(self, vectors_NX: Tensor, statistics_NP: Tensor) -> None:
        super().__init__()
        self.register_buffer("vectors_NX", vectors_NX, persistent=False)
        self.register_buffer("statistics_NP", F.pad(statistics_NP, (0, 0, 1, 0)), persistent=False)

    def sequences(
        self, item_index: Tensor, codes: Tensor, position: Tensor, actions: Tensor, features: Tensor, context: Tensor
    ) -> Sequences:
        """The inputs of `baguni.domain.signature`, and each token's item statistics."""
        return Sequences(
            item_index, codes, position, actions, features, context, F.embedding(item_index, self.statistics_NP)
        )


class UserEncoderGraph(nn.Module):
    """Sequences → user embedding and repeat scores."""

    def __init__(self, model: DualHeadModel, items: FrozenItems) -> None:
        super().__init__()
        self.model, self.items = model, items

    def forward(
        self, item_index: Tensor, codes: Tensor, position: Tensor, actions: Tensor, features: Tensor, context: Tensor
    ) -> tuple[Tensor, Tensor]:
        sequences = self.items.sequences(item_index, codes, position, actions, features, context)
        memory = self.model.encode(sequences, self.items.vectors_NX)
        return self.model.user_embedding(memory), self.model.served_repeat_score(memory, sequences)


class GeneratorGraph(nn.Module):
    """Sequences and node mask → items and log-likelihoods: encoder, decoder and beam search in one graph."""

    def __init__(self, search: BeamSearch, items: FrozenItems) -> None:
        super().__init__()
        self.search, self.items = search, items

    def forward(
        self,
        item_index: Tensor,
        codes: Tensor,
        position: Tensor,
        actions: Tensor,
        features: Tensor,
        context: Tensor,
        node_mask: Tensor,
    ) -> tuple[Tensor, Tensor]:
        sequences = self.items.sequences(item_index, codes, position, actions, features, context)
        memory = self.search.model.encode(sequences, self.items.vectors_NX)
        result: tuple[Tensor, Tensor] = self.search(memory, node_mask)
        return result


class ScorerGraph(nn.Module):
    """Sequences and Semantic IDs → their log-likelihoods: the generative head's judgement of items that others found."""

    def __init__(self, model: DualHeadModel, items: FrozenItems) -> None:
        super().__init__()
        self.model, self.items = model, items

    def forward(
        self,
        item_index: Tensor,
        codes: Tensor,
        position: Tensor,
        actions: Tensor,
        features: Tensor,
        context: Tensor,
        candidate_codes: Tensor,
    ) -> Tensor:
        sequences = self.items.sequences(item_index, codes, position, actions, features, context)
        memory = self.model.encode(sequences, self.items.vectors_NX)
        scores_BC = self.model.log_likelihood(memory, candidate_codes)
        return torch.where(candidate_codes[:, :, 0] >= 0, scores_BC, ILLEGAL)


class ItemEncoderGraph(nn.Module):
    """Text embedding → codes, content vector, item vector: what a new item gets within seconds. `bias_offset` is added to
    its bias."""

    weight_TP: Tensor
    bias_P: Tensor
    offset_X: Tensor

    def __init__(
        self, rqvae: RqVae, model: DualHeadModel, statistics: TextRegression, bias_offset: float = 0.0
    ) -> None:
        super().__init__()
        self.rqvae, self.model = rqvae, model
        offset_X = torch.zeros(model.config.served_dim)
        offset_X[-1] = bias_offset
        self.register_buffer("offset_X", offset_X, persistent=False)
        self.register_buffer("weight_TP", torch.from_numpy(statistics.weight_XP), persistent=False)
        self.register_buffer("bias_P", torch.from_numpy(statistics.bias_P), persistent=False)

    def forward(self, text_embedding: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        codes_BL, content_BZ = self.rqvae(text_embedding)
        text_BT = self.rqvae.standardise(text_embedding)
        vector_BX = self.model.item_tower.from_text(text_BT)
        if self.model.config.num_statistics > 0:
            vector_BX = with_statistics(vector_BX, text_BT @ self.weight_TP + self.bias_P)
        return codes_BL.int(), content_BZ, vector_BX + self.offset_X


def export_onnx(module: nn.Module, spec: ModelSpec, path: Path) -> None:
    """Export with the tensor names of `spec`, a free batch dimension and free named axes, weights inside the file."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own deprecated calls
        torch.onnx.export(
            module,
            _example(spec),
            str(path),
            input_names=[tensor.name for tensor in spec.inputs],
            output_names=[tensor.name for tensor in spec.outputs],
            dynamic_shapes=_free_axes(spec),
            dynamo=True,
            opset_version=OPSET,
            external_data=False,
            verbose=False,
        )


def export_torch(module: nn.Module, spec: ModelSpec, path: Path) -> None:
    """The same as a program that torch loads without this code."""
    with torch.no_grad():
        program = torch.export.export(module, _example(spec), dynamic_shapes=_free_axes(spec))
    torch.export.save(program, path)


def _example(spec: ModelSpec) -> tuple[Tensor, ...]:
    """A batch of two of the largest inputs."""
    kinds = {"INT32": torch.int32, "FP32": torch.float32, "BOOL": torch.bool}
    shapes = spec.shapes()[-1]
    return tuple(torch.ones(2, *shapes[tensor.name], dtype=kinds[tensor.dtype]) for tensor in spec.inputs)


def _free_axes(spec: ModelSpec) -> tuple[dict[int, Dim], ...]:
    """Of each input: the batch, and the named axes that have several sizes."""
    batch = Dim("batch", min=1, max=MAX_BATCH)
    axes = {name: Dim(name, min=1, max=max(sizes)) for name, sizes in spec.axes.items() if len(sizes) > 1}
    return tuple(
        {0: batch} | {1 + place: axes[axis] for place, axis in enumerate(tensor.shape) if axis in axes}
        for tensor in spec.inputs
    )
