"""Every exported graph builds into a TensorRT engine, with no GPU present: NVIDIA's own parser and compiler, ahead of time."""

from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto, helper

from baguni.domain.errors import EngineError
from baguni.domain.release import Release
from baguni.domain.signature import ModelSpec, TensorSpec, model_specs, triton_model_name
from baguni.releases.activation import check_device, compute_capability
from baguni.settings import Endpoints
from trainer.precision import half_precision
from trainer.tensorrt import CAPABILITIES, COMPILED, build_plan, check_release

pytestmark = pytest.mark.slow


def test_every_graph_compiles_for_every_capability(tiny_release: Release) -> None:
    rows = check_release(tiny_release.path)
    compiled = {(name, each) for name, capabilities, _, _ in rows for each in capabilities.split(", ")}
    assert compiled == {(name, capability) for name in COMPILED for capability in CAPABILITIES}
    assert all(size > 0 for _, _, size, _ in rows)
    assert not list(tiny_release.path.parent.glob("*.half.onnx"))


def test_a_plan_for_turing_needs_half_precision(tiny_release: Release, tmp_path) -> None:
    """What `half_precision` is for: Turing has no fp32 tensor products, and the refusal says so."""
    spec = model_specs(tiny_release.signature)["item_encoder"]
    name = triton_model_name(spec.name, tiny_release.release_id)
    exported = tiny_release.triton_dir / name / "1" / "model.onnx"
    with pytest.raises(EngineError, match=r"item_encoder for compute capability 7\.5: .*FP32 GEMM"):
        build_plan(exported, spec, 8, ["7.5"])
    half_precision(exported, tmp_path / "half.onnx")
    assert build_plan(tmp_path / "half.onnx", spec, 8, ["7.5"])


def test_an_operator_that_tensorrt_does_not_know_is_named(tmp_path) -> None:
    node = helper.make_node("Hovercraft", ["text"], ["eels"])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in ("text", "eels")]
    model = helper.make_model(helper.make_graph([node], "strange", ends[:1], ends[1:]))
    onnx.save(model, tmp_path / "strange.onnx")
    spec = ModelSpec("strange", (TensorSpec("text", "FP32", (4,)),), (), (8,), 1, 1, 1)
    with pytest.raises(EngineError, match=r"strange.*Hovercraft"):
        build_plan(tmp_path / "strange.onnx", spec, 8, ["8.9"])


def test_half_precision_leaves_names_and_types_of_the_tensors(tiny_release: Release, tmp_path) -> None:
    name = triton_model_name("generator", tiny_release.release_id)
    exported = tiny_release.triton_dir / name / "1" / "model.onnx"
    half_precision(exported, tmp_path / "half.onnx")
    before, after = onnx.load(exported).graph, onnx.load(tmp_path / "half.onnx").graph
    for ends in ("input", "output"):
        tensors = [[(t.name, t.type.tensor_type.elem_type) for t in getattr(graph, ends)] for graph in (before, after)]
        assert tensors[0] == tensors[1]
    products = [node for node in after.node if node.op_type in ("MatMul", "Gemm")]
    types = {tensor.name: tensor.data_type for tensor in after.initializer}
    assert {types[name] for node in products for name in node.input if name in types} == {TensorProto.FLOAT16}


def test_without_a_gpu_it_says_so(monkeypatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(EngineError, match="no NVIDIA GPU here"):
        compute_capability()


def test_an_engine_for_another_device_is_refused_naming_both(tiny_release: Release) -> None:
    engine = {"tensorrt": "10.9", "compute_capability": "8.9"}
    release = Release(tiny_release.path, {**tiny_release.manifest, "engine": engine})
    check_device(tiny_release, Endpoints())
    check_device(release, Endpoints(compute_capability="8.9"))
    with pytest.raises(EngineError, match=r"compute capability 8\.9 with TensorRT 10\.9, Triton's GPU has 9\.0"):
        check_device(release, Endpoints(compute_capability="9.0"))
