"""Peers whose libraries need another NumPy: they are trained in .venv-peers (`make peers`), by scripts that know the files of a
folder and nothing of the project.

FOLDER/
  recipe.json                       fields of the recipe
  log.npz                           arrays to train on
  training.json                     written last: seconds, cpu_seconds, best_epoch, scores
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from baguni.domain.errors import BaguniError, InvalidInputError, NotFoundError
from benchmarks.result import REPOSITORY
from trainer.run import Progress

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

PYTHON = REPOSITORY / ".venv-peers" / "bin" / "python"
Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class PeerProcess:
    """A peer in its folder. `name`: for messages; `script`: called with a command and the folder."""

    name: str
    script: Path
    folder: Path

    def train(self, recipe: DataclassInstance, arrays: Callable[[], Arrays], progress: Progress) -> None:
        """Train it; a folder with a model of the same recipe is used as it is. Raises InvalidInputError for one with a model of
        another recipe, NotFoundError without the environment."""
        self.folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(asdict(recipe), indent=2) + "\n"
        kept = self.folder / "recipe.json"
        if kept.exists() and kept.read_text() != text:
            raise InvalidInputError(
                f"{self.folder} contains a {self.name} of another recipe: give another folder or remove it"
            )
        if not (self.folder / "training.json").exists():
            kept.write_text(text)
            np.savez(self.folder / "log.npz", allow_pickle=False, **arrays())
            self.run("train", progress)

    @cached_property
    def facts(self) -> dict[str, Any]:
        """Return seconds, cpu_seconds, best_epoch and the score of every epoch."""
        return dict(json.loads((self.folder / "training.json").read_text()))

    def run(self, command: str, progress: Progress) -> None:
        """Run the script in its environment; what it prints besides epochs is kept in the folder."""
        if not PYTHON.exists():
            raise NotFoundError(
                f"{PYTHON.parent.parent.name} does not exist: `make peers` makes it, {self.name} needs it"
            )
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment["CUDA_VISIBLE_DEVICES"] = ""  # small models; and on the same processor the same numbers
        with (
            (self.folder / f"{command}.log").open("w") as log,
            subprocess.Popen(
                [PYTHON, "-P", self.script, command, self.folder],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
            ) as process,
        ):
            for line in process.stdout or ():
                if line.startswith("{"):
                    epoch = json.loads(line)
                    progress(self.name, epoch["epoch"], epoch["max_epochs"], f"score {epoch['score']:.4f}")
        if process.returncode:
            raise BaguniError(f"{self.name} could not {command}: the last lines of {log.name} show why")
