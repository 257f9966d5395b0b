"""The items of a release as vectors in Milvus: one collection per space, named by the release, never through an alias.

    items_<release>     item vectors of the collaborative space, inner product
    content_<release>   content vectors, unit length, inner product = cosine

What filters ask for are dynamic fields, see `filters.index_fields`. A collection is filled under another name and gets
its own at the end, so one that has the name is whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymilvus import DataType, MilvusClient

from baguni.catalog import Item
from baguni.errors import ReleaseMismatchError
from baguni.filters import index_fields
from baguni.milvus import CONNECT_TIMEOUT_S, CONSISTENCY, METRIC, collection_names, milvus_errors, silence_pymilvus
from baguni.release import Release

INSERT_ROWS = 2_000
MAX_ID_BYTES = 1_024  # ids have at most 256 characters, of at most 4 bytes
# pymilvus would retry 75 times without a timeout; with one, until it expires.
BUILD_TIMEOUT_S = 120.0  # creating and loading collections
WRITE_TIMEOUT_S = 3.0  # a consumer that is told to stop ends within a few of these
INDEX = {"metric_type": METRIC, "index_type": "HNSW", "params": {"M": 16, "efConstruction": 200}}


@dataclass(frozen=True)
class IndexedItem:
    """An item with its vectors, as it goes into the index."""

    item: Item
    item_vector: NDArray[np.float32]
    content_vector: NDArray[np.float32]


class ItemIndex:
    """Synchronous: building, changing and dropping a release's collections. Every call raises UnavailableError if
    Milvus does not do it in time."""

    def __init__(self, uri: str, release_id: str) -> None:
        self.release_id = release_id
        self._items, self._content = collection_names(release_id)
        silence_pymilvus()
        with milvus_errors():
            self._client = MilvusClient(uri, timeout=CONNECT_TIMEOUT_S)

    def fill(self, release: Release) -> bool:
        """Make both collections of a release and load them for search. True if one was missing and is now built."""
        vectors = {self._items: release.item_vectors, self._content: release.content_vectors}
        with milvus_errors():
            missing = [name for name in vectors if not self._client.has_collection(name, timeout=WRITE_TIMEOUT_S)]
            with ThreadPoolExecutor(len(vectors)) as pool:  # it is mostly waiting for Milvus
                list(pool.map(lambda name: self._build(name, release.catalog.items, vectors[name]), missing))
                list(pool.map(lambda name: self._client.load_collection(name, timeout=BUILD_TIMEOUT_S), vectors))
        return bool(missing)

    def check(self) -> None:
        """Raise ReleaseMismatchError unless both collections exist and carry this release's id."""
        with milvus_errors():
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
        with milvus_errors():
            self._client.upsert(self._items, [_row(i.item, i.item_vector) for i in items], timeout=WRITE_TIMEOUT_S)
            self._client.upsert(self._content, [_row(i.item, i.content_vector) for i in items], timeout=WRITE_TIMEOUT_S)

    def delete(self, item_ids: Sequence[str]) -> None:
        """Remove items from both spaces; ids that are not there change nothing."""
        with milvus_errors():
            for name in (self._items, self._content):
                self._client.delete(name, ids=list(item_ids), timeout=WRITE_TIMEOUT_S)

    def drop(self) -> None:
        """Delete both collections."""
        with milvus_errors():
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


def _row(item: Item, vector: NDArray[np.float32]) -> dict[str, Any]:
    return {**index_fields(item), "item_id": item.item_id, "vector": np.asarray(vector, np.float32).tolist()}
