"""Triton's configuration of each model, rendered from `baguni.domain.signature`: how it is run, and what requests it takes."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from typing import Literal

from baguni.domain.signature import ModelSpec, TensorSpec, triton_model_name

Target = Literal["python", "onnxruntime", "tensorrt", "torch"]


def render_config(spec: ModelSpec, release_id: str, max_batch_size: int, target: Target = "python") -> str:
    """The model's config.pbtxt.

    Queues are bounded and reject what comes too late: Triton's defaults are unlimited, and a request that nobody waits
    for any more only delays the next one. Every shape that requests can have is run, alone and in a batch, before the model
    is ready.
    """
    batch_sizes = [size for size in spec.preferred_batch_sizes if size <= max_batch_size]
    return f"""# Rendered by trainer/triton_config.py from baguni/domain/signature.py: edit these, then `baguni export`.
name: "{triton_model_name(spec.name, release_id)}"
backend: "{"python" if target == "torch" else target}"
max_batch_size: {max_batch_size}
{_tensors("input", spec.inputs)}
{_tensors("output", spec.outputs)}
dynamic_batching {{
  preferred_batch_size: [ {", ".join(map(str, batch_sizes))} ]
  max_queue_delay_microseconds: {spec.max_queue_delay_us}
  default_queue_policy {{
    timeout_action: REJECT
    default_timeout_microseconds: {spec.queue_timeout_us}
    allow_timeout_override: true
    max_queue_size: {spec.max_queue_size}
  }}
}}
{_instances(spec, target)}
{_warm_up(spec, [1, batch_sizes[0]])}parameters {{ key: "release_id" value {{ string_value: "{release_id}" }} }}
parameters {{ key: "limits" value {{ string_value: "{_quoted(_limits(spec))}" }} }}
{_captured(spec, max_batch_size) if target == "torch" else ""}"""


def _tensors(kind: str, specs: tuple[TensorSpec, ...]) -> str:
    rows = []
    for spec in specs:
        dims = ", ".join("-1" if isinstance(size, str) else str(size) for size in spec.shape)
        rows.append(f'  {{ name: "{spec.name}" data_type: TYPE_{spec.dtype} dims: [ {dims} ] }}')
    return f"{kind} [\n" + ",\n".join(rows) + "\n]"


def _instances(spec: ModelSpec, target: Target) -> str:
    """One instance; on a GPU with a profile for each choice of shapes, so that none pays for a longer one."""
    if target != "tensorrt":
        return f"instance_group [ {{ count: 1 kind: {'KIND_GPU' if target == 'torch' else 'KIND_CPU'} }} ]"
    profiles = ", ".join(f'"{number}"' for number in range(len(spec.shapes())))
    return f"instance_group [ {{ count: 1 kind: KIND_GPU profile: [ {profiles} ] }} ]"


def _warm_up(spec: ModelSpec, batch_sizes: list[int]) -> str:
    """Requests of zeros, one for each choice of shapes and batch size."""
    samples = []
    for shapes, batch_size in itertools.product(spec.shapes(), batch_sizes):
        inputs = "".join(
            f'  inputs {{ key: "{tensor.name}" value {{ data_type: TYPE_{tensor.dtype} '
            f"dims: [ {', '.join(map(str, shapes[tensor.name]))} ] zero_data: true }} }}\n"
            for tensor in spec.inputs
        )
        name = ", ".join(f"{axis} {size}" for axis, size in _sizes(spec, shapes).items())
        samples.append(
            f'model_warmup {{\n  name: "{", ".join(filter(None, [name, f"batch {batch_size}"]))}"\n'
            f"  batch_size: {batch_size}\n{inputs}}}\n"
        )
    return "".join(samples)


def _sizes(spec: ModelSpec, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    pairs = ((axis, shapes[t.name][place]) for t in spec.inputs for place, axis in enumerate(t.shape))
    return {axis: size for axis, size in pairs if isinstance(axis, str)}


def _limits(spec: ModelSpec) -> dict[str, object]:
    """What requests must keep to: a server that is given anything else says so."""
    return {
        tensor.name: {
            "shape": [list(spec.axes[axis]) if isinstance(axis, str) else axis for axis in tensor.shape],
            "low": tensor.low,
            "high": tensor.high,
        }
        for tensor in spec.inputs
    }


def _captured(spec: ModelSpec, max_batch_size: int) -> str:
    """The shapes and batch sizes that are captured as CUDA graphs: every power of two, and the largest."""
    batch_sizes = sorted({*(2**power for power in range(max_batch_size.bit_length())), max_batch_size})
    captured = _quoted({"batch_sizes": batch_sizes, "shapes": spec.shapes()})
    return f'parameters {{ key: "captured" value {{ string_value: "{captured}" }} }}\n'


def _quoted(value: object) -> str:
    """As JSON that stands in a quoted string."""
    return json.dumps(value).replace('"', '\\"')
