"""From a finished run to a release: ONNX graphs, item vectors, Triton's files, manifest.

The tensors are those of `baguni.signature`; the graphs here are thin frames around the trained modules that give them
those names. What the release serves is computed by the same code that was evaluated.
"""

# N = items, B = batch, S = tokens, L = code levels, T = text dim

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import warnings
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn

from baguni.errors import InvalidInputError
from baguni.inference import triton_inputs
from baguni.release import Release, sha256_of, write_manifest
from baguni.semantic_ids import SemanticIdTable
from baguni.sequences import event_batch, model_inputs
from baguni.signature import (
    GOLDEN_OUTPUTS,
    NUM_CANDIDATES,
    ModelSignature,
    ModelSpec,
    model_specs,
    triton_model_name,
)
from trainer.decoding import ILLEGAL, BeamSearch
from trainer.model import DualHeadModel, History, with_statistics
from trainer.precision import half_precision, int8
from trainer.rqvae import RqVae
from trainer.run import Run
from trainer.statistics import TextRegression
from trainer.tensorrt import build_plan, engine_facts
from trainer.triton_config import Target, render_config

OPSET = 20
MAX_BATCH = 1024
NUM_GOLDEN = 16
OF_HISTORIES = ("user_encoder", "generator", "scorer")
BACKEND_DIR = Path(__file__).resolve().parent.parent / "model_repository"


class FrozenItems(nn.Module):
    """What a release knows of its items, fixed: the rows that the encoder looks up for each token."""

    vectors_NX: Tensor
    statistics_NP: Tensor

    def __init__(self, vectors_NX: Tensor, statistics_NP: Tensor) -> None:
        super().__init__()
        self.register_buffer("vectors_NX", vectors_NX, persistent=False)
        self.register_buffer("statistics_NP", F.pad(statistics_NP, (0, 0, 1, 0)), persistent=False)

    def history(
        self, item_index: Tensor, codes: Tensor, position: Tensor, actions: Tensor, features: Tensor, context: Tensor
    ) -> History:
        """The inputs of `baguni.signature`, and each token's item statistics."""
        return History(
            item_index, codes, position, actions, features, context, F.embedding(item_index, self.statistics_NP)
        )


class UserEncoderGraph(nn.Module):
    """History → user embedding and repeat scores."""

    def __init__(self, model: DualHeadModel, items: FrozenItems) -> None:
        super().__init__()
        self.model, self.items = model, items

    def forward(
        self, item_index: Tensor, codes: Tensor, position: Tensor, actions: Tensor, features: Tensor, context: Tensor
    ) -> tuple[Tensor, Tensor]:
        history = self.items.history(item_index, codes, position, actions, features, context)
        memory = self.model.encode(history, self.items.vectors_NX)
        return self.model.user_embedding(memory), self.model.repeat_score(memory, history)


class GeneratorGraph(nn.Module):
    """History and node mask → items and log-likelihoods: encoder, decoder and beam search in one graph."""

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
        history = self.items.history(item_index, codes, position, actions, features, context)
        memory = self.search.model.encode(history, self.items.vectors_NX)
        result: tuple[Tensor, Tensor] = self.search(memory, node_mask)
        return result


class ScorerGraph(nn.Module):
    """History and Semantic IDs → their log-likelihoods: the generative head's judgement of items that others found."""

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
        history = self.items.history(item_index, codes, position, actions, features, context)
        memory = self.model.encode(history, self.items.vectors_NX)
        scores_BC = self.model.log_likelihood(memory, candidate_codes)
        return torch.where(candidate_codes[:, :, 0] >= 0, scores_BC, ILLEGAL)


class ItemEncoderGraph(nn.Module):
    """Text embedding → codes, content vector, item vector: what a new item gets within seconds."""

    weight_TP: Tensor
    bias_P: Tensor

    def __init__(self, rqvae: RqVae, model: DualHeadModel, statistics: TextRegression) -> None:
        super().__init__()
        self.rqvae, self.model = rqvae, model
        self.register_buffer("weight_TP", torch.from_numpy(statistics.weight_XP), persistent=False)
        self.register_buffer("bias_P", torch.from_numpy(statistics.bias_P), persistent=False)

    def forward(self, text_embedding: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        codes_BL, content_BZ = self.rqvae(text_embedding)
        text_BT = self.rqvae.standardise(text_embedding)
        vector_BX = self.model.item_tower.from_text(text_BT)
        if self.model.config.num_statistics > 0:
            vector_BX = with_statistics(vector_BX, text_BT @ self.weight_TP + self.bias_P)
        return codes_BL.int(), content_BZ, vector_BX


def build_release(
    run: Run,
    folder: Path,
    on_part: Callable[[str], None] = lambda part: None,
    target: Target = "python",
    timing_cache: Path | None = None,
    quantised: bool = False,
) -> Release:
    """Write the release of a finished run into the new directory `folder`. `on_part` hears of each part before it.

    `target` says what runs its models in Triton: "python" ONNX Runtime in the Python backend, "onnxruntime" Triton's own
    backend, "tensorrt" engines, which are built here, for this machine's GPU (EngineError where there is none). `quantised`:
    the graphs that read histories in int8, for a CPU.
    """
    if quantised and target == "tensorrt":
        raise InvalidInputError("int8 is for CPUs: a tensorrt release is in half precision", "int8")
    engine = engine_facts() if target == "tensorrt" else None
    folder.mkdir(parents=True)
    model, rqvae, table = run.model(), run.rqvae(), run.semantic_ids()
    signature = release_signature(run, model, table)
    items = frozen_items(run, model)
    on_part("catalogue and vectors")
    run.dataset.catalog.save(folder / "catalog.parquet")
    table.save(folder / "semantic_ids.npz")
    signature.save(folder / "signature.json")
    _save_vectors(run, model, rqvae, folder)
    torch.save({"model": model.state_dict(), "rqvae": rqvae.state_dict()}, folder / "weights.pt")
    (folder / "recipe.json").write_text(json.dumps(run.recipe.as_dict(), indent=2) + "\n")
    modules: dict[str, nn.Module] = {
        "user_encoder": UserEncoderGraph(model, items).eval(),
        "generator": GeneratorGraph(BeamSearch(model, table.trie, signature.num_beams), items).eval(),
        "scorer": ScorerGraph(model, items).eval(),
        "item_encoder": ItemEncoderGraph(rqvae, model, run.statistics_from_text).eval(),
    }
    on_part("golden queries")
    _save_golden_queries(run, modules, signature, folder)
    precision = "fp16" if target == "tensorrt" else "int8" if quantised else "fp32"
    release_id = _release_id(folder, target, precision)
    for name, spec in model_specs(signature).items():
        on_part(name)
        if name == "text_encoder":  # it begins with a tokenizer, which only the Python backend can run
            version = _model_folder(folder, spec, release_id, signature.max_batch_size, "python")
            run.text_encoder().export(version)
            shutil.copyfile(BACKEND_DIR / "text_encoder_model.py", version / "model.py")
            continue
        version = _model_folder(folder, spec, release_id, signature.max_batch_size, target)
        export_onnx(modules[name], spec, version / "model.onnx")
        if quantised and name in OF_HISTORIES:
            int8(version / "model.onnx", version / "model.onnx")
        if target == "python":
            shutil.copyfile(BACKEND_DIR / "onnx_model.py", version / "model.py")
        elif target == "tensorrt":
            half_precision(version / "model.onnx", version / "model.onnx")
            plan = build_plan(version / "model.onnx", spec, signature.max_batch_size, timing_cache=timing_cache)
            (version / "model.plan").write_bytes(plan)
            (version / "model.onnx").unlink()
    fields: Mapping[str, Any] = {
        "release_id": release_id,
        "dataset": run.dataset.name,
        "metrics": run.metrics(),
        "semantic_ids_sha256": table.sha256,
        "text_encoder": run.recipe.text_encoder,
        "target": target,
        "precision": precision,
        **({"engine": engine} if engine else {}),
    }
    return write_manifest(folder, fields)


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
    )


def export_onnx(module: nn.Module, spec: ModelSpec, path: Path) -> None:
    """Export with the tensor names of `spec`, a free batch dimension and free named axes, weights inside the file."""
    shapes = spec.shapes()[-1]
    example = tuple(_example(tensor.dtype, (2, *shapes[tensor.name])) for tensor in spec.inputs)
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    axes = {name: torch.export.Dim(name, min=1, max=max(sizes)) for name, sizes in spec.axes.items() if len(sizes) > 1}
    free = tuple(
        {0: batch} | {1 + place: axes[axis] for place, axis in enumerate(tensor.shape) if axis in axes}
        for tensor in spec.inputs
    )
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own deprecated calls
        torch.onnx.export(
            module,
            example,
            str(path),
            input_names=[tensor.name for tensor in spec.inputs],
            output_names=[tensor.name for tensor in spec.outputs],
            dynamic_shapes=free,
            dynamo=True,
            opset_version=OPSET,
            external_data=False,
            verbose=False,
        )


def _example(dtype: str, shape: tuple[int, ...]) -> Tensor:
    kinds = {"INT32": torch.int32, "FP32": torch.float32, "BOOL": torch.bool}
    return torch.ones(shape, dtype=kinds[dtype])


def _save_vectors(run: Run, model: DualHeadModel, rqvae: RqVae, folder: Path) -> None:
    text_NT = torch.from_numpy(run.embeddings())
    with torch.no_grad():
        _, content = rqvae(text_NT)
        vectors = model.served_vectors(rqvae.standardise(text_NT), torch.from_numpy(run.statistics.newest_NP))
    np.save(folder / "content_vectors.npy", content.numpy())
    np.save(folder / "item_vectors.npy", vectors.numpy())
    np.save(folder / "popularity.npy", run.recent_popularity())


@torch.no_grad()
def _save_golden_queries(run: Run, modules: Mapping[str, nn.Module], signature: ModelSignature, folder: Path) -> None:
    """Some users of the training log on the day after it, and what each trained model that reads histories makes of them."""
    log = run.training_log
    users = np.linspace(0, len(log.user_ids) - 1, min(NUM_GOLDEN, len(log.user_ids))).astype(int).tolist()
    events = event_batch([log.history(user) for user in users], log.catalog.index)
    now = np.full(len(users), run.test_start_ms, np.int64)
    inputs = model_inputs(events, now, signature.max_tokens, signature.store_timezone)
    codes_NL = run.semantic_ids().codes_NL
    arrays = dict(triton_inputs(inputs, codes_NL, signature))
    codes_CL = np.full((NUM_CANDIDATES, codes_NL.shape[1]), -1, np.int32)
    asked = np.linspace(0, len(codes_NL) - 1, min(NUM_CANDIDATES, len(codes_NL))).astype(int)
    codes_CL[: len(asked)] = codes_NL[asked]
    arrays["candidate_codes"] = np.tile(codes_CL, (len(users), 1, 1))
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
