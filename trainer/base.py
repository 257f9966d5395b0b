"""What a run takes over from a finished one, usually the release before it: Semantic IDs that are published, and weights to
start from.

RUN/base/
  base.json            where it comes from, its recipe, the moment at which its training ended, the sizes of its codebooks
  item_ids.json        item ids in the order of its item table
  published_ids.json   {item id: codes} of everything that ever had a Semantic ID
  weights.pt           {"model": …, "rqvae": …}
"""

# N = items of the run, M = items of the base, L = code levels

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

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
    trained_until_ms: the moment at which its training ended, ms UTC
    codebook_sizes: number of codes of each level
    warm_runs: how many runs in a row started from the weights of the one before
    """

    name: str
    recipe: Recipe
    trained_until_ms: int
    codebook_sizes: tuple[int, ...]
    warm_runs: int = 0


@dataclass(frozen=True)
class Base:
    """What `write_base` wrote, in a run's folder."""

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
    """Write the base of a run, whole or not at all; one that is there stays. `weights`: themselves, or a file of them."""
    target, building = run_path / FOLDER, run_path / f".{FOLDER}-building"
    if target.is_dir():
        return Base(target)
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    (building / "base.json").write_text(json.dumps(asdict(facts), indent=2) + "\n")
    (building / "item_ids.json").write_text(json.dumps(list(item_ids)))
    write_ids(building / "published_ids.json", published_ids)
    if isinstance(weights, Path):
        shutil.copyfile(weights, building / "weights.pt")
    else:
        torch.save(dict(weights), building / "weights.pt")
    return Base(building.rename(target))


def base_on_release(run_path: Path, release: Release, more_ids: SemanticIds | None = None) -> Base:
    """Write the base of a run from a release. `more_ids`: Semantic IDs that items were given since. Raises InvalidInputError
    for a release that does not say until when it was trained."""
    if release.trained_until_ms is None:
        raise InvalidInputError(
            f"{release.release_id} does not say until when it was trained: an older version made it; train a release without "
            "a base first"
        )
    facts = Facts(
        release.release_id,
        recipe_of(json.loads((release.path / "recipe.json").read_text())),
        release.trained_until_ms,
        release.semantic_ids.codebook_sizes,
        int(release.manifest.get("warm_runs", 0)),
    )
    item_ids = [item.item_id for item in release.catalog.items]
    published = {**(more_ids or {}), **release.published_ids}
    return write_base(run_path, facts, item_ids, published, release.path / "weights.pt")


def _taken_over(fresh: Tensor, old: Tensor, row_N: NDArray[np.int64]) -> Tensor:
    """Return `fresh` with the rows `row_N` of `old` where they are not -1."""
    taken, row = fresh.clone(), torch.from_numpy(row_N)
    taken[row >= 0] = old[row[row >= 0]]
    return taken
