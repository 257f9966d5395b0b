"""The tensors between the processes and the models: the one place where their names, types and shapes are written down.

Everything else is rendered or checked from here: each model's `config.pbtxt`, the ONNX input names, the gateway's
requests. It knows no weights and no server.
"""

# N = items, S = tokens of a history, L = code levels, D = model width, W = beams, V = trie nodes

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from baguni.sequences import NUM_CONTEXT, NUM_FEATURES

NUM_QUERIES = 2  # user embeddings: 0 = the next order, 1 = items never bought before
EVERYTHING, NOVEL = 0, 1


@dataclass(frozen=True)
class ModelSignature:
    """The sizes that fix every tensor of a release."""

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
    """One input or output; `shape` is without the batch dimension. `dtype` is Triton's name without the TYPE_."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ModelSpec:
    """One Triton model. `preferred_batch_sizes` are the optima of its engine's profile."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    preferred_batch_sizes: tuple[int, ...]
    max_queue_delay_us: int
    queue_timeout_us: int
    max_queue_size: int


def model_specs(signature: ModelSignature) -> dict[str, ModelSpec]:
    """The four models of a release, by name."""
    tokens, levels = signature.max_tokens, signature.num_levels
    history = (
        TensorSpec("item_index", "INT32", (tokens,)),
        TensorSpec("codes", "INT32", (tokens, levels)),
        TensorSpec("position", "INT32", (tokens,)),
        TensorSpec("actions", "INT32", (tokens,)),
        TensorSpec("features", "FP32", (tokens, NUM_FEATURES)),
        TensorSpec("context", "FP32", (NUM_CONTEXT,)),
    )
    text_embedding = TensorSpec("text_embedding", "FP32", (signature.text_dim,))
    specs = [
        ModelSpec(
            "user_encoder",
            history,
            (
                TensorSpec("user_embedding", "FP32", (NUM_QUERIES, signature.vector_dim)),
                TensorSpec("repeat_score", "FP32", (tokens,)),
            ),
            (8, 32),
            500,
            100_000,
            512,
        ),
        ModelSpec(
            "generator",
            (*history, TensorSpec("node_mask", "UINT8", (signature.num_nodes,))),
            (
                TensorSpec("generated_item", "INT32", (signature.num_beams,)),
                TensorSpec("log_likelihood", "FP32", (signature.num_beams,)),
            ),
            (8, 32),
            5_000,
            5_000_000,
            256,
        ),
        ModelSpec(
            "item_encoder",
            (text_embedding,),
            (
                TensorSpec("codes", "INT32", (levels - 1,)),
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


def render_config(spec: ModelSpec, release_id: str, max_batch_size: int, backend: str = "python") -> str:
    """The model's config.pbtxt.

    Queues are bounded and reject what comes too late: Triton's defaults are unlimited, and a request that nobody waits
    for any more only delays the next one.
    """
    batch_sizes = ", ".join(str(size) for size in spec.preferred_batch_sizes if size <= max_batch_size)
    return f"""# Rendered from baguni/signature.py: edit that, then `baguni export`.
name: "{triton_model_name(spec.name, release_id)}"
backend: "{backend}"
max_batch_size: {max_batch_size}
{_tensors("input", spec.inputs)}
{_tensors("output", spec.outputs)}
dynamic_batching {{
  preferred_batch_size: [ {batch_sizes} ]
  max_queue_delay_microseconds: {spec.max_queue_delay_us}
  default_queue_policy {{
    timeout_action: REJECT
    default_timeout_microseconds: {spec.queue_timeout_us}
    allow_timeout_override: true
    max_queue_size: {spec.max_queue_size}
  }}
}}
instance_group [ {{ count: 1 kind: KIND_CPU }} ]
parameters {{ key: "release_id" value {{ string_value: "{release_id}" }} }}
"""


def _tensors(kind: str, specs: tuple[TensorSpec, ...]) -> str:
    rows = [
        f'  {{ name: "{spec.name}" data_type: TYPE_{spec.dtype} dims: [ {", ".join(map(str, spec.shape))} ] }}'
        for spec in specs
    ]
    return f"{kind} [\n" + ",\n".join(rows) + "\n]"
