"""The base of a run: what it takes over from a finished one, usually the release before it. Semantic IDs that are published,
and weights to start from.

RUN/base/
  base.json            where it comes from, its recipe, the moment at which its training ended, the sizes of its codebooks
  item_ids.json        item ids in the order of its item table
  published_ids.json   {item id: codes} of everything that ever had a Semantic ID
  weights.pt           {"model": …, "rqvae": …}
"""

# N = items of the run, M = items of the base, L = code levels

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from baguni.domain.errors import InvalidInputError
from baguni.domain.release import Release
from baguni.domain.semantic_ids import SemanticIds, read_ids, write_ids
from trainer.recipes import Recipe, recipe_of

State = dict[str, Tensor]
FOLDER = "base"
_IDENTITY = "item_tower.identity.weight"
_PER_SUFFIX = "code_embeddings.{level}.weight", "code_heads.{level}.weight", "code_heads.{level}.bias"


@dataclass(frozen=True)
class Facts:
    """Where a base comes from.

    name: of the release or run
    trained_until_ms: the moment at which its training ended, ms UTC; None if an older version made it, which did not say so
    codebook_sizes: number of codes of each level
    warm_runs: number of runs in a row that started from the weights of the one before
    unseen: the last evaluation, in this row of runs, on a month that the model had not seen
    """

    name: str
    recipe: Recipe
    trained_until_ms: int | None
    codebook_sizes: tuple[int, ...]
    warm_runs: int = 0
    unseen: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Base:
    """A base in a run's folder, as `write_base` wrote it."""

    path: Path

    @classmethod
    def of(cls, run_path: Path) -> Base | None:
        """Return the base of a run, None if it has none."""
        return cls(run_path / FOLDER) if (run_path / FOLDER).is_dir() else None

    @cached_property
    def facts(self) -> Facts:
        """Return where it comes from."""
        fields = json.loads((self.path / "base.json").read_text())
        fields |= {"recipe": recipe_of(fields["recipe"]), "codebook_sizes": tuple(fields["codebook_sizes"])}
        return Facts(**fields)

    @cached_property
    def published_ids(self) -> SemanticIds:
        """Return the Semantic ID of everything that ever had one."""
        return read_ids(self.path / "published_ids.json")

    @cached_property
    def _weights(self) -> dict[str, State]:
        return dict(torch.load(self.path / "weights.pt", weights_only=True))

    @property
    def rqvae_state(self) -> State:
        """Weights of the RQ-VAE."""
        return self._weights["rqvae"]

    def codes(self, item_ids: Sequence[str]) -> NDArray[np.int32]:
        """Return the published Semantic IDs [N, L] of some items; -1 for one that has none."""
        none = (-1,) * len(self.facts.codebook_sizes)
        codes = [self.published_ids.get(item_id, none) for item_id in item_ids]
        return np.asarray(codes, np.int32).reshape(len(item_ids), len(none))

    def model_state(self, fresh: State, item_ids: Sequence[str]) -> State:
        """Return the weights for a model of other items. `fresh`: the weights of that model before training, which are kept
        for items, and codes of the last level, that the base does not have. Raises InvalidInputError if sizes differ otherwise.
        """
        state = dict(self._weights["model"])
        rows = {item_id: row for row, item_id in enumerate(json.loads((self.path / "item_ids.json").read_text()))}
        row_N = np.asarray([rows.get(item_id, -1) for item_id in item_ids], np.int64)
        last = len(self.facts.codebook_sizes) - 1
        grows = {_IDENTITY, *(name.format(level=last) for name in _PER_SUFFIX)}
        differ = [
            name
            for name, new in fresh.items()
            if name not in state or state[name].shape[name in grows :] != new.shape[name in grows :]
        ]
        if differ:
            raise InvalidInputError(
                f"{self.facts.name} has other weights ({', '.join(differ[:3])}): train anew", "recipe"
            )
        for name in grows:
            old, new = state[name], fresh[name]
            row_K = np.where(np.arange(len(new)) < len(old), np.arange(len(new)), -1)
            state[name] = _taken_over(new, old, row_N if name == _IDENTITY and len(new) else row_K)
        return {name: state[name] for name in fresh}


def write_base(
    run_path: Path,
    facts: Facts,
    item_ids: Sequence[str],
    published_ids: SemanticIds,
    weights: Path | Mapping[str, State],
) -> Base:
    """Write the base of a run, whole or not at all. `weights`: themselves, or a file of them. A base of the same name that is
    there stays. Raises InvalidInputError if the run has begun with another base, or without one."""
    target = run_path / FOLDER
    before = Base.of(run_path)
    if before is not None and before.facts.name == facts.name:
        return before
    if (run_path / "recipe.json").is_file():
        begun = f"with {before.facts.name}" if before is not None else "without a base"
        raise InvalidInputError(f"{run_path} was begun {begun}, not with {facts.name}: use another --run directory")
    with tempfile.TemporaryDirectory(prefix=f".{FOLDER}-", dir=_made(run_path)) as folder:
        building = _made(Path(folder) / FOLDER)
        (building / "base.json").write_text(json.dumps(asdict(facts), indent=2) + "\n")
        (building / "item_ids.json").write_text(json.dumps(list(item_ids)))
        write_ids(building / "published_ids.json", published_ids)
        if isinstance(weights, Path):
            shutil.copyfile(weights, building / "weights.pt")
        else:
            torch.save(dict(weights), building / "weights.pt")
        if before is not None:
            shutil.rmtree(target)
        try:
            building.rename(target)
        except OSError:  # another process of the same training was first
            if not target.is_dir():
                raise
    return Base(target)


def base_on_release(run_path: Path, release: Release, more_ids: SemanticIds | None = None) -> Base:
    """Write the base of a run from a release. `more_ids`: Semantic IDs of items that are not in it; one that is taken, by the
    release or earlier in `more_ids`, is left out. Raises as `write_base`."""
    facts = Facts(
        release.release_id,
        recipe_of(json.loads((release.path / "recipe.json").read_text())),
        release.trained_until_ms,
        release.semantic_ids.codebook_sizes,
        int(release.manifest.get("warm_runs", 0)),
        release.metrics.get("unseen", {}) if "base" in release.metrics else release.metrics,
    )
    item_ids = [item.item_id for item in release.catalog.items]
    published = dict(release.published_ids)
    taken = set(published.values())
    for item_id, codes in (more_ids or {}).items():
        if item_id not in published and codes not in taken:
            published[item_id] = codes
            taken.add(codes)
    return write_base(run_path, facts, item_ids, published, release.path / "weights.pt")


def quantiser_of(state: State) -> str:
    """Return a name of the weights that give a text its codes. Where it is the same, two releases have the same codebooks."""
    digest = hashlib.sha256()
    for name in sorted(state):
        if not name.startswith(("decoder.", "category_head.")):
            digest.update(name.encode() + state[name].contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _taken_over(fresh: Tensor, old: Tensor, row_N: NDArray[np.int64]) -> Tensor:
    """Return `fresh` with the rows `row_N` of `old` where they are not -1."""
    taken, row = fresh.clone(), torch.from_numpy(row_N)
    taken[row >= 0] = old[row[row >= 0]]
    return taken
