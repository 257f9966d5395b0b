"""The generator, in fp32 and in int8, beside the usual ways to generate: users a second, in the same run, on one core."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.inference.naive import NaiveSearch
from benchmarks.inference.subject import Subject, session
from benchmarks.inference.timing import in_turn
from benchmarks.inference.transformers_peer import TransformersSearch
from benchmarks.result import Row
from trainer.precision import int8

BATCH, TOKENS, ROUNDS = 8, 64, 5


def rows(folder: Path) -> Iterator[Row]:
    """Against a Python loop over the same model, and against Hugging Face's `generate`."""
    subject = Subject()
    inputs = subject.inputs("generator", BATCH, TOKENS, np.random.default_rng(0))
    exact, coarse = subject.export("generator", folder), folder / "generator.int8.onnx"
    int8(exact, coarse)
    graphs = {"fp32": session(exact), "int8": session(coarse)}
    sequences = subject.items.sequences(*(torch.from_numpy(inputs[name]) for name in list(inputs)[:6]))
    naive, generate = NaiveSearch(subject.model, subject.table, subject.num_beams), TransformersSearch(subject)

    @torch.no_grad()
    def loop() -> object:
        return naive(subject.model.encode(sequences, subject.items.vectors_NX))

    times = in_turn(
        {
            **{name: partial(graph.run, None, inputs) for name, graph in graphs.items()},
            "loop": loop,
            "generate": lambda: generate(inputs["codes"]),
        },
        ROUNDS,
    )
    for name, words, bar in (
        ("loop", "a Python loop over codes, context copied for each beam", 3.0),
        ("generate", "Hugging Face generate, T5 of the same size, prefix_allowed_tokens_fn", 10.0),
    ):
        for variant in graphs:
            ratio = times[name].p50 / times[variant].p50
            what = f"generator in {variant}, one graph: users a second over those of {words}"
            its_own = ("its users a second", BATCH / times[name].p50)
            is_best = variant == "int8"
            yield Row.at_least(what, ratio, "×", bar, its_own) if is_best else Row.reported(what, ratio, "×", its_own)
