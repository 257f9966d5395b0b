"""The items of a release as vectors in Milvus: one collection per space, named by the release, never through an alias.

    items_<release>     item vectors of the collaborative space, inner product
    content_<release>   content vectors, unit length, inner product = cosine

Scalar fields, for filters, are dynamic: category, every prefix of its path, available, and each attribute.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray
from pymilvus import AsyncMilvusClient, DataType, MilvusClient
from pymilvus.exceptions import MilvusException

from baguni.catalog import CATEGORY_SEPARATOR, Item
from baguni.errors import ReleaseMismatchError, UnavailableError
from baguni.release import Release

INSERT_ROWS = 2_000
TIMEOUT_S = 60.0
INDEX = {"metric_type": "IP", "index_type": "HNSW", "params": {"M": 16, "efConstruction": 200}}
SEARCH = {"metric_type": "IP", "params": {}}
MIN_EF = 128  # recall of HNSW at the sizes a page needs
# Bounded staleness would wait for nothing either, but Eventually also never waits for a clock that stands still.
CONSISTENCY = "Eventually"


@dataclass(frozen=True)
class IndexedItem:
    """An item with its vectors, as it goes into the index."""

    item: Item
    item_vector: NDArray[np.float32]
    content_vector: NDArray[np.float32]


@dataclass(frozen=True)
class Hit:
    """One search result."""

    item_id: str
    score: float


def collection_names(release_id: str) -> tuple[str, str]:
    """The collaborative and the content collection."""
    return f"items_{release_id}", f"content_{release_id}"


class ItemIndex:
    """Synchronous: building, changing and dropping a release's collections."""

    def __init__(self, uri: str, release_id: str) -> None:
        self.release_id = release_id
        self._items, self._content = collection_names(release_id)
        try:
            self._client = MilvusClient(uri, timeout=10)
        except (MilvusException, grpc.RpcError) as error:
            raise _unavailable(error) from error

    def fill(self, release: Release) -> None:
        """Create both collections of a release and load them for search; a half-filled earlier try is replaced."""
        vectors = {self._items: release.item_vectors, self._content: release.content_vectors}
        try:
            for name, vectors_ND in vectors.items():
                if self._is_full(name, len(vectors_ND)):
                    self._client.load_collection(name, timeout=TIMEOUT_S)
                    continue
                self._create(name, vectors_ND.shape[1])
                for start in range(0, len(vectors_ND), INSERT_ROWS):
                    items = release.catalog.items[start : start + INSERT_ROWS]
                    rows = zip(items, vectors_ND[start : start + INSERT_ROWS], strict=True)
                    self._client.insert(name, [_row(item, vector) for item, vector in rows], timeout=TIMEOUT_S)
                self._client.flush(name, timeout=TIMEOUT_S)
                self._client.load_collection(name, timeout=TIMEOUT_S)
        except (MilvusException, grpc.RpcError) as error:
            raise _unavailable(error) from error

    def check(self) -> None:
        """Raise ReleaseMismatchError unless both collections exist and carry this release's id."""
        try:
            for name in (self._items, self._content):
                if not self._client.has_collection(name, timeout=TIMEOUT_S):
                    raise ReleaseMismatchError(f"Milvus has no collection {name}, needed by release {self.release_id}")
                carried = self._client.describe_collection(name, timeout=TIMEOUT_S).get("description")
                if carried != self.release_id:
                    raise ReleaseMismatchError(
                        f"Milvus' {name} belongs to release {carried}, expected {self.release_id}"
                    )
        except (MilvusException, grpc.RpcError) as error:
            raise _unavailable(error) from error

    def upsert(self, items: Sequence[IndexedItem]) -> None:
        """Add or replace items in both spaces."""
        try:
            self._client.upsert(self._items, [_row(i.item, i.item_vector) for i in items], timeout=TIMEOUT_S)
            self._client.upsert(self._content, [_row(i.item, i.content_vector) for i in items], timeout=TIMEOUT_S)
        except (MilvusException, grpc.RpcError) as error:
            raise _unavailable(error) from error

    def delete(self, item_ids: Sequence[str]) -> None:
        """Remove items from both spaces; ids that are not there change nothing."""
        try:
            for name in (self._items, self._content):
                self._client.delete(name, ids=list(item_ids), timeout=TIMEOUT_S)
        except (MilvusException, grpc.RpcError) as error:
            raise _unavailable(error) from error

    def drop(self) -> None:
        """Delete both collections."""
        try:
            for name in (self._items, self._content):
                self._client.drop_collection(name, timeout=TIMEOUT_S)
        except (MilvusException, grpc.RpcError) as error:
            raise _unavailable(error) from error

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _is_full(self, name: str, num_items: int) -> bool:
        if not self._client.has_collection(name, timeout=TIMEOUT_S):
            return False
        stored = int(self._client.get_collection_stats(name, timeout=TIMEOUT_S)["row_count"])
        return stored >= num_items

    def _create(self, name: str, dim: int) -> None:
        self._client.drop_collection(name, timeout=TIMEOUT_S)
        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=True, description=self.release_id)
        schema.add_field("item_id", DataType.VARCHAR, max_length=256, is_primary=True)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dim)
        index = self._client.prepare_index_params()
        index.add_index("vector", **INDEX)
        self._client.create_collection(
            name, schema=schema, index_params=index, consistency_level=CONSISTENCY, timeout=TIMEOUT_S
        )


class AsyncItemIndex:
    """Asynchronous: searching a release's collections. One a process and event loop."""

    def __init__(self, uri: str, release_id: str, timeout_s: float = 10.0) -> None:
        self._items, self._content = collection_names(release_id)
        try:
            self._client = AsyncMilvusClient(uri, timeout=timeout_s)
        except (MilvusException, grpc.RpcError) as error:
            raise _unavailable(error) from error

    async def search_items(
        self, vector: NDArray[np.float32], limit: int, expression: str, timeout_s: float
    ) -> list[Hit]:
        """Nearest in the collaborative space by inner product, best first, among items for which `expression` holds."""
        return await self._search(self._items, vector, limit, expression, timeout_s)

    async def search_content(
        self, vector: NDArray[np.float32], limit: int, expression: str, timeout_s: float
    ) -> list[Hit]:
        """Nearest in the content space by cosine, best first."""
        return await self._search(self._content, vector, limit, expression, timeout_s)

    async def close(self) -> None:
        """Close the channel."""
        await self._client.close()

    async def _search(
        self, name: str, vector: NDArray[np.float32], limit: int, expression: str, timeout_s: float
    ) -> list[Hit]:
        try:
            results = await self._client.search(
                name,
                data=[np.asarray(vector, np.float32).tolist()],
                limit=limit,
                filter=expression,
                search_params={**SEARCH, "params": {"ef": max(limit, MIN_EF)}},
                output_fields=["item_id"],
                consistency_level=CONSISTENCY,
                timeout=timeout_s,
            )
        except (MilvusException, grpc.RpcError) as error:
            raise _unavailable(error) from error
        return [Hit(hit["item_id"], float(hit["distance"])) for hit in results[0]]


def category_prefixes(item: Item) -> list[str]:
    """Every path that the item's category lies under, itself included."""
    path = item.category_path
    return [CATEGORY_SEPARATOR.join(path[: depth + 1]) for depth in range(len(path))]


def _row(item: Item, vector: NDArray[np.float32]) -> dict[str, Any]:
    return {
        **item.attributes,
        "item_id": item.item_id,
        "vector": np.asarray(vector, np.float32).tolist(),
        "category": item.category,
        "category_prefixes": category_prefixes(item),
        "available": item.available,
    }


def _unavailable(error: Exception) -> UnavailableError:
    message = getattr(error, "message", "") or str(error)
    return UnavailableError("milvus", " ".join(str(message).split())[:300])
