"""Semantic IDs: the frozen table from items to codes, and the trie that the beam search walks.

An item's Semantic ID is a tuple of codes, one per level. The levels but the last come from the content (RQ-VAE,
Rajput et al. 2023, arXiv:2305.05065); the last is a suffix that makes the ID unique. Published IDs never move.
"""

# N = items, L = levels, V = nodes of the trie, M = its inner nodes and node 0, R = its leaves

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from baguni.domain.errors import InvalidInputError

ROOT = 1  # node 0 means "no such child"
SemanticIds = Mapping[str, tuple[int, ...]]
"""Codes by item id."""


@dataclass(frozen=True)
class SemanticIdTable:
    """codes_NL[item index] is the item's Semantic ID; `codebook_sizes` has one entry per level."""

    codes_NL: NDArray[np.int32]
    codebook_sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        num_items, levels = self.codes_NL.shape
        if levels != len(self.codebook_sizes):
            raise InvalidInputError(f"codes have {levels} levels, expected one per codebook: {self.codebook_sizes}")
        if num_items and ((self.codes_NL < 0) | (self.codes_NL >= self.codebook_sizes)).any():
            raise InvalidInputError(f"a code lies outside its codebook of sizes {self.codebook_sizes}")
        if len(np.unique(self.codes_NL, axis=0)) != num_items:
            raise InvalidInputError("two items share one Semantic ID, expected a suffix that makes each unique")

    def __len__(self) -> int:
        return len(self.codes_NL)

    @property
    def sha256(self) -> str:
        """Names the table: the same items with the same codes, in the same order."""
        header = repr(self.codebook_sizes).encode()
        return hashlib.sha256(header + np.ascontiguousarray(self.codes_NL, dtype="<i4").tobytes()).hexdigest()

    def save(self, path: Path | BinaryIO) -> None:
        """Write one .npz file."""
        np.savez_compressed(path, codes=self.codes_NL, codebook_sizes=np.asarray(self.codebook_sizes))

    @classmethod
    def load(cls, path: Path) -> SemanticIdTable:
        """Read what `save` wrote."""
        with np.load(path) as parts:
            return cls(parts["codes"].astype(np.int32), tuple(parts["codebook_sizes"].tolist()))

    @cached_property
    def trie(self) -> Trie:
        """The trie over all IDs."""
        return Trie.build(self.codes_NL)


@dataclass(frozen=True)
class Trie:
    """The prefix tree of all Semantic IDs, in two numbers a node: 8 bytes, so that a million items take some 20 MB.

    Nodes: 0 = none, 1 = root, then level by level in the order of their codes, leaves last. The children of a node
    therefore have consecutive numbers, and so have the leaves below it.

    first_child_M:   [inner nodes + 1] the children of node n are first_child_M[n] up to, not with, first_child_M[n + 1]
    code_V:          [nodes] the code that leads to each node; 0 for none and root
    level_starts:    the first node of each level, the root's first, and the number of nodes last
    item_R:          [N] the item of each leaf
    """

    first_child_M: NDArray[np.int32]
    code_V: NDArray[np.int32]
    level_starts: tuple[int, ...]
    item_R: NDArray[np.int32]

    @property
    def num_nodes(self) -> int:
        """Number of nodes, node 0 included."""
        return len(self.code_V)

    @property
    def first_leaf(self) -> int:
        """Leaf r, that of item `item_R[r]`, is node `first_leaf + r`."""
        return self.level_starts[-2]

    @property
    def nbytes(self) -> int:
        """Memory of the arrays."""
        return self.first_child_M.nbytes + self.code_V.nbytes + self.item_R.nbytes

    @cached_property
    def max_children(self) -> tuple[int, ...]:
        """The most children that a node has, for each level but the leaves'."""
        levels = zip(self.level_starts[:-2], self.level_starts[1:-1], strict=True)
        return tuple(int(np.diff(self.first_child_M[start : stop + 1]).max(initial=0)) for start, stop in levels)

    @classmethod
    def build(cls, codes_NL: NDArray[np.int32]) -> Trie:
        """The trie of unique IDs. Time grows with N · L, memory with the number of nodes."""
        num_items, levels = codes_NL.shape
        item_R = np.lexsort(codes_NL.T[::-1])
        sorted_RL = codes_NL[item_R]
        code_parts: list[NDArray[np.int32]] = [np.zeros(2, np.int32)]
        child_parts: list[NDArray[np.int64]] = [np.full(2, ROOT + 1)]
        level_starts = [ROOT, ROOT + 1]
        differs_R, first_row = np.zeros(num_items, bool), np.zeros(1, np.int64)
        for level in range(levels):
            differs_R[1:] |= sorted_RL[1:, level] != sorted_RL[:-1, level]
            differs_R[:1] = True
            next_first_row = np.flatnonzero(differs_R)
            if level > 0:
                child_parts.append(level_starts[-1] + np.searchsorted(next_first_row, first_row))
            code_parts.append(sorted_RL[next_first_row, level])
            level_starts.append(level_starts[-1] + len(next_first_row))
            first_row = next_first_row
        first_child_M = np.concatenate([*child_parts, [level_starts[-1]]]).astype(np.int32)
        return cls(first_child_M, np.concatenate(code_parts), tuple(level_starts), item_R.astype(np.int32))

    def node_mask(self, allowed_N: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return [nodes], whether each node has an allowed item below it: a filter, in the form in which the search uses it."""
        mask = np.zeros(self.num_nodes, bool)
        mask[self.first_leaf :] = allowed_N[self.item_R]
        for start, stop in zip(self.level_starts[-3::-1], self.level_starts[-2:0:-1], strict=True):
            if len(self.item_R):
                first_child = self.first_child_M[start : stop + 1]
                mask[start:stop] = np.logical_or.reduceat(mask[: first_child[-1]], first_child[:-1])
        return mask


def unique_suffixes(codes_NL: NDArray[np.int32], taken: Sequence[tuple[int, ...]] = ()) -> NDArray[np.int32]:
    """A suffix per row that no row with the same codes has: 0, 1, 2, … in row order, skipping `taken` full IDs.

    >>> unique_suffixes(np.array([[7, 3], [7, 3], [1, 1]], np.int32)).tolist()
    [0, 1, 0]
    """
    used: dict[tuple[int, ...], set[int]] = {}
    for full_id in taken:
        used.setdefault(tuple(full_id[:-1]), set()).add(full_id[-1])
    suffixes = np.empty(len(codes_NL), np.int32)
    next_free: dict[tuple[int, ...], int] = {}
    for row, codes in enumerate(map(tuple, codes_NL.tolist())):
        suffix = next_free.get(codes, 0)
        while suffix in used.get(codes, ()):
            suffix += 1
        suffixes[row], next_free[codes] = suffix, suffix + 1
    return suffixes


def write_ids(path: Path, ids: SemanticIds) -> None:
    """Write Semantic IDs by item id, as JSON."""
    path.write_text(json.dumps({item_id: list(codes) for item_id, codes in ids.items()}))


def read_ids(path: Path) -> SemanticIds:
    """Read what `write_ids` wrote."""
    return {item_id: tuple(codes) for item_id, codes in json.loads(path.read_text()).items()}
