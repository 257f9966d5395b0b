"""How quickly the models answer on a CPU, beside what the core can do, ONNX Runtime without a server, and the usual ways:

python -m benchmarks.inference [RUN]      writes benchmarks/results/inference.json and docs/inference.png

RUN is a finished run on Complete Journey, whose trained model says what fewer bits cost.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.inference import growth, heads, overlap, peers, served
from benchmarks.inference.plots import plot
from benchmarks.result import REPOSITORY, RESULTS, Row, write_result

DEFAULT_RUN = Path(".baguni/quality/complete-journey/runs/seed0")


def rows(run: Path, folder: Path) -> Iterator[Row]:
    """Everything that is measured, the most certain first."""
    yield from heads.rows(folder)
    yield from peers.rows(folder)
    yield from overlap.rows(run, folder)
    curves = growth.curves(folder)
    yield from growth.rows(curves)
    plot(curves, REPOSITORY / "docs" / "inference.png")
    yield from served.rows(folder)


def main(run: str | None = None) -> None:
    """Measure, print each number as it comes, write the file."""
    torch.set_num_threads(1)
    found, path = [], Path(run) if run else DEFAULT_RUN
    overlap.require_run(path)
    with tempfile.TemporaryDirectory() as folder:
        for row in rows(path, Path(folder)):
            print(row, flush=True)
            found.append(row)
    write_result(RESULTS / "inference.json", "inference", "make bench-inference", found)


if __name__ == "__main__":
    main(*sys.argv[1:])
