"""Exact search: among some items, for what the vector index misses or cannot evaluate, and over all, in place of Milvus."""

# I = items, N = all items, V = vector dim, U = users

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from baguni.coalescing import Coalescer
from baguni.domain.scoring import Float32, Int64
from server.release.items import ItemTable, ItemVectors, Space

CHUNK = 5_000  # items scored before other requests may run: some milliseconds
MAX_USERS = 16  # that share a pass over the catalogue
FALLBACK_S = 0.05  # kept of a deadline for a search here after one by Milvus


async def nearest(
    vectors: Callable[[Int64], Float32], index_I: Int64, query_V: Float32, limit: int
) -> tuple[Int64, Float32]:
    """Return at most `limit` of the items with the largest inner products, best first, and their scores. `vectors` returns
    those of some items, [I, V]. Other requests run meanwhile."""
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


Found = tuple[Int64, Float32]
"""Indexes, best first, and scores."""


class Wanted(NamedTuple):
    """The search of one caller: at most `limit` of the items that are True in `allowed_N`."""

    query_V: Float32
    allowed_N: NDArray[np.bool_]
    limit: int


class ExactSearch:
    """Search the whole catalogue in one thread beside the event loop. Users who wait at the same time share a pass."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "exact search")
        self._coalescer: Coalescer[tuple[ItemTable, Space], Wanted, Found] = Coalescer("gateway", self._send, MAX_USERS)

    async def nearest(self, items: ItemTable, space: Space, wanted: Wanted, timeout_s: float) -> Found:
        """Return the items with the largest inner products, best first, and their scores. Raises UnavailableError, at the
        latest after `timeout_s`."""
        return await self._coalescer.call((items, space), wanted, timeout_s)

    async def close(self) -> None:
        """Cancel what waits."""
        await self._coalescer.close()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _send(self, key: tuple[ItemTable, Space], wanted: Sequence[Wanted], timeout_s: float) -> list[Found]:
        """Search for several users; each waits as long as it wants, so `timeout_s` has no use here."""
        items, space = key
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, best_of_all, items.all_vectors(space), wanted)


def best_of_all(vectors: ItemVectors, wanted: Sequence[Wanted]) -> list[Found]:
    """Return the best items of each user, best first, among those that are allowed, and their scores."""
    scores_UN = vectors.scores(np.stack([each.query_V for each in wanted]))
    return [_best(score_N, each.allowed_N, each.limit) for score_N, each in zip(scores_UN, wanted, strict=True)]


def _best(score_N: Float32, allowed_N: NDArray[np.bool_], limit: int) -> Found:
    left_I = np.flatnonzero(allowed_N[: len(score_N)])
    score_I = score_N[left_I]
    if len(left_I) > limit:
        kept = np.argpartition(-score_I, limit - 1)[:limit]
        left_I, score_I = left_I[kept], score_I[kept]
    order_I = np.argsort(-score_I, kind="stable")
    return left_I[order_I], score_I[order_I]
