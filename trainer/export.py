"""From a finished run to a release: graphs, item vectors, Triton's files, manifest. What the release serves is computed by the
same code that was evaluated.
"""

# N = items, X = components of a vector, C = candidates, L = code levels, T = text dim

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from torch import nn

from baguni import processors
from baguni.clients.inference import summarise, triton_inputs
from baguni.domain.errors import InvalidInputError
from baguni.domain.release import RESERVED_IDS, Release, ReleaseStore, sha256_of, write_manifest
from baguni.domain.scoring import candidate_codes
from baguni.domain.semantic_ids import SemanticIdTable, write_ids
from baguni.domain.sequences import NUM_FEATURES
from baguni.domain.signature import (
    GOLDEN_OUTPUTS,
    NUM_CANDIDATES,
    ModelSignature,
    ModelSpec,
    model_specs,
    triton_model_name,
)
from baguni.domain.staging import staging
from trainer.base import quantiser_of
from trainer.decoding import BeamSearch
from trainer.graphs import (
    FrozenItems,
    GeneratorGraph,
    ItemEncoderGraph,
    ScorerGraph,
    UserEncoderGraph,
    export_onnx,
    export_torch,
)
from trainer.model import DualHeadModel
from trainer.precision import half_precision, int8
from trainer.rqvae import RqVae
from trainer.run import Progress, Run, silent
from trainer.tensorrt import build_plan, engine_facts
from trainer.triton_config import Target, render_config

NUM_GOLDEN = 16
GPU_TARGETS = ("tensorrt", "torch")
RUNNERS: dict[Target, str] = {"python": "onnx_runner.py", "torch": "torch_runner.py"}
BACKEND_DIR = Path(__file__).resolve().parent.parent / "model_repository"


def build_release(
    run: Run,
    folder: Path,
    progress: Progress = silent,
    target: Target = "python",
    timing_cache: Path | None = None,
    quantised: bool = False,
) -> Release:
    """Write the release of a finished run into the new directory `folder`.

    `target` says what runs its models in Triton: "python" ONNX Runtime in the Python backend, "onnxruntime" Triton's own
    backend, "tensorrt" engines, which are built here, for this machine's GPU (EngineError where there is none), "torch" torch
    in the Python backend, for GPUs without TensorRT. `quantised`: the graphs that read histories in int8, for a CPU.
    """
    if quantised and target in GPU_TARGETS:
        raise InvalidInputError(f"int8 is for CPUs: a {target} release runs on a GPU", "int8")
    recipe = run.recipe
    if (recipe.tokens, recipe.content) != ("items", "text"):
        raise InvalidInputError(
            f"the recipe {recipe.name!r} reads {recipe.tokens} and {recipe.content}, expected items and text: it is for "
            "comparison, and gateways make no such inputs",
            "recipe",
        )
    engine = engine_facts() if target == "tensorrt" else None
    folder.mkdir(parents=True)
    model, rqvae, table = run.model(), run.rqvae(), run.semantic_ids()
    signature = release_signature(run, model, table)
    specs, items = model_specs(signature), frozen_items(run, model)
    modules: dict[str, nn.Module] = {
        "user_encoder": UserEncoderGraph(model, items).eval(),
        "generator": GeneratorGraph(BeamSearch(model, table.trie, signature.num_beams), items).eval(),
        "scorer": ScorerGraph(model, items).eval(),
        "item_encoder": item_encoder(run, rqvae, model),
    }
    progress("export", 0, len(specs) + 1, "catalogue, vectors and golden queries")
    run.dataset.catalog.save(folder / "catalog.parquet")
    table.save(folder / "semantic_ids.npz")
    write_ids(folder / RESERVED_IDS, run.reserved_ids)
    signature.save(folder / "signature.json")
    _save_vectors(run, model, rqvae, folder)
    torch.save({"model": model.state_dict(), "rqvae": rqvae.state_dict()}, folder / "weights.pt")
    (folder / "recipe.json").write_text(json.dumps(run.recipe.as_dict(), indent=2) + "\n")
    _save_golden_queries(run, modules, signature, folder)
    precision = "fp16" if target == "tensorrt" else "int8" if quantised else "fp32"
    release_id = _release_id(folder, target, precision)
    for number, (name, spec) in enumerate(specs.items()):
        progress("export", number + 1, len(specs) + 1, name)
        if name == "text_encoder":  # it begins with a tokenizer, which only the Python backend can run
            version = _model_folder(folder, spec, release_id, signature.max_batch_size, "python")
            run.text_encoder().export(version)
            shutil.copyfile(BACKEND_DIR / "text_encoder_model.py", version / "model.py")
            _copy_session(version)
            continue
        version = _model_folder(folder, spec, release_id, signature.max_batch_size, target)
        if target == "torch":
            export_torch(modules[name], spec, version / "program.pt2")
        else:
            export_onnx(modules[name], spec, version / "model.onnx")
        if quantised and name in GOLDEN_OUTPUTS:
            int8(version / "model.onnx", version / "model.onnx")
        if target in RUNNERS:
            copy_backend(target, version)
        elif target == "tensorrt":
            half_precision(version / "model.onnx", version / "model.onnx")
            plan = build_plan(version / "model.onnx", spec, signature.max_batch_size, timing_cache=timing_cache)
            (version / "model.plan").write_bytes(plan)
            (version / "model.onnx").unlink()
    progress("export", len(specs) + 1, len(specs) + 1, release_id)
    fields: Mapping[str, Any] = {
        "release_id": release_id,
        "dataset": run.dataset.name,
        "metrics": run.metrics(),
        "trained_until_ms": run.test_start_ms,
        "warm_runs": run.warm_runs,
        "quantiser": quantiser_of(rqvae.state_dict()),
        "semantic_ids_sha256": table.sha256,
        "text_encoder": run.recipe.text_encoder,
        "target": target,
        "precision": precision,
        **({"engine": engine} if engine else {}),
        **({"torch": torch.__version__} if target == "torch" else {}),
    }
    return write_manifest(folder, fields)


def add_release(
    run: Run, store: ReleaseStore, progress: Progress = silent, target: Target = "python", quantised: bool = False
) -> Release:
    """`build_release` into a store: there whole or not at all."""
    with staging(store.root, "building", uuid4().hex[:8]) as building:
        try:
            build_release(run, building / "release", progress, target, store.root / ".tensorrt-timing", quantised)
            return store.add(building / "release")
        finally:
            shutil.rmtree(building, ignore_errors=True)


def copy_backend(target: Target, version: Path) -> None:
    """Put the Python backend's model beside its weights, with what runs them."""
    shutil.copyfile(BACKEND_DIR / "model.py", version / "model.py")
    shutil.copyfile(BACKEND_DIR / RUNNERS[target], version / "runner.py")
    if target == "python":
        _copy_session(version)


def _copy_session(version: Path) -> None:
    """Put beside a model how a session of ONNX Runtime is opened."""
    shutil.copyfile(BACKEND_DIR / "onnx_session.py", version / "onnx_session.py")
    shutil.copyfile(processors.__file__, version / "processors.py")


def frozen_items(run: Run, model: DualHeadModel) -> FrozenItems:
    """The item rows of a run's release."""
    text_NT = run.training_set.text_NT
    with torch.no_grad():
        vectors_NX = model.item_vectors(text_NT)
    return FrozenItems(vectors_NX, torch.from_numpy(run.statistics.newest_NP))


def release_signature(run: Run, model: DualHeadModel, table: SemanticIdTable) -> ModelSignature:
    """The tensors of a run's models."""
    return ModelSignature(
        num_items=len(table),
        max_tokens=run.recipe.max_tokens,
        codebook_sizes=table.codebook_sizes,
        vector_dim=model.config.served_dim,
        content_dim=run.recipe.rqvae.latent_dim,
        text_dim=model.config.text_dim,
        num_nodes=table.trie.num_nodes,
        num_beams=run.recipe.num_beams,
        store_timezone=run.dataset.store_timezone,
        rescored_share=run.recipe.rescored_share,
        num_features=NUM_FEATURES,
    )


def item_encoder(run: Run, rqvae: RqVae, model: DualHeadModel) -> ItemEncoderGraph:
    """Return the graph that places what comes later, as an item without an order."""
    offset = float(run.bias_offset(np.zeros(1, np.float32))[0])
    return ItemEncoderGraph(rqvae, model, run.statistics_from_text, offset).eval()


def _save_vectors(run: Run, model: DualHeadModel, rqvae: RqVae, folder: Path) -> None:
    with torch.no_grad():
        _, content = rqvae(torch.from_numpy(run.embeddings()))
    np.save(folder / "content_vectors.npy", content.numpy())
    np.save(folder / "item_vectors.npy", run.served_vectors(model).numpy())
    np.save(folder / "popularity.npy", run.recent_popularity())


@torch.no_grad()
def _save_golden_queries(run: Run, modules: Mapping[str, nn.Module], signature: ModelSignature, folder: Path) -> None:
    """Some users of the training log on the day after it, and what each trained model that reads histories makes of them."""
    log = run.training_log
    users = np.linspace(0, len(log.user_ids) - 1, min(NUM_GOLDEN, len(log.user_ids))).astype(int).tolist()
    histories = [log.history(user) for user in users]
    inputs = summarise(histories, run.test_start_ms, log.catalog.index, signature)
    codes_NL = run.semantic_ids().codes_NL
    arrays = dict(triton_inputs(inputs, codes_NL, signature))
    asked = np.linspace(0, len(codes_NL) - 1, min(NUM_CANDIDATES, len(codes_NL))).astype(int)
    arrays["candidate_codes"] = np.tile(candidate_codes(codes_NL, asked), (len(users), 1, 1))
    arrays["node_mask"] = np.ones((len(users), 1), bool)
    answers = {}
    for name, output in GOLDEN_OUTPUTS.items():
        spec = model_specs(signature)[name]
        outputs = modules[name](*(torch.from_numpy(arrays[tensor.name]) for tensor in spec.inputs))
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        answers[output] = outputs[[tensor.name for tensor in spec.outputs].index(output)].numpy()
    np.savez(folder / "golden_queries.npz", **arrays, **answers)  # type: ignore[arg-type]


def _release_id(folder: Path, target: Target, precision: str) -> str:
    """The day, and the hash of the parts and of the code that makes Triton's models out of them."""
    code = [path for room in (BACKEND_DIR, Path(__file__).resolve().parent) for path in sorted(room.glob("*.py"))]
    parts = "".join(sha256_of(path) for path in [*sorted(folder.iterdir()), *code])
    digest = hashlib.sha256((parts + target + precision).encode()).hexdigest()
    return f"r{datetime.now(UTC):%Y%m%d}_{digest[:8]}"


def _model_folder(folder: Path, spec: ModelSpec, release_id: str, max_batch_size: int, target: Target) -> Path:
    model_folder = folder / "triton" / triton_model_name(spec.name, release_id)
    (model_folder / "1").mkdir(parents=True)
    (model_folder / "config.pbtxt").write_text(render_config(spec, release_id, max_batch_size, target))
    return model_folder / "1"
