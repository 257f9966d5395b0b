"""How good and how quick the vector index is, with and without filters:

python -m benchmarks.index [RUN]      writes benchmarks/results/index.json

A hundred thousand synthetic items in 200 clusters, which is hard for a graph, and the items of RUN, a finished run on Complete
Journey; each in a standalone Milvus on this machine, beside exact search in NumPy.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from baguni.clients.item_index import ItemIndex
from baguni.clients.item_search import AsyncItemIndex
from baguni.domain import filters
from baguni.domain.catalog import Catalog, Item
from baguni.domain.filters import Filter
from baguni.domain.release import Release, write_manifest
from benchmarks.gateway.scene import DATA, DEFAULT_RUN
from benchmarks.result import RESULTS, Row, write_result
from deploy.local.settings import StackSettings
from deploy.local.stack import LocalStack
from server.settings import ServerSettings
from trainer.export import build_release
from trainer.recipes import recipe_named
from trainer.run import Run

ITEMS, DIM, CLUSTERS, QUERIES, K = 100_000, 128, 200, 100, 100
TYPES = {"brand": "string", "price": "number"}
SHARES = (0.9, 0.7, 0.5, 0.3, 0.1, 0.01)
BAR = 0.98


def synthetic(path: Path, rng: np.random.Generator) -> Release:
    """Items of clusters, with a price whose distribution is known: an item's number over ITEMS, shuffled."""
    path.mkdir()
    centres = rng.standard_normal((CLUSTERS, DIM))
    vectors = (centres[rng.integers(0, CLUSTERS, ITEMS)] + rng.standard_normal((ITEMS, DIM))).astype(np.float32)
    prices, brands = rng.permutation(ITEMS) / ITEMS, rng.zipf(1.3, ITEMS) % 1_000
    rows = zip(range(ITEMS), prices.tolist(), brands.tolist(), strict=True)
    items = [Item(str(n), "synthetic", ("A", "B"), {"price": price, "brand": f"b{brand}"}) for n, price, brand in rows]
    Catalog(items, TYPES).save(path / "catalog.parquet")
    np.save(path / "item_vectors.npy", vectors)
    np.save(path / "content_vectors.npy", vectors[:, :8] / np.linalg.norm(vectors[:, :8], axis=1, keepdims=True))
    return write_manifest(path, {"release_id": "r_synthetic"})


class Search:
    """Recall and latency of a release's collection."""

    def __init__(self, uri: str, release: Release, queries_QD: NDArray[np.float32]) -> None:
        self._uri, self._release, self._queries_QD = uri, release, queries_QD
        index = ItemIndex(uri, release.release_id, release.catalog)
        index.fill(release)
        index.close()

    def measure(self, conditions: Sequence[Filter] = ()) -> tuple[float, float]:
        """Mean recall@K and median latency in ms."""
        return asyncio.run(self._measure(conditions))

    async def _measure(self, conditions: Sequence[Filter]) -> tuple[float, float]:
        allowed = np.flatnonzero(filters.mask(conditions, self._release.catalog.items))
        scores_QN = self._queries_QD @ self._release.item_vectors[allowed].T
        expression, index = filters.expression(conditions), AsyncItemIndex(self._uri, self._release.release_id)
        recalls, seconds = [], []
        for query_D, score_N in zip(self._queries_QD, scores_QN, strict=True):
            started = time.perf_counter()
            hits = await index.search_items(query_D, K, expression, timeout_s=10.0)
            seconds.append(time.perf_counter() - started)
            best = allowed[np.argpartition(-score_N, K - 1)[:K]]
            recalls.append(len(np.intersect1d(best, hits.key_I)) / K)
        await index.close()
        return float(np.mean(recalls)), 1e3 * float(np.median(seconds))


def rows(uri: str, run: Path, folder: Path) -> Iterator[Row]:
    """Everything that is measured."""
    rng = np.random.default_rng(0)
    real = build_release(Run(run, DATA, recipe_named("complete-journey")), folder / "real")
    users = real.golden_queries["user_embedding"].reshape(-1, real.signature.vector_dim)
    queries = users[rng.choice(len(users), min(QUERIES, len(users)), replace=False)]
    recall, ms = Search(uri, real, queries).measure()
    what = f"recall@{K} of {real.signature.num_items:,} items of Complete Journey, users' vectors"
    yield Row.at_least(what, recall, "", BAR, ("median, ms", ms))
    made = synthetic(folder / "synthetic", rng)
    queries = made.item_vectors[rng.choice(ITEMS, QUERIES)] + 0.3 * rng.standard_normal((QUERIES, DIM))
    search = Search(uri, made, queries.astype(np.float32))
    recall, ms = search.measure()
    yield Row.at_least(f"recall@{K} of {ITEMS:,} synthetic items", recall, "", BAR, ("median, ms", ms))
    exact_items = ServerSettings().exact_items
    for share in SHARES:
        recall, ms = search.measure([Filter("price", bounds=(None, share))])
        what, median = f"the same, a filter that lets {share:.0%} through", ("median, ms", ms)
        if share < 0.5 and share * ITEMS <= exact_items:
            yield Row.reported(f"{what} (the gateway answers this one exactly)", recall, "", median)
        else:
            yield Row.at_least(what, recall, "", BAR, median)


def main(run: str | None = None) -> None:
    """Measure and write the file."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stack = LocalStack(StackSettings.on_free_ports(folder / "stack"))
        found = []
        try:
            stack.start_servers()
            for row in rows(stack.settings.endpoints().milvus_uri, Path(run) if run else DEFAULT_RUN, folder):
                print(row, flush=True)
                found.append(row)
        finally:
            stack.stop()
    write_result(RESULTS / "index.json", "index", "make bench-index", found)


if __name__ == "__main__":
    main(*sys.argv[1:])
