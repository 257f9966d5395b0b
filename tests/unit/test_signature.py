"""The rendered Triton configuration, whole: a change of it is a change of the contract with every running server."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from baguni.clients.inference import triton_inputs
from baguni.domain.errors import InvalidInputError
from baguni.domain.sequences import NUM_CONTEXT, NUM_FEATURES, ModelInputs
from baguni.domain.signature import ModelSignature, ModelSpec, TensorSpec, model_specs
from trainer.triton_config import Target, render_config

SIGNATURE = ModelSignature(
    num_items=100,
    max_tokens=4,
    codebook_sizes=(8, 8, 4),
    vector_dim=9,
    content_dim=8,
    text_dim=16,
    num_nodes=150,
    num_beams=16,
    num_features=NUM_FEATURES,
)
ITEM_ENCODER = r"""# Rendered by trainer/triton_config.py from baguni/domain/signature.py: edit these, then `baguni export`.
name: "item_encoder_r1"
max_batch_size: 32
input {
  name: "text_embedding"
  data_type: TYPE_FP32
  dims: 16
}
output {
  name: "codes"
  data_type: TYPE_INT32
  dims: 2
}
output {
  name: "content_vector"
  data_type: TYPE_FP32
  dims: 8
}
output {
  name: "item_vector"
  data_type: TYPE_FP32
  dims: 9
}
instance_group {
  count: 1
  kind: KIND_CPU
}
dynamic_batching {
  preferred_batch_size: 32
  max_queue_delay_microseconds: 1000
  default_queue_policy {
    default_timeout_microseconds: 1000000
    allow_timeout_override: true
    max_queue_size: 1024
  }
}
parameters {
  key: "limits"
  value {
    string_value: "{\"text_embedding\": {\"shape\": [16], \"low\": null, \"high\": null}}"
  }
}
parameters {
  key: "release_id"
  value {
    string_value: "r1"
  }
}
model_warmup {
  name: "batch 1"
  batch_size: 1
  inputs {
    key: "text_embedding"
    value {
      data_type: TYPE_FP32
      dims: 16
      zero_data: true
    }
  }
}
model_warmup {
  name: "batch 32"
  batch_size: 32
  inputs {
    key: "text_embedding"
    value {
      data_type: TYPE_FP32
      dims: 16
      zero_data: true
    }
  }
}
backend: "python"
"""


def configured(name: str, target: Target = "python") -> model_config_pb2.ModelConfig:
    """Return the configuration of a model that reads up to 50 tokens, as Triton parses it."""
    spec = model_specs(replace(SIGNATURE, max_tokens=50))[name]
    return text_format.Parse(render_config(spec, "r1", 32, target), model_config_pb2.ModelConfig())


def test_the_item_encoders_configuration() -> None:
    assert render_config(model_specs(SIGNATURE)["item_encoder"], "r1", SIGNATURE.max_batch_size) == ITEM_ENCODER


def test_a_choice_of_lengths_is_a_free_axis_with_a_warm_up_for_each_length_and_batch() -> None:
    config = configured("user_encoder")
    assert {tensor.name: list(tensor.dims) for tensor in config.input}["codes"] == [-1, 3]
    assert [(each.name, each.batch_size, list(each.inputs["codes"].dims)) for each in config.model_warmup] == [
        (f"tokens {tokens}, batch {batch}", batch, [tokens, 3]) for tokens in (16, 32, 50) for batch in (1, 8)
    ]


def test_an_engine_has_a_profile_for_each_choice_of_shapes() -> None:
    config = configured("generator", "tensorrt")
    assert config.backend == "tensorrt"
    (group,) = config.instance_group
    assert group.kind == model_config_pb2.ModelInstanceGroup.KIND_GPU
    assert list(group.profile) == list("012345")


@pytest.fixture
def request_of_two() -> dict[str, np.ndarray]:
    """Two rows of the user encoder's inputs."""
    (shapes,) = model_specs(SIGNATURE)["user_encoder"].shapes()
    specs = {tensor.name: tensor for tensor in model_specs(SIGNATURE)["user_encoder"].inputs}
    kinds = {"INT32": np.int32, "FP32": np.float32}
    return {name: np.zeros((2, *shape), kinds[specs[name].dtype]) for name, shape in shapes.items()}


def encoder() -> ModelSpec:
    return model_specs(SIGNATURE)["user_encoder"]


def test_what_the_models_take_passes(request_of_two) -> None:
    encoder().check(request_of_two)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("codes", lambda x: x.astype(np.int64), "codes is int64, expected int32"),
        ("codes", lambda x: x + 8, r"codes has 8, expected at most \(7, 7, 3\)"),
        ("codes", lambda x: x + 4, r"codes has 4, expected at most \(7, 7, 3\)"),
        ("codes", lambda x: x - 2, "codes has -2, expected at least -1"),
        ("codes", lambda x: x[:, :, :2], r"codes is \(4, 2\) a row, expected 4 × 3"),
        ("item_index", lambda x: x[:, :3], r"item_index is \(3,\) a row, expected 4"),
        ("item_index", lambda x: np.tile(x, 3), r"item_index is \(12,\) a row, expected 4"),
        ("features", lambda x: x * np.nan, "features has a value that is not finite"),
        ("context", lambda x: None, "user_encoder has no context"),
    ],
)
def test_what_they_do_not_take_is_named(request_of_two, name, change, message) -> None:
    changed = change(request_of_two[name])
    arrays = {key: value for key, value in {**request_of_two, name: changed}.items() if value is not None}
    with pytest.raises(InvalidInputError, match=message) as error:
        encoder().check(arrays)
    assert error.value.field == name


def test_every_queue_is_bounded_and_rejects_what_is_late() -> None:
    for name, spec in model_specs(SIGNATURE).items():
        policy = configured(name).dynamic_batching.default_queue_policy
        assert policy.timeout_action == model_config_pb2.ModelQueuePolicy.REJECT
        assert (policy.allow_timeout_override, policy.default_timeout_microseconds) == (True, spec.queue_timeout_us)
        assert 0 < policy.max_queue_size == spec.max_queue_size < 10_000


def test_the_generator_reads_what_the_encoder_reads_and_a_mask() -> None:
    specs = model_specs(SIGNATURE)
    assert specs["generator"].inputs[:-1] == specs["user_encoder"].inputs
    assert specs["generator"].axes["nodes"] == (1, 150)


def test_a_signature_survives_its_file(tmp_path) -> None:
    SIGNATURE.save(tmp_path / "signature.json")
    assert ModelSignature.load(tmp_path / "signature.json") == SIGNATURE


def test_a_release_of_an_earlier_version_gets_the_features_that_it_knows(tmp_path) -> None:
    path = tmp_path / "signature.json"
    SIGNATURE.save(path)
    saved = json.loads(path.read_text())
    del saved["num_features"]
    path.write_text(json.dumps(saved))
    earlier = ModelSignature.load(path)
    item_BS = np.zeros((1, 4), np.int32)
    features_BSF = np.arange(4 * NUM_FEATURES, dtype=np.float32).reshape(1, 4, NUM_FEATURES)
    inputs = ModelInputs(item_BS, item_BS, item_BS, features_BSF, np.zeros((1, NUM_CONTEXT), np.float32))
    arrays = triton_inputs(inputs, np.zeros((1, 3), np.int32), earlier)
    np.testing.assert_array_equal(arrays["features"], features_BSF[:, :, :16])
    model_specs(earlier)["user_encoder"].check(arrays)


def test_padding_and_items_training_never_saw_reach_the_models_as_such() -> None:
    """Of three tokens one is known to training, one is new and known by its codes only, one is padding."""
    inputs = ModelInputs(
        item_BS=np.array([[1, 2, -1]], np.int32),
        position_BS=np.array([[1, 0, 0]], np.int32),
        actions_BS=np.array([[1, 2, 0]], np.int32),
        features_BSF=np.zeros((1, 3, NUM_FEATURES), np.float32),
        context_BC=np.zeros((1, NUM_CONTEXT), np.float32),
    )
    codes_NL = np.array([[0, 0, 0], [5, 6, 1], [7, 7, 2]], np.int32)
    arrays = triton_inputs(inputs, codes_NL, replace(SIGNATURE, num_items=2, max_tokens=3))
    assert arrays["item_index"].tolist() == [[2, 0, 0]]
    assert arrays["codes"].tolist() == [[[5, 6, 1], [7, 7, 2], [-1, -1, -1]]]


def sized(tensors: Sequence[TensorSpec], spec: ModelSpec, rows: int) -> dict[str, Any]:
    """Arrays of ones in the shapes of a call; a named axis has its first size."""
    kinds = {"FP32": np.float32, "INT32": np.int32, "BOOL": np.bool_, "STRING": np.object_}
    return {
        each.name: np.ones(
            (rows, *(s if isinstance(s, int) else spec.axes[s][0] for s in each.shape)), kinds[each.dtype]
        )
        for each in tensors
    }


@pytest.mark.parametrize("spec", model_specs(SIGNATURE).values(), ids=lambda spec: spec.name)
def test_outputs_that_are_not_what_a_model_promises_are_named(spec: ModelSpec) -> None:
    """A faulty GPU, an overflow in fp16 or another backend gives numbers that are none; a list must not be made of them."""
    inputs, outputs = sized(spec.inputs, spec, 3), sized(spec.outputs, spec, 3)
    spec.check_outputs(inputs, outputs)
    for tensor in spec.outputs:
        array = outputs[tensor.name]
        sizes = [None, array[:2], array[..., :-1], np.repeat(array, 2, axis=-1), array[0], array[..., None]]
        for wrong in sizes:
            with pytest.raises(ValueError, match=tensor.name):
                spec.check_outputs(inputs, {**outputs, tensor.name: wrong})
        values: list[Any] = [array.astype(np.float64)]
        for value in (np.nan, np.inf, -np.inf) if tensor.dtype == "FP32" else (-2, 10_000):
            changed = array.copy()
            changed.flat[-1] = value
            values.append(changed)
        for wrong in values:
            with pytest.raises(InvalidInputError, match=tensor.name):
                spec.check_outputs(inputs, {**outputs, tensor.name: wrong})
