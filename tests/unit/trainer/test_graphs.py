"""The exported graphs in ONNX Runtime, beside torch and beside themselves: for every choice of shapes, in any batch, with any
padding, at half precision."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import pytest
import torch
from google.protobuf import json_format, text_format
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2

from baguni.domain.errors import EngineError, InvalidInputError
from baguni.domain.release import Release
from baguni.domain.signature import GOLDEN_OUTPUTS, NUM_CANDIDATES, ModelSpec, model_specs, triton_model_name
from baguni.releases.activation import MAX_GOLDEN_DISTANCE, golden_distance
from benchmarks.inference import subject
from benchmarks.inference.subject import session
from tests.tiny_release import tiny_run
from trainer.decoding import ILLEGAL, BeamSearch
from trainer.export import build_release, frozen_items
from trainer.graphs import GeneratorGraph, ScorerGraph, UserEncoderGraph
from trainer.precision import half_precision, int8
from trainer.run import Run
from trainer.triton_config import Target, render_config

pytestmark = pytest.mark.slow

Arrays = dict[str, NDArray[np.generic]]
NUM_RANDOM_HISTORIES = 100_000


@pytest.fixture(scope="module")
def run(tiny_release: Release) -> Run:
    return tiny_run(tiny_release.path.parent)


@pytest.fixture(scope="module")
def specs(tiny_release: Release) -> dict[str, ModelSpec]:
    return model_specs(tiny_release.signature)


def graph_file(release: Release, name: str) -> Path:
    return release.triton_dir / triton_model_name(name, release.release_id) / "1" / "model.onnx"


def random_histories(release: Release, batch: int, tokens: int, rng: np.random.Generator) -> Arrays:
    """Histories of random lengths up to `tokens`; the first is empty."""
    return subject.random_histories(release.signature, release.semantic_ids.codes_NL, batch, tokens, rng)


def padded(histories: Arrays, tokens: int) -> Arrays:
    """The same histories with more padding."""
    empty = {"codes": -1}
    return {
        name: array
        if name == "context"
        else np.pad(
            array,
            [(0, 0), (0, tokens - array.shape[1]), *[(0, 0)] * (array.ndim - 2)],
            constant_values=empty.get(name, 0),
        )
        for name, array in histories.items()
    }


def tensors(arrays: Arrays) -> Iterator[torch.Tensor]:
    return (torch.from_numpy(array) for array in arrays.values())


def candidates(release: Release, batch: int, rng: np.random.Generator) -> NDArray[np.int32]:
    codes = release.semantic_ids.codes_NL[rng.integers(0, len(release.semantic_ids), (batch, NUM_CANDIDATES))]
    codes[:, -20:] = -1
    return codes


@torch.no_grad()
def test_every_bucket_answers_as_torch_does(run: Run, tiny_release: Release) -> None:
    signature, rng, model = tiny_release.signature, np.random.default_rng(0), run.model()
    items = frozen_items(run, model)
    assert len(signature.buckets) > 1
    encoder, scorer = (session(graph_file(tiny_release, name)) for name in ("user_encoder", "scorer"))
    for tokens in signature.buckets:
        histories = random_histories(tiny_release, 5, tokens, rng)
        embedding, repeat = encoder.run(None, histories)
        wanted_embedding, wanted_repeat = UserEncoderGraph(model, items)(*tensors(histories))
        error = np.linalg.norm(embedding - wanted_embedding.numpy()) / np.linalg.norm(embedding)
        assert error <= 1e-4
        np.testing.assert_allclose(repeat, wanted_repeat.numpy(), atol=1e-4)
        asked = {**histories, "candidate_codes": candidates(tiny_release, 5, rng)}
        (scores,) = scorer.run(None, asked)
        np.testing.assert_allclose(scores, ScorerGraph(model, items)(*tensors(asked)).numpy(), rtol=1e-4, atol=1e-4)
        assert (scores[:, -20:] == np.float32(ILLEGAL)).all()
        assert (scores[:, :-20] > ILLEGAL / 2).all()


@torch.no_grad()
def test_the_generator_finds_the_beams_of_torch_with_and_without_a_filter(run: Run, tiny_release: Release) -> None:
    signature, rng, model, table = tiny_release.signature, np.random.default_rng(1), run.model(), run.semantic_ids()
    reference = GeneratorGraph(BeamSearch(model, table.trie, signature.num_beams), frozen_items(run, model)).eval()
    generator = session(graph_file(tiny_release, "generator"))
    filtered = table.trie.node_mask(rng.random(len(table)) < 0.5)
    for tokens in signature.buckets:
        histories = random_histories(tiny_release, 6, tokens, rng)
        for mask in (np.ones((6, 1), bool), np.tile(filtered, (6, 1))):
            asked = {**histories, "node_mask": mask}
            item, score = generator.run(None, asked)
            wanted_item, wanted_score = reference(*tensors(asked))
            assert [set(row) for row in item.tolist()] == [set(row) for row in wanted_item.tolist()]
            np.testing.assert_allclose(score, wanted_score.numpy(), rtol=1e-4, atol=1e-4)


def test_neither_padding_nor_the_other_users_of_a_batch_change_an_answer(tiny_release: Release) -> None:
    signature, rng = tiny_release.signature, np.random.default_rng(2)
    histories = random_histories(tiny_release, 7, signature.buckets[0], rng)
    extra = {"user_encoder": {}, "generator": {"node_mask": np.ones((7, 1), bool)}}
    extra["scorer"] = {"candidate_codes": candidates(tiny_release, 7, rng)}
    for name, more in extra.items():
        graph = session(graph_file(tiny_release, name))
        whole = graph.run(None, histories | more)
        longer = graph.run(None, padded(histories, signature.buckets[-1]) | more)
        alone = [graph.run(None, {k: v[3:4] for k, v in (histories | more).items()})]
        for place, output in enumerate(whole):
            shape = tuple(slice(0, size) for size in output.shape)
            np.testing.assert_allclose(longer[place][shape], output, rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(alone[0][place][0], output[3], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("half", [False, True])
def test_no_random_history_brings_an_item_that_is_not_allowed(tiny_release: Release, tmp_path, half: bool) -> None:
    """A hundred thousand histories, half of the items allowed."""
    path, rng, table = graph_file(tiny_release, "generator"), np.random.default_rng(3), tiny_release.semantic_ids
    if half:
        half_precision(path, tmp_path / "half.onnx")
        path = tmp_path / "half.onnx"
    graph, allowed_N = session(path), rng.random(len(table)) < 0.5
    batch, tokens = 1_000, tiny_release.signature.buckets[0]
    num_batches = NUM_RANDOM_HISTORIES // batch if not half else 5
    mask = np.tile(table.trie.node_mask(allowed_N), (batch, 1))
    for _ in range(num_batches):
        histories = random_histories(tiny_release, batch, tokens, rng)
        item, score = graph.run(None, histories | {"node_mask": mask})
        assert allowed_N[item[item >= 0]].all()
        wanted = min(int(allowed_N.sum()), tiny_release.signature.num_beams)
        assert ((item >= 0).sum(axis=1) == wanted).all()  # as many as are allowed, if there are beams for them
        assert (np.diff(score, axis=1) <= 0).all()
        assert all(len(set(row)) == wanted for row in item[:, :wanted].tolist())


def test_an_empty_set_of_allowed_items_brings_nothing(tiny_release: Release) -> None:
    trie = tiny_release.semantic_ids.trie
    histories = random_histories(tiny_release, 2, tiny_release.signature.buckets[0], np.random.default_rng(4))
    mask = np.tile(trie.node_mask(np.zeros(len(trie.item_R), bool)), (2, 1))
    item, _ = session(graph_file(tiny_release, "generator")).run(None, histories | {"node_mask": mask})
    assert (item == -1).all()


@pytest.mark.parametrize("coarser", [half_precision, int8])
@pytest.mark.parametrize("name", ["user_encoder", "scorer"])
def test_fewer_bits_say_nearly_the_same(tiny_release: Release, tmp_path, name: str, coarser) -> None:
    path, rng = graph_file(tiny_release, name), np.random.default_rng(5)
    coarser(path, tmp_path / "coarser.onnx")
    arrays = random_histories(tiny_release, 64, tiny_release.signature.buckets[-1], rng)
    if name == "scorer":
        arrays["candidate_codes"] = candidates(tiny_release, 64, rng)
    exact, coarse = (session(p).run(None, arrays)[0] for p in (path, tmp_path / "coarser.onnx"))
    if name == "scorer":
        exact, coarse = exact[:, :-20], coarse[:, :-20]  # the last ones are padding
        assert np.abs(coarse - exact).max() < 0.5  # nats, of a dozen
    exact, coarse = exact.reshape(64, -1), coarse.reshape(64, -1)
    cosine = (exact * coarse).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(coarse, axis=1)
    assert cosine.min() >= 0.99


@pytest.mark.parametrize("target", get_args(Target))
def test_triton_would_read_every_configuration(specs: dict[str, ModelSpec], target: Target) -> None:
    """By Triton's own schema, which refuses a field that it does not know."""
    for name, spec in specs.items():
        config = text_format.Parse(render_config(spec, "r1", 32, target), model_config_pb2.ModelConfig())
        assert (config.name, config.backend) == (f"{name}_r1", "python" if target == "torch" else target)
        assert config.dynamic_batching.default_queue_policy.timeout_action == model_config_pb2.ModelQueuePolicy.REJECT


@pytest.mark.parametrize("name", ["user_encoder", "generator", "scorer", "item_encoder"])
def test_the_graph_has_the_tensors_of_its_configuration(tiny_release: Release, specs, name: str) -> None:
    """What Triton's own ONNX Runtime backend compares when it loads a model."""
    graph, spec = session(graph_file(tiny_release, name)), specs[name]
    kinds = {"INT32": "tensor(int32)", "FP32": "tensor(float)", "BOOL": "tensor(bool)"}
    for found, expected in ((graph.get_inputs(), spec.inputs), (graph.get_outputs(), spec.outputs)):
        assert [(t.name, t.type) for t in found] == [(t.name, kinds[t.dtype]) for t in expected]
        for tensor, wanted in zip(found, expected, strict=True):
            assert len(tensor.shape) == 1 + len(wanted.shape)
            fixed = [(a, b) for a, b in zip(tensor.shape[1:], wanted.shape, strict=True) if isinstance(b, int)]
            assert all(a == b or isinstance(a, str) for a, b in fixed)


def test_an_int8_release_for_the_stock_image_says_what_it_is(run: Run, tmp_path, tiny_release: Release) -> None:
    release = build_release(run, tmp_path / "release", target="onnxruntime", quantised=True)
    assert (release.manifest["target"], release.manifest["precision"]) == ("onnxruntime", "int8")
    assert release.release_id != tiny_release.release_id
    for name in ("user_encoder", "generator", "scorer", "item_encoder"):
        path = graph_file(release, name)
        assert sorted(file.name for file in path.parent.iterdir()) == ["model.onnx"]
        assert 'backend: "onnxruntime"' in (path.parent.parent / "config.pbtxt").read_text()
        operators = {node.op_type for node in onnx.load(path).graph.node}
        assert ("DynamicQuantizeLinear" in operators) == (name != "item_encoder")
    golden = release.golden_queries
    for name, output in GOLDEN_OUTPUTS.items():
        inputs = {tensor.name: golden[tensor.name] for tensor in model_specs(release.signature)[name].inputs}
        (served,) = session(graph_file(release, name)).run([output], inputs)
        assert 0 < golden_distance(served, golden[output]).max() <= MAX_GOLDEN_DISTANCE


@pytest.fixture(scope="module")
def torch_release(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Release:
    """For GPUs without TensorRT."""
    return build_release(run, tmp_path_factory.mktemp("torch") / "release", target="torch")


def torch_runner(release: Release, name: str, device: str) -> Any:
    """What the Python backend would make of a model folder of the release."""
    folder = release.triton_dir / triton_model_name(name, release.release_id)
    config = text_format.Parse((folder / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
    found = importlib.util.spec_from_file_location("torch_runner", folder / "1" / "runner.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module.Runner(folder / "1", json_format.MessageToDict(config, preserving_proto_field_name=True), device)


@pytest.mark.parametrize("name", ["user_encoder", "generator", "scorer", "item_encoder"])
def test_a_torch_program_answers_as_the_graph_does(tiny_release: Release, torch_release: Release, name: str) -> None:
    runner, graph = torch_runner(torch_release, name, "cpu"), session(graph_file(tiny_release, name))
    for arrays in some_requests(tiny_release, name):
        for served, expected in zip(runner.run(arrays), graph.run(None, arrays), strict=True):
            np.testing.assert_allclose(served, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
@pytest.mark.parametrize("name", ["user_encoder", "generator", "scorer", "item_encoder"])
def test_cuda_graphs_answer_as_the_graph_does(tiny_release: Release, torch_release: Release, name: str) -> None:
    runner, graph = torch_runner(torch_release, name, "cuda:0"), session(graph_file(tiny_release, name))
    specs = model_specs(tiny_release.signature)
    assert len(runner.graphs) == len(runner.batch_sizes) * len(specs[name].shapes())
    for arrays in some_requests(tiny_release, name):
        (*_, served), (*_, expected) = runner.run(arrays), graph.run(None, arrays)
        assert golden_distance(served, expected).max() <= MAX_GOLDEN_DISTANCE


def some_requests(release: Release, name: str) -> Iterator[Arrays]:
    """Batches of several sizes, of each bucket."""
    rng, signature = np.random.default_rng(7), release.signature
    for batch in (1, 5, 8):
        if name == "item_encoder":
            yield {"text_embedding": rng.standard_normal((batch, signature.text_dim)).astype(np.float32)}
            continue
        for tokens in signature.buckets:
            arrays = random_histories(release, batch, tokens, rng)
            if name == "generator":
                arrays["node_mask"] = np.ones((batch, 1), bool)
            if name == "scorer":
                arrays["candidate_codes"] = candidates(release, batch, rng)
            yield arrays


def test_what_cannot_be_exported_says_why(run: Run, tmp_path, monkeypatch) -> None:
    for target in ("tensorrt", "torch"):
        with pytest.raises(InvalidInputError, match=f"int8 is for CPUs: a {target} release runs on a GPU"):
            build_release(run, tmp_path / "release", target=target, quantised=True)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(EngineError, match=r"tensorrt cannot be imported|no NVIDIA GPU here"):
        build_release(run, tmp_path / "release", target="tensorrt")
    assert not (tmp_path / "release").exists()
