"""Exact search, beside a plain sort; users who share a pass get their own items."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from server.lists.exact import ExactSearch, Wanted, best_of_all, nearest
from server.release.items import ItemVectors

DIM = 6


def some_vectors(rng: np.random.Generator) -> tuple[ItemVectors, np.ndarray]:
    """Vectors of a release with changed and new items, and the same as one array."""
    num_trained, num_new = int(rng.integers(5, 60)), int(rng.integers(0, 5))
    base_TV = rng.standard_normal((num_trained, DIM)).astype(np.float32)
    changed = rng.permutation(num_trained)[: rng.integers(0, 4)]
    live_index_L = np.r_[changed, np.arange(num_trained, num_trained + num_new)]
    live_LV = rng.standard_normal((len(live_index_L), DIM)).astype(np.float32)
    all_NV = np.vstack([base_TV, np.zeros((num_new, DIM), np.float32)])
    all_NV[live_index_L] = live_LV
    return ItemVectors(base_TV, live_index_L, live_LV), all_NV


@pytest.mark.parametrize("seed", range(25))
def test_every_user_gets_the_best_items_that_are_allowed(seed: int) -> None:
    rng = np.random.default_rng(seed)
    vectors, all_NV = some_vectors(rng)
    wanted = [
        Wanted(
            rng.standard_normal(DIM).astype(np.float32),
            rng.random(len(all_NV)) < 0.7,
            int(rng.integers(1, 2 * len(all_NV))),
        )
        for _ in range(5)
    ]
    for each, (found_I, score_I) in zip(wanted, best_of_all(vectors, wanted), strict=True):
        score_N = all_NV @ each.query_V
        allowed = np.flatnonzero(each.allowed_N)
        expected = allowed[np.argsort(-score_N[allowed], kind="stable")][: each.limit]
        np.testing.assert_allclose(score_N[found_I], score_N[expected], rtol=1e-5)
        np.testing.assert_allclose(score_I, score_N[found_I], rtol=1e-4, atol=1e-5)
        assert len(set(found_I.tolist())) == len(expected)
        assert each.allowed_N[found_I].all()


async def test_users_who_wait_together_get_their_own_items() -> None:
    rng = np.random.default_rng(0)

    class Table:
        """The part of an item table that the search reads."""

        vectors, all_NV = some_vectors(rng)

        def all_vectors(self, space: str) -> ItemVectors:
            return self.vectors

    search, items = ExactSearch(), Table()
    everything_N = np.ones(len(items.all_NV), bool)
    embeddings = rng.standard_normal((50, DIM)).astype(np.float32)
    asked = [search.nearest(items, "items", Wanted(embedding_V, everything_N, 3), 30.0) for embedding_V in embeddings]
    for embedding_V, (found_I, _) in zip(embeddings, await asyncio.gather(*asked), strict=True):
        assert found_I.tolist() == np.argsort(-(items.all_NV @ embedding_V), kind="stable")[:3].tolist()
    await search.close()


async def test_search_among_some_items() -> None:
    rng = np.random.default_rng(1)
    all_NV = rng.standard_normal((50_000, DIM)).astype(np.float32)
    among_I = np.sort(rng.permutation(len(all_NV))[:45_000])
    query_V = rng.standard_normal(DIM).astype(np.float32)
    found_I, score_I = await nearest(lambda index_I: all_NV[index_I], among_I, query_V, 10)
    expected = among_I[np.argsort(-(all_NV[among_I] @ query_V), kind="stable")][:10]
    assert found_I.tolist() == expected.tolist()
    np.testing.assert_allclose(score_I, all_NV[expected] @ query_V, rtol=1e-5)
