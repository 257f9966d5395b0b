"""The path of a Semantic ID."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from baguni.domain.semantic_ids import SemanticIdTable, unique_suffixes
from inspection.code_tree import Branch, path

CODES = np.array([[7, 3, 0], [7, 3, 1], [7, 5, 0], [1, 1, 0]], np.int32)


def test_each_prefix_says_how_many_items_share_it_what_follows_and_some_of_them() -> None:
    assert path(SemanticIdTable(CODES, (8, 8, 8)), 0) == [
        Branch((), 4, 2, (3, 1, 2)),
        Branch((7,), 3, 2, (1, 2)),
        Branch((7, 3), 2, 2, (1,)),
        Branch((7, 3, 0), 1, 0, ()),
    ]


def test_examples_are_spread_over_a_large_branch() -> None:
    codes = np.stack([np.arange(100), np.zeros(100)], axis=1).astype(np.int32)
    root = path(SemanticIdTable(codes, (100, 1)), 99, examples=3)[0]
    assert root.examples == (0, 49, 98)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40), st.data())
def test_a_path_narrows_to_the_item_alone(content: list[tuple[int, int]], data: st.DataObject) -> None:
    codes = np.array(content, np.int32)
    full = np.c_[codes, unique_suffixes(codes)]
    item = data.draw(st.integers(0, len(full) - 1))
    branches = path(SemanticIdTable(full, (4, 4, 64)), item)
    sizes = [branch.num_items for branch in branches]
    assert sizes[0] == len(full)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == 1
    assert branches[-1].prefix == tuple(full[item].tolist())
    for branch in branches:
        assert item not in branch.examples
        assert all(tuple(full[other][: len(branch.prefix)]) == branch.prefix for other in branch.examples)
