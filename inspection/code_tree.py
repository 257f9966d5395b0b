"""An item's Semantic ID as a path in the tree of codes: who else is on each branch."""

# N = items, L = code levels

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from baguni.domain.semantic_ids import SemanticIdTable

EXAMPLES = 6


@dataclass(frozen=True)
class Branch:
    """The items that share a prefix. `num_children`: how many different codes follow it, 0 at the end; `examples`: indexes of
    some of the other items, spread over the branch."""

    prefix: tuple[int, ...]
    num_items: int
    num_children: int
    examples: tuple[int, ...]


def path(table: SemanticIdTable, item: int, examples: int = EXAMPLES) -> list[Branch]:
    """From the root, the empty prefix, to the item itself."""
    codes_NL = table.codes_NL
    levels = codes_NL.shape[1]
    branches = []
    for depth in range(levels + 1):
        prefix = codes_NL[item, :depth]
        on_branch = np.flatnonzero((codes_NL[:, :depth] == prefix).all(axis=1))
        num_children = 0 if depth == levels else len(np.unique(codes_NL[on_branch, depth]))
        others = on_branch[on_branch != item]
        others = others[np.lexsort(codes_NL[others].T[::-1])]
        spread = np.unique(np.linspace(0, len(others) - 1, min(examples, len(others))).round().astype(np.int64))
        chosen = tuple(others[spread].tolist()) if len(others) else ()
        branches.append(Branch(tuple(prefix.tolist()), len(on_branch), num_children, chosen))
    return branches
