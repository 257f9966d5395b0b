"""The items of a release as vectors in Milvus: one collection per space, named by the release, never through an alias.

    items_<release>     item vectors of the collaborative space, inner product
    content_<release>   content vectors, unit length, inner product = cosine

What filters ask for are dynamic fields, see `filters.index_fields`. A collection is filled under another name and gets
its own at the end, so one that has the name is whole.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray
from pymilvus import AsyncMilvusClient, DataType, MilvusClient
from pymilvus.exceptions import MilvusException

from baguni.catalog import Item
from baguni.errors import ReleaseMismatchError, UnavailableError
from baguni.filters import index_fields
from baguni.release import Release

INSERT_ROWS = 2_000
MAX_ID_BYTES = 1_024  # ids have at most 256 characters, of at most 4 bytes
# pymilvus would retry 75 times without a timeout; with one, until it expires.
BUILD_TIMEOUT_S = 120.0  # creating and loading collections
WRITE_TIMEOUT_S = 3.0  # a consumer that is told to stop ends within a few of these
CONNECT_TIMEOUT_S = 5.0
METRIC = "IP"
INDEX = {"metric_type": METRIC, "index_type": "HNSW", "params": {"M": 16, "efConstruction": 200}}
MIN_EF = 128  # recall of HNSW at the sizes a page needs
CONSISTENCY = "Eventually"  # a Strong read waits for the newest write's timestamp: up to 200 ms on every search


@dataclass(frozen=True)
class IndexedItem:
    """An item with its vectors, as it goes into the index."""

    item: Item
    item_vector: NDArray[np.float32]
    content_vector: NDArray[np.float32]


@dataclass(frozen=True)
class Hits:
    """A search's result, best first."""

    item_ids: list[str]
    scores: list[float]

    def __len__(self) -> int:
        return len(self.item_ids)


def collection_names(release_id: str) -> tuple[str, str]:
    """The collaborative and the content collection."""
    return f"items_{release_id}", f"content_{release_id}"


class ItemIndex:
    """Synchronous: building, changing and dropping a release's collections. Every call raises UnavailableError if
    Milvus does not do it in time."""

    def __init__(self, uri: str, release_id: str) -> None:
        self.release_id = release_id
        self._items, self._content = collection_names(release_id)
        _silence_pymilvus()
        with _milvus_errors():
            self._client = MilvusClient(uri, timeout=CONNECT_TIMEOUT_S)

    def fill(self, release: Release) -> bool:
        """Make both collections of a release and load them for search. True if one was missing and is now built."""
        vectors = {self._items: release.item_vectors, self._content: release.content_vectors}
        with _milvus_errors():
            missing = [name for name in vectors if not self._client.has_collection(name, timeout=WRITE_TIMEOUT_S)]
            with ThreadPoolExecutor(len(vectors)) as pool:  # it is mostly waiting for Milvus
                list(pool.map(lambda name: self._build(name, release.catalog.items, vectors[name]), missing))
                list(pool.map(lambda name: self._client.load_collection(name, timeout=BUILD_TIMEOUT_S), vectors))
        return bool(missing)

    def check(self) -> None:
        """Raise ReleaseMismatchError unless both collections exist and carry this release's id."""
        with _milvus_errors():
            for name in (self._items, self._content):
                if not self._client.has_collection(name, timeout=WRITE_TIMEOUT_S):
                    raise ReleaseMismatchError(f"Milvus has no collection {name}, needed by release {self.release_id}")
                carried = self._client.describe_collection(name, timeout=WRITE_TIMEOUT_S).get("description")
                if carried != self.release_id:
                    raise ReleaseMismatchError(
                        f"Milvus' {name} belongs to release {carried!r}, expected {self.release_id!r}"
                    )

    def upsert(self, items: Sequence[IndexedItem]) -> None:
        """Add or replace items in both spaces."""
        with _milvus_errors():
            self._client.upsert(self._items, [_row(i.item, i.item_vector) for i in items], timeout=WRITE_TIMEOUT_S)
            self._client.upsert(self._content, [_row(i.item, i.content_vector) for i in items], timeout=WRITE_TIMEOUT_S)

    def delete(self, item_ids: Sequence[str]) -> None:
        """Remove items from both spaces; ids that are not there change nothing."""
        with _milvus_errors():
            for name in (self._items, self._content):
                self._client.delete(name, ids=list(item_ids), timeout=WRITE_TIMEOUT_S)

    def drop(self) -> None:
        """Delete both collections."""
        with _milvus_errors():
            for name in (self._items, self._content):
                self._client.drop_collection(name, timeout=BUILD_TIMEOUT_S)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _build(self, name: str, items: Sequence[Item], vectors_ND: NDArray[np.float32]) -> None:
        filling = f"{name}_filling"
        self._client.drop_collection(filling, timeout=BUILD_TIMEOUT_S)  # of a try that did not end
        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=True, description=self.release_id)
        schema.add_field("item_id", DataType.VARCHAR, max_length=MAX_ID_BYTES, is_primary=True)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=vectors_ND.shape[1])
        self._client.create_collection(filling, schema=schema, consistency_level=CONSISTENCY, timeout=BUILD_TIMEOUT_S)
        index = self._client.prepare_index_params()
        index.add_index("vector", **INDEX)
        self._client.create_index(filling, index, timeout=BUILD_TIMEOUT_S)  # empty yet: what comes in is indexed
        for start in range(0, len(items), INSERT_ROWS):
            rows = zip(items[start : start + INSERT_ROWS], vectors_ND[start : start + INSERT_ROWS], strict=True)
            self._client.insert(filling, [_row(item, vector) for item, vector in rows], timeout=BUILD_TIMEOUT_S)
        self._client.flush(filling, timeout=BUILD_TIMEOUT_S)
        self._client.rename_collection(filling, name, timeout=BUILD_TIMEOUT_S)


class AsyncItemIndex:
    """Asynchronous: searching a release's collections. One a process and event loop."""

    def __init__(self, uri: str, release_id: str) -> None:
        self._items, self._content = collection_names(release_id)
        _silence_pymilvus()
        self._client = AsyncMilvusClient(uri, timeout=CONNECT_TIMEOUT_S)  # connects at the first search

    async def search_items(self, vector: NDArray[np.float32], limit: int, expression: str, timeout_s: float) -> Hits:
        """Nearest in the collaborative space by inner product, best first, among items for which `expression` holds."""
        return await self._search(self._items, vector, limit, expression, timeout_s)

    async def search_content(self, vector: NDArray[np.float32], limit: int, expression: str, timeout_s: float) -> Hits:
        """Nearest in the content space by cosine, best first."""
        return await self._search(self._content, vector, limit, expression, timeout_s)

    async def close(self) -> None:
        """Close the channel."""
        await self._client.close()

    async def _search(
        self, name: str, vector: NDArray[np.float32], limit: int, expression: str, timeout_s: float
    ) -> Hits:
        with _milvus_errors():
            async with asyncio.timeout(timeout_s):  # connecting included, which has no timeout of its own
                (found,) = await self._client.search(
                    name,
                    data=[np.asarray(vector, np.float32)],
                    limit=limit,
                    filter=expression,
                    search_params={"metric_type": METRIC, "params": {"ef": max(limit, MIN_EF)}},
                    consistency_level=CONSISTENCY,
                    timeout=timeout_s,
                )
        return Hits(found.ids, found.distances)


def _row(item: Item, vector: NDArray[np.float32]) -> dict[str, Any]:
    return {**index_fields(item), "item_id": item.item_id, "vector": np.asarray(vector, np.float32).tolist()}


@contextmanager
def _milvus_errors() -> Iterator[None]:
    """pymilvus raises its own errors and gRPC's."""
    try:
        yield
    except (MilvusException, grpc.RpcError, TimeoutError) as error:
        message = getattr(error, "message", "") or str(error) or "no answer in time"
        raise UnavailableError("milvus", " ".join(str(message).split())[:300]) from error


def _silence_pymilvus() -> None:
    """It logs a traceback for every error, and then raises it: who calls decides what is worth a line."""
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
