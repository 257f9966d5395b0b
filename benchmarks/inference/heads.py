"""Each head by itself, on one core: how much of the core's own speed it uses, what int8 gains, what a short history saves."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.inference.subject import Arrays, Subject, session
from benchmarks.inference.timing import gemm_flops, gemm_tasks, in_turn
from benchmarks.result import Row
from trainer.precision import int8

BATCH, TOKENS, ROUNDS, TABLE_ROUNDS = 8, 64, 21, 101  # the table has 99th percentiles
SIZE = "d=256, 4+2 layers, 64 items"


def rows(folder: Path) -> Iterator[Row]:
    """The generator against the core and its own int8; the scorer against the encoder; a table of buckets and batches."""
    subject, rng = Subject(), np.random.default_rng(0)
    inputs = subject.inputs("generator", BATCH, TOKENS, rng)
    exact = subject.export("generator", folder)
    int8(exact, folder / "generator.int8.onnx")
    fp32, coarse = session(exact), session(folder / "generator.int8.onnx")
    times = in_turn(
        {
            **gemm_tasks(),
            "fp32": lambda: fp32.run(None, inputs),
            "int8": lambda: coarse.run(None, inputs),
        },
        ROUNDS,
    )
    core = gemm_flops() / min(each.p50 for name, each in times.items() if name.startswith("product"))
    share = flops(subject, "generator", inputs) / times["fp32"].p50 / core
    per_user = 1e3 * times["fp32"].p50 / BATCH
    what = f"generator, 32 beams, {SIZE}, batch {BATCH}, one core"
    yield Row.reported(f"{what}: a user", per_user, "ms")
    gflops = ("GFLOP/s of the core", core / 1e9)
    yield Row.at_least(f"{what}: of the core's own matrix products", 100 * share, "%", 60, gflops)
    gain = times["fp32"].p50 / times["int8"].p50
    yield Row.at_least(f"{what}: int8 over fp32", gain, "×", 1.6, ("fp32, ms a user", per_user))
    yield from _rescoring(subject, folder, rng)
    yield from _table(subject, folder, rng)


def flops(subject: Subject, name: str, inputs: Arrays) -> float:
    """Floating point operations of one call's matrix products, counted by torch."""
    graph = subject.graph(name)
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        graph(*(torch.from_numpy(array) for array in inputs.values()))
    return float(counted.get_total_flops())


def _rescoring(subject: Subject, folder: Path, rng: np.random.Generator) -> Iterator[Row]:
    scorer, encoder = (session(subject.export(name, folder)) for name in ("scorer", "user_encoder"))
    candidates, history = (subject.inputs(name, 1, TOKENS, rng) for name in ("scorer", "user_encoder"))
    times = in_turn(
        {"scorer": lambda: scorer.run(None, candidates), "encoder": lambda: encoder.run(None, history)}, 3 * ROUNDS
    )
    ratio = times["scorer"].p50 / times["encoder"].p50
    what = f"scorer, 200 random candidates, {SIZE}, batch 1, encoding included: of the encoder's time"
    yield Row.at_most(what, ratio, "×", 1.5, ("user_encoder, ms", 1e3 * times["encoder"].p50))


def _table(subject: Subject, folder: Path, rng: np.random.Generator) -> Iterator[Row]:
    """Latency and users a second for each graph, bucket and batch."""
    for name in ("user_encoder", "generator", "scorer"):
        graph = session(subject.export(name, folder))
        for tokens in subject.signature.buckets:
            for batch in (1, 8, 32):
                inputs = subject.inputs(name, batch, tokens, rng)
                times = in_turn({"run": partial(graph.run, None, inputs)}, TABLE_ROUNDS)["run"]
                what = f"{name}, {tokens} items, batch {batch}, one core: users a second"
                yield Row.reported(what, batch / times.p50, "/ s", ("p99, ms", 1e3 * times.p99))
