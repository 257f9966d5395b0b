"""What a catalogue costs as it grows: the index, searches in it, the trie, and a gateway process that knows the items."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from numpy.typing import NDArray

from baguni.clients.item_index import ItemIndex
from baguni.clients.item_search import AsyncItemIndex
from baguni.domain.catalog import Catalog, Item
from baguni.domain.release import Release, load_release, write_manifest
from baguni.domain.semantic_ids import SemanticIdTable, unique_suffixes
from deploy.local.stack import LocalStack

DIM, K, QUERIES, ROUNDS, AT_A_TIME = 128, 100, 300, 3, 16
ITEMS_A_CLUSTER = 500  # a bigger catalogue has more kinds of things, not more of each
SETTLED, SETTLE_S = 3.0, 1_800.0  # Milvus builds graphs after it says that it has loaded; it is idle when that is done
CPU_IDLE = 20.0  # percent of a core


@dataclass(frozen=True)
class CatalogueCost:
    """`build_s`: until searches are answered from the finished index; `milvus_cpu_ms`: of a search, all of Milvus; memory in
    MB."""

    items: int
    build_s: float
    search_ms: float
    searches_a_second: float
    milvus_cpu_ms: float
    recall: float
    milvus_mb: float
    trie_mb: float
    gateway_mb: float


def measure(stack: LocalStack, folder: Path, count: int) -> CatalogueCost:
    """Of `count` synthetic items."""
    release, queries_QD = synthetic(folder / str(count), np.random.default_rng(0), count)
    uri, milvus = stack.settings.endpoints().milvus_uri, Milvus(stack)
    started = time.monotonic()
    index = ItemIndex(uri, release.release_id, release.catalog)
    index.fill(release)
    milvus.wait_until_idle()
    build_s = time.monotonic() - started - SETTLED
    recall, search_ms, rate, cpu_ms = asyncio.run(_searched(uri, release, queries_QD, milvus))
    found = CatalogueCost(
        count,
        build_s,
        search_ms,
        rate,
        cpu_ms,
        recall,
        milvus.memory_mb(),
        sum(part.nbytes for part in vars(release.semantic_ids.trie).values() if hasattr(part, "nbytes")) / 1e6,
        _gateway_mb(release.path),
    )
    index.drop()
    index.close()
    return found


class Milvus:
    """The stack's Milvus, as the machine sees it."""

    def __init__(self, stack: LocalStack) -> None:
        place = str(stack.settings.root)
        self._process = next(
            process
            for process in psutil.process_iter()
            if place in " ".join(_command(process)) and "standalone" in _command(process)
        )

    def cpu_s(self) -> float:
        """So far."""
        times = self._process.cpu_times()
        return float(times.user + times.system)

    def memory_mb(self) -> float:
        """Now."""
        return float(self._process.memory_info().rss / 1e6)

    def wait_until_idle(self) -> None:
        """Until it has done what it does by itself."""
        deadline = time.monotonic() + SETTLE_S
        while self._process.cpu_percent(SETTLED) > CPU_IDLE:
            assert time.monotonic() < deadline, "Milvus does not come to rest"


def synthetic(path: Path, rng: np.random.Generator, count: int) -> tuple[Release, NDArray[np.float32]]:
    """[count] items in clusters, with Semantic IDs of three levels and a suffix, and queries near to some of them."""
    path.mkdir()
    cluster_N = rng.integers(0, max(count // ITEMS_A_CLUSTER, 1), count)
    centres = rng.standard_normal((int(cluster_N.max()) + 1, DIM), dtype=np.float32)
    vectors = centres[cluster_N] + rng.standard_normal((count, DIM), dtype=np.float32)
    codes = np.stack([cluster_N % 256, cluster_N // 256 % 256, rng.integers(0, 256, count)], axis=1).astype(np.int32)
    suffix = unique_suffixes(codes)
    table = SemanticIdTable(np.c_[codes, suffix].astype(np.int32), (256, 256, 256, int(suffix.max()) + 1))
    table.save(path / "semantic_ids.npz")
    items = [Item(str(number), "synthetic item", ("A", f"B{number % 200}"), {}) for number in range(count)]
    Catalog(items, {}).save(path / "catalog.parquet")
    np.save(path / "item_vectors.npy", vectors)
    np.save(path / "content_vectors.npy", vectors[:, :8] / np.linalg.norm(vectors[:, :8], axis=1, keepdims=True))
    np.save(path / "popularity.npy", np.ones(count, np.float32))
    queries = vectors[rng.choice(count, QUERIES)] + 0.3 * rng.standard_normal((QUERIES, DIM), dtype=np.float32)
    return write_manifest(path, {"release_id": f"r_scale{count}"}), queries.astype(np.float32)


async def _searched(
    uri: str, release: Release, queries_QD: NDArray[np.float32], milvus: Milvus
) -> tuple[float, float, float, float]:
    """Recall, median ms one at a time, searches a second with AT_A_TIME in flight, and CPU ms of Milvus for each of these.
    What is nearest is found out afterwards: to read a million vectors between two searches would empty the caches."""
    index = AsyncItemIndex(uri, release.release_id)
    found, took = [], []
    for _ in range(ROUNDS):
        for query_D in queries_QD:
            started = time.perf_counter()
            found.append(await index.search_items(query_D, K, "", timeout_s=30.0))
            took.append(time.perf_counter() - started)
    recalls = []  # of the first round
    for query_D, hits in zip(queries_QD, found[:QUERIES], strict=True):
        best = np.argpartition(-(release.item_vectors @ query_D), K - 1)[:K]
        recalls.append(len(np.intersect1d(best, hits.key_I)) / K)
    waiting = list(range(4 * QUERIES))

    async def search() -> None:
        while waiting:
            await index.search_items(queries_QD[waiting.pop() % QUERIES], K, "", timeout_s=30.0)

    started, cpu_s = time.perf_counter(), milvus.cpu_s()
    await asyncio.gather(*(search() for _ in range(AT_A_TIME)))
    took_s, spent_s = time.perf_counter() - started, milvus.cpu_s() - cpu_s
    await index.close()
    return float(np.mean(recalls)), 1e3 * float(np.median(took)), 4 * QUERIES / took_s, 1e3 * spent_s / (4 * QUERIES)


def _gateway_mb(path: Path) -> float:
    """What a process that serves the items holds, by a process that does nothing else."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.scale.items", str(path)], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


if __name__ == "__main__":
    import server.worker  # noqa: F401 - a gateway process has imported it
    from server.release.items import ItemTable

    table = ItemTable(load_release(Path(sys.argv[1])))
    print(psutil.Process().memory_info().rss / 1e6)
