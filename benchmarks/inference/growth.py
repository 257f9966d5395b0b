"""What a user costs as beams, histories and the catalogue grow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.inference.subject import Subject, session
from benchmarks.inference.timing import Task, in_turn
from benchmarks.result import Row

BATCH, TOKENS, ROUNDS = 8, 64, 11
MASKED_ITEMS = 100_000
BEAMS, HISTORIES, CATALOGUES = (8, 16, 32, 64), (16, 32, 64, 128), (10_000, 100_000, 1_000_000)


@dataclass(frozen=True)
class Curve:
    """Milliseconds a user of the generator, against one size; `trie_mb` where that is the catalogue's."""

    axis: str
    sizes: tuple[int, ...]
    ms: tuple[float, ...]
    trie_mb: tuple[float, ...] = ()


def curves(folder: Path) -> list[Curve]:
    """All three, each measured in turn."""
    beams = [Subject(num_beams=number) for number in BEAMS]
    longest = Subject(max_tokens=max(HISTORIES))
    catalogues = [Subject(num_items=number) for number in CATALOGUES]
    return [
        _curve("beams", BEAMS, [(subject, TOKENS) for subject in beams], folder),
        _curve("items of the history", HISTORIES, [(longest, tokens) for tokens in HISTORIES], folder),
        _curve("items of the catalogue", CATALOGUES, [(subject, TOKENS) for subject in catalogues], folder),
    ]


def rows(found: list[Curve]) -> Iterator[Row]:
    """Every point, and the growth that is promised."""
    for curve in found:
        for size, cost in zip(curve.sizes, curve.ms, strict=True):
            yield Row.reported(f"generator, {size:,} {curve.axis}: a user", cost, "ms")
    catalogue = found[-1]
    ratio = catalogue.ms[-1] / catalogue.ms[0]
    yield Row.at_most("generator: time of a user from 10,000 to 1,000,000 items", ratio, "×", 1.3)
    yield from _mask()
    trie = catalogue.trie_mb[-1]
    yield Row.at_most("trie of 1,000,000 items", trie, "MB", 150)


def _mask() -> Iterator[Row]:
    """A filter's mask over the trie, from the set of allowed items."""
    trie, rng = Subject(num_items=MASKED_ITEMS).table.trie, np.random.default_rng(0)
    allowed_N = rng.random(MASKED_ITEMS) < 0.3
    ms = 1e3 * in_turn({"mask": lambda: trie.node_mask(allowed_N)}, 10 * ROUNDS)["mask"].p50
    yield Row.at_most(f"filter over {MASKED_ITEMS:,} items to a mask over the trie", ms, "ms", 2)


def _curve(axis: str, sizes: tuple[int, ...], subjects: list[tuple[Subject, int]], folder: Path) -> Curve:
    rng = np.random.default_rng(0)
    tasks: dict[str, Task] = {}
    for size, (subject, tokens) in zip(sizes, subjects, strict=True):
        graph = session(subject.export("generator", folder))
        inputs = subject.inputs("generator", BATCH, tokens, rng)
        tasks[str(size)] = partial(graph.run, None, inputs)
    times = in_turn(tasks, ROUNDS)
    return Curve(
        axis,
        sizes,
        tuple(1e3 * times[str(size)].p50 / BATCH for size in sizes),
        tuple(subject.table.trie.nbytes / 1e6 for subject, _ in subjects),
    )
