"""What fewer bits cost in answers: lists of a trained model in fp32, and of its fp16 and int8 graphs, for the same users."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from baguni.clients.inference import summarise, triton_inputs
from baguni.domain.errors import NotFoundError
from baguni.domain.semantic_ids import SemanticIdTable
from baguni.domain.signature import EVERYTHING, model_specs
from benchmarks.inference.subject import Arrays, session
from benchmarks.result import Row
from trainer.decoding import BeamSearch
from trainer.export import frozen_items, release_signature
from trainer.graphs import GeneratorGraph, UserEncoderGraph, export_onnx
from trainer.precision import half_precision, int8
from trainer.recipes import recipe_named
from trainer.run import Run

NUM_USERS, LONG = 256, 100
VARIANTS = {"fp16": half_precision, "int8": int8}


def require_run(path: Path) -> None:
    """Raise NotFoundError unless there is a finished run."""
    if not (path / "distilled.pt").is_file():
        raise NotFoundError(f"{path} is no finished run: `baguni benchmark quality --contenders C --seeds 0` makes one")


def rows(path: Path, folder: Path) -> Iterator[Row]:
    """Mean overlap of the first 100 of the retrieval head, and of all beams of the generative head."""
    run = Run(path, Path(".baguni/complete-journey"), recipe_named("complete-journey"))
    model, table = run.model(), run.semantic_ids()
    items, signature = frozen_items(run, model), release_signature(run, model, table)
    histories = _histories(run, table)
    vectors_NX = run.served_vectors(model)
    everyone = np.ones((len(histories["context"]), 1), bool)
    for name, graph, more in (
        ("user_encoder", UserEncoderGraph(model, items), {}),
        (
            "generator",
            GeneratorGraph(BeamSearch(model, table.trie, signature.num_beams), items),
            {"node_mask": everyone},
        ),
    ):
        exact = folder / f"trained-{name}.onnx"
        export_onnx(graph.eval(), model_specs(signature)[name], exact)
        wanted = _lists(exact, name, histories | more, vectors_NX.detach().numpy())
        for variant, coarser in VARIANTS.items():
            coarser(exact, folder / f"trained-{name}.{variant}.onnx")
            found = _lists(
                folder / f"trained-{name}.{variant}.onnx", name, histories | more, vectors_NX.detach().numpy()
            )
            shared = [len(set(a) & set(b)) / len(a) for a, b in zip(wanted.tolist(), found.tolist(), strict=True)]
            what = "first 100 items" if name == "user_encoder" else f"{signature.num_beams} beams"
            value = 100 * float(np.mean(shared))
            yield Row.at_least(f"{name} in {variant}, trained model: {what} as in fp32", value, "%", 98)


def _histories(run: Run, table: SemanticIdTable) -> Arrays:
    """Users of the training log on the day after it."""
    log, signature = run.training_log, release_signature(run, run.model(), table)
    users = np.linspace(0, len(log.user_ids) - 1, NUM_USERS).astype(int).tolist()
    histories = [log.history(user) for user in users]
    inputs = summarise(histories, run.test_start_ms, log.catalog.index, signature)
    return triton_inputs(inputs, table.codes_NL, signature)


def _lists(path: Path, name: str, inputs: Arrays, vectors_NX: NDArray[np.float32]) -> NDArray[np.int64]:
    answer = np.asarray(session(path, threads=2).run(None, inputs)[0])
    if name == "generator":
        return answer.astype(np.int64)
    return np.argsort(-(answer[:, EVERYTHING] @ vectors_NX.T), axis=1)[:, :LONG]
