"""Scores, against the formula item by item."""

from __future__ import annotations

import numpy as np
import pytest

from baguni.domain.scoring import candidate_codes, retrieval_scores, served_scores
from baguni.domain.signature import NUM_CANDIDATES


@pytest.mark.parametrize("seed", range(20))
def test_a_score_is_the_dot_product_and_the_repeat_score(seed: int) -> None:
    rng = np.random.default_rng(seed)
    num_items = int(rng.integers(1, 40))
    vectors_NV = rng.standard_normal((num_items, 5)).astype(np.float32)
    embedding_V = rng.standard_normal(5).astype(np.float32)
    known_S = rng.permutation(num_items)[: rng.integers(0, num_items + 1)]
    repeat_S = rng.standard_normal(len(known_S)).astype(np.float32)
    index_I = rng.permutation(num_items)[: rng.integers(0, num_items + 1)]
    gains = dict(zip(known_S.tolist(), repeat_S.tolist(), strict=True))
    expected = [float(vectors_NV[item] @ embedding_V) + gains.get(item, 0.0) for item in index_I.tolist()]
    found_I = retrieval_scores(embedding_V, vectors_NV[index_I], index_I, known_S, repeat_S)
    assert found_I.dtype == np.float32
    np.testing.assert_allclose(found_I, expected, rtol=1e-5, atol=1e-5)


def test_the_served_score_is_a_mix_of_both_heads() -> None:
    found = served_scores(np.array([2.0, 4.0]), np.array([-10.0, -20.0]), 0.1)
    np.testing.assert_allclose(found, [0.9 * 2 - 0.1 * 10, 0.9 * 4 - 0.1 * 20])


def test_missing_candidates_have_codes_of_minus_one() -> None:
    codes_CL = candidate_codes(np.array([[1, 2], [3, 4], [5, 6]], np.int32), np.array([2, 0]))
    assert codes_CL.shape == (NUM_CANDIDATES, 2)
    assert codes_CL[:3].tolist() == [[5, 6], [1, 2], [-1, -1]]
    assert (codes_CL[2:] == -1).all()
