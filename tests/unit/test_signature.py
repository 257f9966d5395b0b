"""The rendered Triton configuration, whole: a change of it is a change of the contract with every running server."""

from __future__ import annotations

import numpy as np

from baguni.inference import triton_inputs
from baguni.sequences import ModelInputs
from baguni.signature import ModelSignature, model_specs, render_config

SIGNATURE = ModelSignature(
    num_items=100,
    max_tokens=4,
    codebook_sizes=(8, 8, 4),
    vector_dim=9,
    content_dim=8,
    text_dim=16,
    num_nodes=150,
    num_beams=16,
)
USER_ENCODER = """# Rendered from baguni/signature.py: edit that, then `baguni export`.
name: "user_encoder_r1"
backend: "python"
max_batch_size: 32
input [
  { name: "item_index" data_type: TYPE_INT32 dims: [ 4 ] },
  { name: "codes" data_type: TYPE_INT32 dims: [ 4, 3 ] },
  { name: "position" data_type: TYPE_INT32 dims: [ 4 ] },
  { name: "actions" data_type: TYPE_INT32 dims: [ 4 ] },
  { name: "features" data_type: TYPE_FP32 dims: [ 4, 16 ] },
  { name: "context" data_type: TYPE_FP32 dims: [ 10 ] }
]
output [
  { name: "user_embedding" data_type: TYPE_FP32 dims: [ 2, 9 ] },
  { name: "repeat_score" data_type: TYPE_FP32 dims: [ 4 ] }
]
dynamic_batching {
  preferred_batch_size: [ 8, 32 ]
  max_queue_delay_microseconds: 500
  default_queue_policy {
    timeout_action: REJECT
    default_timeout_microseconds: 100000
    allow_timeout_override: true
    max_queue_size: 512
  }
}
instance_group [ { count: 1 kind: KIND_CPU } ]
parameters { key: "release_id" value { string_value: "r1" } }
"""


def test_the_user_encoders_configuration() -> None:
    assert render_config(model_specs(SIGNATURE)["user_encoder"], "r1", SIGNATURE.max_batch_size) == USER_ENCODER


def test_every_queue_is_bounded_and_rejects_what_is_late() -> None:
    for spec in model_specs(SIGNATURE).values():
        config = render_config(spec, "r1", SIGNATURE.max_batch_size)
        assert "timeout_action: REJECT" in config
        assert 0 < spec.max_queue_size < 10_000


def test_the_generator_reads_what_the_encoder_reads_and_a_mask() -> None:
    specs = model_specs(SIGNATURE)
    assert specs["generator"].inputs[:-1] == specs["user_encoder"].inputs
    assert specs["generator"].inputs[-1].shape == (150,)


def test_a_signature_survives_its_file(tmp_path) -> None:
    SIGNATURE.save(tmp_path / "signature.json")
    assert ModelSignature.load(tmp_path / "signature.json") == SIGNATURE


def test_padding_and_items_training_never_saw_reach_the_models_as_such() -> None:
    """Of three tokens one is known to training, one is new and known by its codes only, one is padding."""
    inputs = ModelInputs(
        item_BS=np.array([[1, 2, -1]], np.int32),
        position_BS=np.array([[1, 0, 0]], np.int32),
        actions_BS=np.array([[1, 2, 0]], np.int32),
        features_BSF=np.zeros((1, 3, 16), np.float32),
        context_BC=np.zeros((1, 10), np.float32),
    )
    codes_NL = np.array([[0, 0, 0], [5, 6, 1], [7, 7, 2]], np.int32)
    arrays = triton_inputs(inputs, codes_NL, num_trained_items=2)
    assert arrays["item_index"].tolist() == [[2, 0, 0]]
    assert arrays["codes"].tolist() == [[[5, 6, 1], [7, 7, 2], [-1, -1, -1]]]
