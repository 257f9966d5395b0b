"""Ranked lists on disk, so that a contender is trained once and measured as often as one likes.

.baguni/quality/DATASET/
  C-seed0.npz  C-seed0.json     lists for every order of the test month; who made them, how, and how long it took
  C-seed0-orders3.npz           each user's first order, when only the newest 3 orders before it are known
  C-seed0-cold.npz              see ColdItems
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baguni.domain.errors import NotFoundError
from benchmarks.quality.measure import SETTINGS, Int64, Lists, Setting
from trainer.files import written_whole


@dataclass(frozen=True)
class Record:
    """How a contender's lists came about. `samples_per_s`: orders trained on, 0 where nothing is trained by
    steps; `ranking_ms`: both lists of an order, fitting included for the classic peers."""

    contender: str
    family: str
    description: str
    seed: int
    recipe: dict[str, Any] = field(default_factory=dict)
    training_s: float = 0.0
    samples_per_s: float = 0.0
    ranking_ms: float = 0.0
    notes: str = ""
    commit: str = ""
    date: str = ""
    machine: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ColdItems:
    """Lists of held-out items only, by a model that never saw them ordered: `query`: rows among the rolling queries."""

    held_out: Int64
    query: Int64
    top_Qk: Int64


class ListStore:
    """The lists of one data set."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, contender: str, seed: int, part: str = "") -> Path:
        """Where the lists lie; `part` is "orders3" or "cold"."""
        return self.folder / f"{slug(contender)}-seed{seed}{'-' if part else ''}{part}.npz"

    def has(self, contender: str, seed: int, part: str = "") -> bool:
        """Whether they are there."""
        return self.path(contender, seed, part).is_file()

    def save(self, contender: str, seed: int, lists: Lists, part: str = "") -> None:
        """Write lists; a half-written file never has their name."""
        self._write(self.path(contender, seed, part), {str(name): lists[name].astype(np.int32) for name in SETTINGS})

    def load(self, contender: str, seed: int, part: str = "") -> dict[Setting, Int64]:
        """Read lists."""
        with np.load(self._there(self.path(contender, seed, part))) as arrays:
            return {name: arrays[name].astype(np.int64) for name in SETTINGS}

    def save_cold(self, contender: str, seed: int, cold: ColdItems) -> None:
        """Write lists of held-out items."""
        self._write(self.path(contender, seed, "cold"), asdict(cold))

    def load_cold(self, contender: str, seed: int) -> ColdItems:
        """Read them."""
        with np.load(self._there(self.path(contender, seed, "cold"))) as arrays:
            return ColdItems(arrays["held_out"], arrays["query"], arrays["top_Qk"])

    def save_record(self, record: Record) -> None:
        """Write the record beside its lists."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.path(record.contender, record.seed).with_name(f"{slug(record.contender)}-seed{record.seed}.json")
        with written_whole(path) as file:
            file.write((json.dumps(asdict(record), indent=2) + "\n").encode())

    def records(self) -> list[Record]:
        """All records whose lists are there, by contender and seed."""
        found = [Record(**json.loads(path.read_text())) for path in self.folder.glob("*-seed*.json")]
        there = [record for record in found if self.has(record.contender, record.seed)]
        return sorted(there, key=lambda record: (record.contender, record.seed))

    def _write(self, path: Path, arrays: dict[str, NDArray[Any]]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]

    @staticmethod
    def _there(path: Path) -> Path:
        if not path.is_file():
            raise NotFoundError(f"{path} does not exist: run `baguni benchmark quality` without --report-only first")
        return path


def slug(name: str) -> str:
    """A name as a file name.

    >>> slug("frequency × recency + 0.1 EASE")
    'frequency-recency-0.1-EASE'
    """
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-")
