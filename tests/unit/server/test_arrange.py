"""Caps and diversity against slow references."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from server.lists.arrange import dealt, diverse

VALUES = st.sampled_from(["a", "b", "c", None])


def dealt_slowly(values: list[list[str | None]], max_items: list[int]) -> list[int]:
    """Round after round, over all that is left."""
    order: list[int] = []
    left = list(range(len(values[0])))
    while left:
        counts: dict[tuple[int, str], int] = {}
        this_round = []
        for item in left:
            keys = [(cap, column[item]) for cap, column in enumerate(values) if column[item] is not None]
            if all(counts.get(key, 0) < max_items[key[0]] for key in keys):
                this_round.append(item)
                for key in keys:
                    counts[key] = counts.get(key, 0) + 1
        order += this_round
        left = [item for item in left if item not in this_round]
    return order


@given(st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=30), st.integers(1, 3), st.integers(1, 3))
def test_a_list_is_dealt_in_rounds(items: list[tuple[str | None, str | None]], one: int, other: int) -> None:
    values = [[first for first, _ in items], [second for _, second in items]]
    assert dealt(values, [one, other]).tolist() == dealt_slowly(values, [one, other])
    assert dealt(values[:1], [one]).tolist() == dealt_slowly(values[:1], [one])


def diverse_slowly(score: np.ndarray, vectors: np.ndarray, diversity: float) -> list[int]:
    worth = (score - score.min()) / (np.ptp(score) or 1.0)
    chosen: list[int] = []
    while len(chosen) < len(score):
        left = [item for item in range(len(score)) if item not in chosen]
        likeness = {item: max((float(vectors[item] @ vectors[c]) for c in chosen), default=0.0) for item in left}
        chosen.append(max(left, key=lambda item: (1 - diversity) * worth[item] - diversity * likeness[item]))
    return chosen


def test_diversity_is_maximal_marginal_relevance() -> None:
    rng = np.random.default_rng(0)
    for diversity in (0.1, 0.5, 0.9):
        vectors = rng.standard_normal((25, 4)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        score = -np.sort(-rng.standard_normal(25)).astype(np.float32)
        assert diverse(score, vectors, diversity).tolist() == diverse_slowly(score, vectors, diversity)


def test_no_diversity_changes_nothing_and_short_lists_are_no_trouble() -> None:
    score, vectors = np.asarray([3.0, 2.0, 1.0], np.float32), np.eye(3, dtype=np.float32)
    assert diverse(score, vectors, 0.0).tolist() == [0, 1, 2]
    assert diverse(score[:1], vectors[:1], 0.5).tolist() == [0]
    assert diverse(score[:0], vectors[:0], 0.5).tolist() == []
    assert diverse(np.ones(3, np.float32), vectors, 0.5).tolist() == [0, 1, 2]
