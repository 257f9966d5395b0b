"""The tensors between the processes and the models: the one place where their names, types and shapes are written down.

Everything else is rendered or checked from here: each model's `config.pbtxt`, the ONNX input names, the gateway's
requests. It knows no weights and no server.
"""

# N = items, S = tokens of a history, L = code levels, D = model width, W = beams, V = trie nodes

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baguni.domain.errors import InvalidInputError
from baguni.domain.sequences import NUM_ACTIONS, NUM_CONTEXT, NUM_POSITIONS

NUM_QUERIES = 2  # user embeddings: 0 = the next order, 1 = items never bought before
EVERYTHING, NOVEL = 0, 1
# Histories are padded to the next of these lengths: a short one does not pay for long ones.
BUCKETS = (16, 32, 64, 128, 256)
NUM_CANDIDATES = 200  # items that the scorer takes at once
TOKENS, NODES, CANDIDATES = "tokens", "nodes", "candidates"  # the axes whose size a request chooses
GOLDEN_OUTPUTS = {
    "user_encoder": "user_embedding",
    "generator": "log_likelihood",
    "scorer": "candidate_log_likelihood",
}
"""What a release's known users are asked of each model before it is served."""


@dataclass(frozen=True)
class ModelSignature:
    """The sizes that fix every tensor of a release, and how its heads are mixed: `rescored_share` is what the generative
    head's log-likelihood counts in the order of the first NUM_CANDIDATES items, the retrieval head's score the rest.
    `num_features`: of a token, the first of `baguni.domain.sequences.token_features`; releases without the field have 16."""

    num_items: int
    max_tokens: int
    codebook_sizes: tuple[int, ...]
    vector_dim: int
    content_dim: int
    text_dim: int
    num_nodes: int
    num_beams: int
    store_timezone: str = "UTC"
    max_batch_size: int = 32
    rescored_share: float = 0.0
    num_features: int = 16

    @property
    def buckets(self) -> tuple[int, ...]:
        """The lengths to which histories are padded, ascending; the last is `max_tokens`."""
        return (*(size for size in BUCKETS if size < self.max_tokens), self.max_tokens)

    @property
    def num_levels(self) -> int:
        """Codes per Semantic ID, the suffix included."""
        return len(self.codebook_sizes)

    def save(self, path: Path) -> None:
        """Write JSON."""
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> ModelSignature:
        """Read what `save` wrote."""
        fields = json.loads(path.read_text())
        return cls(**{**fields, "codebook_sizes": tuple(fields["codebook_sizes"])})


@dataclass(frozen=True)
class TensorSpec:
    """One input or output; `shape` is without the batch dimension, an axis with a name has one of several sizes. `dtype` is
    Triton's name without the TYPE_. Values lie between `low` and `high`, both included; `high` may be one per last axis."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    low: int | None = None
    high: int | tuple[int, ...] | None = None


@dataclass(frozen=True)
class ModelSpec:
    """One Triton model. `axes`: the sizes that each named axis may have, ascending. `preferred_batch_sizes` are the optima
    of its engine's profiles."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    preferred_batch_sizes: tuple[int, ...]
    max_queue_delay_us: int
    queue_timeout_us: int
    max_queue_size: int
    axes: Mapping[str, tuple[int, ...]] = field(default_factory=lambda: MappingProxyType({}))

    def shapes(self) -> list[dict[str, tuple[int, ...]]]:
        """The shape of every input, for each choice of the named axes' sizes."""
        names = list(self.axes)
        choices = (dict(zip(names, sizes, strict=True)) for sizes in itertools.product(*self.axes.values()))
        return [
            {t.name: tuple(s if isinstance(s, int) else sizes[s] for s in t.shape) for t in self.inputs}
            for sizes in choices
        ]

    def check(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Raise InvalidInputError, naming the tensor, unless these are inputs of the model: batch dimension first."""
        sizes: dict[str, int] = {}
        for tensor in self.inputs:
            if tensor.name not in arrays:
                raise InvalidInputError(f"{self.name} has no {tensor.name}", tensor.name)
            self._check_shape(tensor, arrays[tensor.name].shape[1:], sizes)
            problem = problem_with(tensor, arrays[tensor.name])
            if problem:
                raise InvalidInputError(f"{self.name}: {tensor.name} {problem}", tensor.name)

    def check_outputs(self, inputs: Mapping[str, NDArray[Any]], outputs: Mapping[str, NDArray[Any] | None]) -> None:
        """Raise ValueError unless these are outputs of the model for these inputs: all are there, each has a row for each row
        of the inputs, and the sizes of the named axes are theirs. Raise InvalidInputError for values that no model may give."""
        sizes = {
            axis: size
            for tensor in self.inputs
            for axis, size in zip(tensor.shape, inputs[tensor.name].shape[1:], strict=True)
            if isinstance(axis, str)
        }
        rows = len(inputs[self.inputs[0].name])
        for tensor in self.outputs:
            array, expected = outputs[tensor.name], (rows, *(sizes.get(str(axis), axis) for axis in tensor.shape))
            if array is None or array.shape != expected:
                got = "nothing" if array is None else f"the shape {array.shape}"
                raise ValueError(f"{self.name} gave {got} as {tensor.name}, expected {expected}")
            if problem := problem_with(tensor, array):
                raise InvalidInputError(f"{self.name} gave a {tensor.name} that {problem}", tensor.name)

    def _check_shape(self, tensor: TensorSpec, shape: tuple[int, ...], sizes: dict[str, int]) -> None:
        wanted = [sizes.get(axis, self.axes[axis]) if isinstance(axis, str) else axis for axis in tensor.shape]
        fits = len(shape) == len(wanted) and all(
            size in want if isinstance(want, tuple) else size == want for size, want in zip(shape, wanted, strict=True)
        )
        if not fits:
            text = " × ".join("|".join(map(str, w)) if isinstance(w, tuple) else str(w) for w in wanted)
            raise InvalidInputError(f"{self.name}: {tensor.name} is {shape} a row, expected {text}", tensor.name)
        sizes.update((axis, size) for axis, size in zip(tensor.shape, shape, strict=True) if isinstance(axis, str))


def problem_with(tensor: TensorSpec, array: NDArray[Any]) -> str:
    """Return the problem of an array's values, "" without one."""
    kind = {"INT32": np.int32, "FP32": np.float32, "BOOL": np.bool_, "STRING": np.object_}[tensor.dtype]
    if array.dtype != kind:
        return f"is {array.dtype}, expected {np.dtype(kind)}"
    if tensor.dtype == "FP32" and not np.isfinite(array).all():
        return "has a value that is not finite"
    if tensor.low is not None and array.size and array.min() < tensor.low:
        return f"has {array.min()}, expected at least {tensor.low}"
    if tensor.high is not None and array.size and (array > np.asarray(tensor.high)).any():
        worst = array[array > np.broadcast_to(np.asarray(tensor.high), array.shape)].max()
        return f"has {worst}, expected at most {tensor.high}"
    return ""


def model_specs(signature: ModelSignature) -> dict[str, ModelSpec]:
    """The five models of a release, by name."""
    levels, last_code = signature.num_levels, tuple(size - 1 for size in signature.codebook_sizes)
    history = (
        TensorSpec("item_index", "INT32", (TOKENS,), 0, signature.num_items),
        TensorSpec("codes", "INT32", (TOKENS, levels), -1, last_code),
        TensorSpec("position", "INT32", (TOKENS,), 0, NUM_POSITIONS - 1),
        TensorSpec("actions", "INT32", (TOKENS,), 0, NUM_ACTIONS - 1),
        TensorSpec("features", "FP32", (TOKENS, signature.num_features)),
        TensorSpec("context", "FP32", (NUM_CONTEXT,)),
    )
    text_embedding = TensorSpec("text_embedding", "FP32", (signature.text_dim,))
    tokens = {TOKENS: signature.buckets}
    specs = [
        ModelSpec(
            "user_encoder",
            history,
            (
                TensorSpec("user_embedding", "FP32", (NUM_QUERIES, signature.vector_dim)),
                TensorSpec("repeat_score", "FP32", (TOKENS,)),
            ),
            (8, 32),
            100,
            100_000,
            512,
            tokens,
        ),
        ModelSpec(
            "generator",
            (*history, TensorSpec("node_mask", "BOOL", (NODES,))),
            (
                TensorSpec("generated_item", "INT32", (signature.num_beams,), -1, signature.num_items - 1),
                TensorSpec("log_likelihood", "FP32", (signature.num_beams,)),
            ),
            (8, 32),
            5_000,
            5_000_000,
            256,
            {**tokens, NODES: (1, signature.num_nodes)},
        ),
        ModelSpec(
            "scorer",
            (*history, TensorSpec("candidate_codes", "INT32", (CANDIDATES, levels), -1, last_code)),
            (TensorSpec("candidate_log_likelihood", "FP32", (CANDIDATES,)),),
            (8, 32),
            500,
            100_000,
            256,
            {**tokens, CANDIDATES: (NUM_CANDIDATES,)},
        ),
        ModelSpec(
            "item_encoder",
            (text_embedding,),
            (
                TensorSpec("codes", "INT32", (levels - 1,), 0, last_code[:-1]),
                TensorSpec("content_vector", "FP32", (signature.content_dim,)),
                TensorSpec("item_vector", "FP32", (signature.vector_dim,)),
            ),
            (32,),
            1_000,
            1_000_000,
            1024,
        ),
        ModelSpec(
            "text_encoder",
            (TensorSpec("text", "STRING", (1,)),),
            (text_embedding,),
            (32,),
            1_000,
            5_000_000,
            1024,
        ),
    ]
    return {spec.name: spec for spec in specs}


def triton_model_name(model: str, release_id: str) -> str:
    """Triton cannot load a version by its API, and reloads race: one model name per release."""
    return f"{model}_{release_id}"
