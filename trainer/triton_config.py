"""Triton's configuration of each model, made from `baguni.domain.signature`: how the model is run, which requests it takes."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as triton

from baguni.domain.signature import ModelSpec, TensorSpec, triton_model_name

Target = Literal["python", "onnxruntime", "tensorrt", "torch"]
HEADER = "# Rendered by trainer/triton_config.py from baguni/domain/signature.py: edit these, then `baguni export`.\n"


def render_config(spec: ModelSpec, release_id: str, max_batch_size: int, target: Target = "python") -> str:
    """Return the model's config.pbtxt.

    Queues are bounded and reject late requests: Triton's defaults are unlimited, and a request that nobody waits for any more
    only delays the next one. Every shape that requests can have is run, alone and in a batch, before the model is ready.
    """
    batch_sizes = [size for size in spec.preferred_batch_sizes if size <= max_batch_size]
    parameters = {"release_id": release_id, "limits": json.dumps(_limits(spec))}
    if target == "torch":
        parameters["captured"] = json.dumps(_captured(spec, max_batch_size))
    config = triton.ModelConfig(
        name=triton_model_name(spec.name, release_id),
        backend="python" if target == "torch" else target,
        max_batch_size=max_batch_size,
        input=[triton.ModelInput(name=each.name, data_type=_type(each), dims=_dims(each)) for each in spec.inputs],
        output=[triton.ModelOutput(name=each.name, data_type=_type(each), dims=_dims(each)) for each in spec.outputs],
        dynamic_batching=triton.ModelDynamicBatching(
            preferred_batch_size=batch_sizes,
            max_queue_delay_microseconds=spec.max_queue_delay_us,
            default_queue_policy=triton.ModelQueuePolicy(
                timeout_action=triton.ModelQueuePolicy.REJECT,
                default_timeout_microseconds=spec.queue_timeout_us,
                allow_timeout_override=True,
                max_queue_size=spec.max_queue_size,
            ),
        ),
        instance_group=[_instances(spec, target)],
        model_warmup=_warm_up(spec, [1, batch_sizes[0]]),
        parameters={name: triton.ModelParameter(string_value=value) for name, value in parameters.items()},
    )
    return HEADER + text_format.MessageToString(config)


def _type(tensor: TensorSpec) -> Any:
    return triton.DataType.Value(f"TYPE_{tensor.dtype}")


def _dims(tensor: TensorSpec) -> list[int]:
    """Return the sizes, -1 for an axis that has several."""
    return [-1 if isinstance(size, str) else size for size in tensor.shape]


def _instances(spec: ModelSpec, target: Target) -> triton.ModelInstanceGroup:
    """Return one instance; an engine has a profile for each choice of shapes, so that no request pays for a longer one."""
    is_on_gpu = target in ("tensorrt", "torch")
    kind = triton.ModelInstanceGroup.KIND_GPU if is_on_gpu else triton.ModelInstanceGroup.KIND_CPU
    profiles = map(str, range(len(spec.shapes()))) if target == "tensorrt" else ()
    return triton.ModelInstanceGroup(count=1, kind=kind, profile=profiles)


def _warm_up(spec: ModelSpec, batch_sizes: Sequence[int]) -> Iterator[triton.ModelWarmup]:
    """Yield a request of zeros for each choice of shapes and batch size."""
    for shapes, batch_size in itertools.product(spec.shapes(), batch_sizes):
        sizes = [f"{axis} {size}" for axis, size in _sizes(spec, shapes).items()]
        inputs = {
            each.name: triton.ModelWarmup.Input(data_type=_type(each), dims=shapes[each.name], zero_data=True)
            for each in spec.inputs
        }
        name = ", ".join([*sizes, f"batch {batch_size}"])
        yield triton.ModelWarmup(name=name, batch_size=batch_size, inputs=inputs)


def _sizes(spec: ModelSpec, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    pairs = ((axis, shapes[t.name][place]) for t in spec.inputs for place, axis in enumerate(t.shape))
    return {axis: size for axis, size in pairs if isinstance(axis, str)}


def _limits(spec: ModelSpec) -> dict[str, object]:
    """Return the limits of each input; a server rejects a request that exceeds them."""
    return {
        tensor.name: {
            "shape": [list(spec.axes[axis]) if isinstance(axis, str) else axis for axis in tensor.shape],
            "low": tensor.low,
            "high": tensor.high,
        }
        for tensor in spec.inputs
    }


def _captured(spec: ModelSpec, max_batch_size: int) -> dict[str, object]:
    """Return the shapes and batch sizes that are captured as CUDA graphs: every power of two, and the largest."""
    batch_sizes = sorted({*(2**power for power in range(max_batch_size.bit_length())), max_batch_size})
    return {"batch_sizes": batch_sizes, "shapes": spec.shapes()}
