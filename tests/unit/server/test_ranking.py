"""How candidates become a list, with arrays alone."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from server.lists.queries import Source
from server.lists.ranking import (
    Candidates,
    arranged,
    best_first,
    in_order,
    merged,
    page_places,
    rescored,
)

FEW_SCORES = st.floats(-2, 2, width=16).map(lambda score: round(score, 1))  # many are equal


@st.composite
def candidates(draw: st.DrawFn, min_size: int = 0) -> Candidates:
    """Distinct items with scores, many of them equal, and sources."""
    items = draw(st.lists(st.integers(0, 60), unique=True, min_size=min_size, max_size=30))
    scores = draw(st.lists(FEW_SCORES, min_size=len(items), max_size=len(items)))
    sources = draw(st.lists(st.sampled_from([2, 4, 6]), min_size=len(items), max_size=len(items)))
    return Candidates(np.asarray(items, np.int64), np.asarray(scores, np.float32), np.asarray(sources, np.int64))


def ties(some: Candidates) -> np.ndarray:
    """A number of each item that depends on the item alone, and is distinct."""
    return some.index_I * 7919 % 104_729


def ranked(some: Candidates) -> Candidates:
    return best_first(some, ties(some))


def test_an_item_that_two_sources_propose_has_both() -> None:
    index_I, source_I = merged({Source.HISTORY: np.array([7, 3]), Source.RETRIEVAL: np.array([3, 9])})
    assert index_I.tolist() == [3, 7, 9]
    assert source_I.tolist() == [1 << 2 | 1 << 1, 1 << 2, 1 << 1]


def test_items_that_are_given_in_order_keep_it() -> None:
    fixed = in_order(np.array([5, 2, 8]), Source.CANDIDATE)
    assert ranked(fixed).index_I.tolist() == [5, 2, 8]


@given(candidates(), st.randoms(use_true_random=False))
def test_the_order_is_total_and_does_not_depend_on_how_candidates_came(some: Candidates, shuffle) -> None:
    order = list(range(len(some)))
    shuffle.shuffle(order)
    first, second = ranked(some), ranked(some.take(np.asarray(order, np.int64)))
    assert first.index_I.tolist() == second.index_I.tolist()
    assert (np.diff(first.score_I) <= 0).all()
    assert sorted(first.index_I.tolist()) == sorted(some.index_I.tolist())


@given(candidates(), candidates())
def test_more_candidates_never_move_two_items_past_each_other(some: Candidates, others: Candidates) -> None:
    new = ~np.isin(others.index_I, some.index_I)
    more = Candidates(*(np.r_[getattr(some, f), getattr(others, f)[new]] for f in ("index_I", "score_I", "source_I")))
    before, after = ranked(some).index_I.tolist(), ranked(more).index_I.tolist()
    assert [item for item in after if item in set(before)] == before


@given(candidates(), st.lists(st.integers(0, 60)))
def test_what_is_not_permitted_is_not_ranked(some: Candidates, forbidden: list[int]) -> None:
    permitted_I = ~np.isin(some.index_I, forbidden)
    found = ranked(some.take(permitted_I))
    assert not set(found.index_I.tolist()) & set(forbidden)
    assert found.index_I.tolist() == [i for i in ranked(some).index_I.tolist() if i not in forbidden]


@given(candidates(min_size=1), st.integers(1, 40), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_the_generative_head_orders_the_first_items_and_leaves_the_others(some, num_first, share, seed) -> None:
    before = ranked(some)
    first = min(num_first, len(before))
    log_likelihood_C = np.random.default_rng(seed).normal(-8, 3, first).astype(np.float32)
    after = rescored(before, log_likelihood_C, share, ties(before)[:first])
    assert set(after.index_I[:first].tolist()) == set(before.index_I[:first].tolist())
    assert after.index_I[first:].tolist() == before.index_I[first:].tolist()
    assert (np.diff(after.score_I[:first]) <= 0).all()
    assert (after.score_I[first:] <= after.score_I[:first].min() + 1e-4).all()
    sources = dict(zip(before.index_I.tolist(), before.source_I.tolist(), strict=True))
    assert dict(zip(after.index_I.tolist(), after.source_I.tolist(), strict=True)) == sources


def test_a_share_of_one_is_the_generative_heads_order() -> None:
    before = in_order(np.array([5, 2, 8]), Source.RETRIEVAL)
    after = rescored(before, np.array([-3.0, -1.0, -2.0], np.float32), 1.0, ties(before))
    assert after.index_I.tolist() == [2, 8, 5]
    assert after.score_I.tolist() == [-1.0, -2.0, -3.0]


def test_caps_and_diversity_move_the_first_items_only() -> None:
    before = in_order(np.arange(5), Source.RETRIEVAL)
    dealt = arranged(before, 3, 0.0, None, [["a", "a", "b"]], [1])
    assert dealt.index_I.tolist() == [0, 2, 1, 3, 4]
    unit_CD = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    assert arranged(before, 3, 0.9, unit_CD, [], []).index_I.tolist() == [0, 2, 1, 3, 4]
    assert arranged(before, 3, 0.0, None, [], []).index_I.tolist() == [0, 1, 2, 3, 4]


@given(candidates(min_size=1), st.data())
def test_arranging_loses_and_doubles_nothing(some: Candidates, data: st.DataObject) -> None:
    before = ranked(some)
    first = data.draw(st.integers(0, len(before)))
    values = [data.draw(st.lists(st.sampled_from(["a", "b", None]), min_size=first, max_size=first))]
    unit_CD = np.tile(np.array([[1.0, 0.0]], np.float32), (first, 1))
    after = arranged(before, first, data.draw(st.sampled_from([0.0, 0.5])), unit_CD, values, [2])
    assert sorted(after.index_I.tolist()) == sorted(before.index_I.tolist())
    assert after.index_I[first:].tolist() == before.index_I[first:].tolist()


@given(st.integers(0, 50), st.lists(st.integers(1, 9), min_size=1, max_size=20))
def test_pages_are_one_long_page(num_items: int, sizes: list[int]) -> None:
    places, offset = [], 0
    for size in sizes:
        places += page_places(num_items, offset, size).tolist()
        offset += size
    assert places == page_places(num_items, 0, sum(sizes)).tolist() == list(range(min(num_items, sum(sizes))))
