"""The items of a release as vectors in Milvus: one collection per space, named by the release, never through an alias.

    items2_<release>    item vectors of the collaborative space, inner product; all of one length, by a further dimension
    content2_<release>  content vectors, unit length, inner product = cosine

A graph finds the largest inner products badly where lengths differ: popular items are long, and everybody's neighbours. With a
last dimension that makes every item as long as the longest, and is 0 in the query, inner products stay what they are and
their order is that of distances (Bachrach et al. 2014, doi:10.1145/2645710.2645741). Up to FLAT_ITEMS there is no graph at
all (ADR 16).

What filters ask for are typed fields, of the catalogue's declared attributes: a third of the time of dynamic ones (ADR 14).
Scalar indexes on them changed nothing at 100,000 items. A collection is filled under another name and gets its own at the
end, so one that has the name is whole; which release it is of stands in its properties.
"""

# N = items, D = a space's dimensions, I = items that changed

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymilvus import CollectionSchema, DataType, MilvusClient

from baguni.clients.milvus import (
    CHANNEL,
    CONNECT_TIMEOUT_S,
    CONSISTENCY,
    METRIC,
    collection_names,
    milvus_errors,
    silence_pymilvus,
)
from baguni.domain.catalog import Catalog, Item
from baguni.domain.errors import ReleaseMismatchError
from baguni.domain.filters import KEY, field_kinds, index_fields
from baguni.domain.item_keys import ItemKeys
from baguni.domain.release import Release

INSERT_ROWS = 2_000
# pymilvus would retry 75 times without a timeout; with one, until it expires.
BUILD_TIMEOUT_S = 120.0  # creating and loading collections
WRITE_TIMEOUT_S = 3.0  # a consumer that is told to stop ends within a few of these
MAX_TEXT_BYTES, MAX_LEVELS = 65_535, 64
MAX_TYPED = 50  # of Milvus' 64 fields; attributes beyond are dynamic fields, with the same values
RELEASE, LENGTH = "baguni.release_id", "baguni.vector_length"
FLAT_ITEMS = 20_000  # nearly as quick without a graph, and exact
FLAT = {"metric_type": METRIC, "index_type": "FLAT"}
GRAPH = {"metric_type": METRIC, "index_type": "HNSW", "params": {"M": 16, "efConstruction": 200}}
INDEX_TIMEOUT_S, LOOK_S = 7_200.0, 0.5  # a million items take two cores a quarter of an hour


@dataclass(frozen=True)
class IndexedItem:
    """An item with its vectors, as it goes into the index."""

    item: Item
    item_vector: NDArray[np.float32]
    content_vector: NDArray[np.float32]


class ItemIndex:
    """Build, change and drop a release's collections; synchronous. `catalog`: the release's, needed for everything but `check`
    and `drop`. Every call raises UnavailableError if Milvus does not do it in time."""

    def __init__(self, uri: str, release_id: str, catalog: Catalog | None = None) -> None:
        self.release_id = release_id
        self._types = dict(catalog.attribute_types) if catalog else {}
        self._catalog_keys = ItemKeys(catalog.index) if catalog else None
        self._items, self._content = collection_names(release_id)
        self._length: float | None = None
        silence_pymilvus()
        with milvus_errors():
            self._client = MilvusClient(uri, timeout=CONNECT_TIMEOUT_S, grpc_options=dict(CHANNEL))

    def fill(self, release: Release, on_stage: Callable[[str], None] = lambda stage: None) -> bool:
        """Make both collections of a release, their graphs included, and load them for search. True if one was missing and is
        now built. Without its graph a collection answers too, slowly and worse."""
        self._length = float(np.linalg.norm(release.item_vectors, axis=1).max(initial=0.0))
        vectors = {self._items: lengthened(release.item_vectors, self._length), self._content: release.content_vectors}
        with milvus_errors():
            missing = [
                name for name in vectors if not (self._is_there(name) and self._is_current(self._described(name)))
            ]
            with ThreadPoolExecutor(len(vectors)) as pool:  # it is mostly waiting for Milvus
                list(pool.map(lambda name: self._build(name, release.catalog.items, vectors[name]), missing))
                self._await_graphs([_filling(name) for name in missing], len(release.catalog), on_stage)
                for name in missing:  # one after the other: the embedded Milvus loses names otherwise
                    self._client.drop_collection(name, timeout=BUILD_TIMEOUT_S)  # one with other fields
                    self._client.rename_collection(_filling(name), name, timeout=BUILD_TIMEOUT_S)
                list(pool.map(lambda name: self._client.load_collection(name, timeout=BUILD_TIMEOUT_S), vectors))
        return bool(missing)

    def check(self) -> None:
        """Raise ReleaseMismatchError unless both collections exist and carry this release's id."""
        with milvus_errors():
            for name in (self._items, self._content):
                if not self._is_there(name):
                    raise ReleaseMismatchError(f"Milvus has no collection {name}, needed by release {self.release_id}")
                described = self._described(name)
                carried = described.get("properties", {}).get(RELEASE)
                if carried != self.release_id:
                    raise ReleaseMismatchError(
                        f"Milvus' {name} belongs to release {carried!r}, expected {self.release_id!r}"
                    )
                if not self._is_current(described):
                    raise ReleaseMismatchError(
                        f"Milvus' {name} was filled by an older version: activate the release again"
                    )

    def upsert(self, items: Sequence[IndexedItem]) -> None:
        """Add or replace items in both spaces."""
        with milvus_errors():
            if self._length is None:
                self._length = float(self._described(self._items)["properties"][LENGTH])
            vectors_ID = lengthened(np.stack([i.item_vector for i in items]), self._length)
            rows = [self._row(i.item, vector_D) for i, vector_D in zip(items, vectors_ID, strict=True)]
            self._client.upsert(self._items, rows, timeout=WRITE_TIMEOUT_S)
            self._client.upsert(
                self._content, [self._row(i.item, i.content_vector) for i in items], timeout=WRITE_TIMEOUT_S
            )

    def delete(self, item_ids: Sequence[str]) -> None:
        """Remove items from both spaces; ids that are not there change nothing."""
        keys = self._keys.of(item_ids)
        with milvus_errors():
            for name in (self._items, self._content):
                self._client.delete(name, ids=keys, timeout=WRITE_TIMEOUT_S)

    def drop(self) -> None:
        """Delete both collections."""
        with milvus_errors():
            for name in (self._items, self._content):
                self._client.drop_collection(name, timeout=BUILD_TIMEOUT_S)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    @property
    def _keys(self) -> ItemKeys:
        assert self._catalog_keys is not None, "filling and changing need the release's catalogue"
        return self._catalog_keys

    def _is_there(self, name: str) -> bool:
        return bool(self._client.has_collection(name, timeout=WRITE_TIMEOUT_S))

    def _is_current(self, described: Mapping[str, Any]) -> bool:
        """Return whether a collection has the key, the fields that filters need and vectors of one length."""
        fields = {field["name"] for field in described["fields"]}
        return {KEY, *self._typed_fields()} <= fields and LENGTH in described.get("properties", {})

    def _described(self, name: str) -> dict[str, Any]:
        return dict(self._client.describe_collection(name, timeout=WRITE_TIMEOUT_S))

    def _typed_fields(self) -> dict[str, str]:
        kinds = field_kinds(self._types)
        return dict(list(kinds.items())[-MAX_TYPED:])  # the last are every catalogue's

    def _schema(self, dim: int) -> CollectionSchema:
        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=True)
        schema.add_field(KEY, DataType.INT64, is_primary=True)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dim)
        for field, kind in self._typed_fields().items():
            if kind == "string":
                schema.add_field(field, DataType.VARCHAR, max_length=MAX_TEXT_BYTES)
            elif kind == "strings":
                limits = {"max_capacity": MAX_LEVELS, "max_length": MAX_TEXT_BYTES}
                schema.add_field(field, DataType.ARRAY, element_type=DataType.VARCHAR, **limits)
            elif kind == "number":
                schema.add_field(field, DataType.DOUBLE)
            else:  # with a third value for an attribute that is not there
                schema.add_field(field, DataType.BOOL if field == "available" else DataType.INT8)
        return schema

    def _build(self, name: str, items: Sequence[Item], vectors_ND: NDArray[np.float32]) -> None:
        filling = _filling(name)
        self._client.drop_collection(filling, timeout=BUILD_TIMEOUT_S)  # of a try that did not end
        self._client.create_collection(
            filling,
            schema=self._schema(vectors_ND.shape[1]),
            consistency_level=CONSISTENCY,
            properties={RELEASE: self.release_id, LENGTH: repr(self._length)},
            timeout=BUILD_TIMEOUT_S,
        )
        index = self._client.prepare_index_params()
        is_flat = len(items) <= FLAT_ITEMS
        index.add_index("vector", **(FLAT if is_flat else GRAPH))
        self._client.create_index(filling, index, timeout=BUILD_TIMEOUT_S)  # empty yet: what comes in is indexed
        with ThreadPoolExecutor(1) as pool:
            # Loading and flushing take seconds each, however few items there are, so they run side by side. A large
            # collection is loaded once its graphs are built.
            loading = pool.submit(self._client.load_collection, filling, timeout=BUILD_TIMEOUT_S) if is_flat else None
            for start in range(0, len(items), INSERT_ROWS):
                rows = zip(items[start : start + INSERT_ROWS], vectors_ND[start : start + INSERT_ROWS], strict=True)
                self._client.insert(
                    filling, [self._row(item, vector) for item, vector in rows], timeout=BUILD_TIMEOUT_S
                )
            self._client.flush(filling, timeout=BUILD_TIMEOUT_S)
            if loading is not None:
                loading.result()

    def _await_graphs(self, names: Sequence[str], num_items: int, on_stage: Callable[[str], None]) -> None:
        """Wait until Milvus has indexed everything."""
        deadline = time.monotonic() + INDEX_TIMEOUT_S
        while waiting := sum(num_items - self._num_indexed(name) for name in names):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{waiting:,} items were not indexed within {INDEX_TIMEOUT_S:g} s")
            on_stage(f"index {waiting:,} items in Milvus")
            time.sleep(LOOK_S)

    def _num_indexed(self, name: str) -> int:
        return int(self._client.describe_index(name, "vector", timeout=WRITE_TIMEOUT_S)["indexed_rows"])

    def _row(self, item: Item, vector: NDArray[np.float32]) -> dict[str, Any]:
        (key,) = self._keys.of([item.item_id])
        return {**index_fields(item, self._types), KEY: key, "vector": np.asarray(vector, np.float32).tolist()}


def collections_of_releases(uri: str) -> list[tuple[str, str]]:
    """Return (collection, release id) of everything in Milvus that a release was filled into, half filled or not. Raises
    UnavailableError."""
    found = []
    with milvus_errors(), closing(MilvusClient(uri, timeout=CONNECT_TIMEOUT_S, grpc_options=dict(CHANNEL))) as client:
        for name in client.list_collections(timeout=WRITE_TIMEOUT_S):
            owner = client.describe_collection(name, timeout=WRITE_TIMEOUT_S).get("properties", {}).get(RELEASE)
            if owner is not None:
                found.append((name, str(owner)))
    return found


def is_current(name: str, release_id: str) -> bool:
    """Return whether this version makes a collection of this name for the release; one that is being filled included."""
    return name in {named for own in collection_names(release_id) for named in (own, _filling(own))}


def drop_collection(uri: str, name: str) -> None:
    """Drop one collection. Raises UnavailableError."""
    with milvus_errors(), closing(MilvusClient(uri, timeout=CONNECT_TIMEOUT_S, grpc_options=dict(CHANNEL))) as client:
        client.drop_collection(name, timeout=BUILD_TIMEOUT_S)


def lengthened(vectors_ND: NDArray[np.float32], length: float) -> NDArray[np.float32]:
    """[N, D + 1], each as long as `length`; one that is longer already stays as it is."""
    missing_N = np.maximum(length**2 - np.square(vectors_ND.astype(np.float64)).sum(axis=1), 0)
    return np.asarray(np.c_[vectors_ND, np.sqrt(missing_N)], np.float32)


def _filling(name: str) -> str:
    return f"{name}_filling"
