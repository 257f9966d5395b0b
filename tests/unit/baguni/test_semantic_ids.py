"""The table of Semantic IDs and its trie, against brute force."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from baguni.domain.errors import InvalidInputError
from baguni.domain.semantic_ids import ROOT, SemanticIdTable, Trie, unique_suffixes

SIZES = (3, 4, 5)
CODES = st.lists(st.tuples(*(st.integers(0, size - 1) for size in SIZES)), min_size=1, max_size=20, unique=True)


def table(codes: list[tuple[int, ...]]) -> SemanticIdTable:
    return SemanticIdTable(np.asarray(codes, np.int32), SIZES)


def child(trie: Trie, node: int, code: int) -> int:
    """The child of a node under a code, 0 where there is none."""
    children = range(trie.first_child_M[node], trie.first_child_M[node + 1])
    return next((c for c in children if trie.code_V[c] == code), 0)


def path_of(trie: Trie, codes: tuple[int, ...]) -> list[int]:
    """The nodes that spell the codes, from the root's child to the leaf."""
    nodes = [ROOT]
    for code in codes:
        nodes.append(child(trie, nodes[-1], code))
    return nodes[1:]


@given(CODES)
def test_walking_an_items_codes_ends_at_its_leaf(codes: list[tuple[int, ...]]) -> None:
    trie = table(codes).trie
    leaves = [path_of(trie, item)[-1] for item in codes]
    assert trie.item_R[np.asarray(leaves) - trie.first_leaf].tolist() == list(range(len(codes)))


@given(CODES)
def test_every_node_but_the_root_is_the_child_of_one(codes: list[tuple[int, ...]]) -> None:
    trie = table(codes).trie
    assert len(trie.first_child_M) == trie.first_leaf + 1
    assert trie.first_child_M[[0, ROOT]].tolist() == [ROOT + 1, ROOT + 1]  # node 0 has no child
    assert (np.diff(trie.first_child_M[ROOT:]) > 0).all()
    assert trie.first_child_M[-1] == trie.num_nodes


@given(CODES)
def test_children_stand_in_the_order_of_their_codes_and_are_counted(codes: list[tuple[int, ...]]) -> None:
    trie = table(codes).trie
    for level, most in enumerate(trie.max_children):
        nodes = range(trie.level_starts[level], trie.level_starts[level + 1])
        below = [trie.code_V[trie.first_child_M[n] : trie.first_child_M[n + 1]].tolist() for n in nodes]
        assert all(row == sorted(set(row)) for row in below)
        assert max(map(len, below)) == most


@given(CODES, st.data())
def test_only_ids_of_items_lead_anywhere(codes: list[tuple[int, ...]], data: st.DataObject) -> None:
    trie = table(codes).trie
    walked = data.draw(st.tuples(*(st.integers(0, size - 1) for size in SIZES)))
    node = ROOT
    for code in walked:
        node = child(trie, node, code)
    assert (node > 0) == (walked in codes)


@given(CODES, st.data())
def test_node_mask_equals_brute_force(codes: list[tuple[int, ...]], data: st.DataObject) -> None:
    trie = table(codes).trie
    allowed = np.asarray(data.draw(st.lists(st.booleans(), min_size=len(codes), max_size=len(codes))))
    expected = np.zeros(trie.num_nodes, bool)
    for item, ok in zip(codes, allowed, strict=True):
        if ok:
            expected[[ROOT, *path_of(trie, item)]] = True
    assert trie.node_mask(allowed).tolist() == expected.tolist()


def test_a_trie_of_two_items_that_share_a_code() -> None:
    trie = SemanticIdTable(np.asarray([[0, 1], [0, 0]], np.int32), (1, 2)).trie
    assert trie.first_child_M.tolist() == [2, 2, 3, 5]
    assert trie.code_V.tolist() == [0, 0, 0, 0, 1]
    assert trie.item_R.tolist() == [1, 0]
    assert (trie.first_leaf, trie.num_nodes, trie.max_children) == (3, 5, (1, 2))


def test_the_trie_of_a_million_items_takes_less_than_20_megabytes() -> None:
    codes_NL = np.random.default_rng(0).integers(0, 256, (1_000_000, 3))
    suffix_N = np.arange(len(codes_NL)) % 64
    codes = np.unique(np.c_[codes_NL, suffix_N], axis=0).astype(np.int32)
    assert Trie.build(codes).nbytes < 20e6


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=20), CODES)
def test_suffixes_make_ids_unique_and_are_the_lowest_free(
    rows: list[tuple[int, int]], taken: list[tuple[int, ...]]
) -> None:
    suffixes = unique_suffixes(np.asarray(rows, np.int32).reshape(-1, 2), taken)
    used = set(taken)
    for row, suffix in zip(rows, suffixes.tolist(), strict=True):
        assert (*row, suffix) not in used
        assert all((*row, lower) in used for lower in range(suffix))
        used.add((*row, suffix))


@given(CODES)
def test_a_saved_table_loads_unchanged(tmp_path_factory: pytest.TempPathFactory, codes: list[tuple[int, ...]]) -> None:
    path = tmp_path_factory.mktemp("table") / "semantic_ids.npz"
    original = table(codes)
    original.save(path)
    loaded = SemanticIdTable.load(path)
    assert (loaded.sha256, loaded.codebook_sizes) == (original.sha256, SIZES)


@given(CODES.filter(lambda codes: len(codes) > 1))
def test_the_hash_changes_with_the_order_of_items(codes: list[tuple[int, ...]]) -> None:
    assert table(codes).sha256 != table(codes[::-1]).sha256


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ([[0, 0, 0], [0, 0, 0]], "two items share one Semantic ID"),
        ([[0, 0, 5]], "outside its codebook"),
        ([[0, -1, 0]], "outside its codebook"),
        ([[0, 0]], "codes have 2 levels"),
    ],
)
def test_a_table_that_is_none_is_refused(codes: list[list[int]], message: str) -> None:
    wrong: NDArray[np.int32] = np.asarray(codes, np.int32)
    with pytest.raises(InvalidInputError, match=message):
        SemanticIdTable(wrong, SIZES)


def test_a_saved_file_is_what_the_path_says(tmp_path: Path) -> None:
    table([(0, 0, 0)]).save(tmp_path / "semantic_ids.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["semantic_ids.npz"]
