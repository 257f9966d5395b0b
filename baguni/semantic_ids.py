"""Semantic IDs: the frozen table from items to codes, and the trie that the beam search walks.

An item's Semantic ID is a tuple of codes, one per level. The levels but the last come from the content (RQ-VAE,
Rajput et al. 2023, arXiv:2305.05065); the last is a suffix that makes the ID unique. Published IDs never move.
"""

# N = items, L = levels, K = the largest codebook

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from baguni.errors import InvalidInputError

ROOT = 1  # node 0 means "no such child"


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

    def save(self, path: Path) -> None:
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
        return Trie.build(self.codes_NL, max(self.codebook_sizes))


@dataclass(frozen=True)
class Trie:
    """A dense child table. Nodes: 0 = none, 1 = root, then inner nodes level by level, then one leaf per item.

    child_MK:      [inner nodes, K] the child under each code, 0 where there is none
    parent_V:      [nodes] each node's parent, 0 for none and root
    first_leaf:    the leaf of item i is node `first_leaf + i`
    """

    child_MK: NDArray[np.int32]
    parent_V: NDArray[np.int32]
    first_leaf: int

    @property
    def num_nodes(self) -> int:
        """How many nodes there are, node 0 included."""
        return len(self.parent_V)

    @classmethod
    def build(cls, codes_NL: NDArray[np.int32], codebook_size: int) -> Trie:
        """The trie of unique IDs. Time and memory grow with N · L and inner nodes · K."""
        num_items, levels = codes_NL.shape
        node_N = np.full(num_items, ROOT, np.int64)
        edges: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]] = []
        next_node = ROOT + 1
        for level in range(levels - 1):
            key_N = node_N * codebook_size + codes_NL[:, level]
            keys, inverse = np.unique(key_N, return_inverse=True)
            children = next_node + np.arange(len(keys))
            edges.append((keys // codebook_size, keys % codebook_size, children))
            node_N, next_node = children[inverse], next_node + len(keys)
        leaves = next_node + np.arange(num_items)
        edges.append((node_N, codes_NL[:, -1].astype(np.int64), leaves))
        child = np.zeros((next_node, codebook_size), np.int32)
        parent = np.zeros(next_node + num_items, np.int32)
        for parents, codes, children in edges:
            child[parents, codes] = children
            parent[children] = parents
        return cls(child, parent, next_node)

    def node_mask(self, allowed_N: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which nodes have an allowed item below them, [nodes]: a filter, in the form in which the search uses it."""
        mask = np.zeros(self.num_nodes, bool)
        nodes = self.first_leaf + np.flatnonzero(allowed_N)
        while len(nodes):
            mask[nodes] = True
            nodes = np.unique(self.parent_V[nodes])
            nodes = nodes[nodes > 0]
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
