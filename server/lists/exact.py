"""Exact search among given items, for what the vector index misses or cannot evaluate. It lets other requests run meanwhile."""

# I = items, V = vector dim

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np

from baguni.domain.scoring import Float32, Int64

CHUNK = 20_000  # items scored before other requests may run: one or two milliseconds


async def nearest(
    vectors: Callable[[Int64], Float32], index_I: Int64, query_V: Float32, limit: int
) -> tuple[Int64, Float32]:
    """Return at most `limit` of the items with the largest inner products, best first, and their scores. `vectors`: of items by
    index, [I, V]."""
    found_I, score_I = np.zeros(0, np.int64), np.zeros(0, np.float32)
    for start in range(0, len(index_I), CHUNK):
        if start:
            await asyncio.sleep(0)
        chunk_I = index_I[start : start + CHUNK]
        found_I = np.concatenate([found_I, chunk_I])
        score_I = np.concatenate([score_I, vectors(chunk_I) @ query_V])
        best = np.argsort(-score_I, kind="stable")[:limit]
        found_I, score_I = found_I[best], score_I[best]
    return found_I, score_I
