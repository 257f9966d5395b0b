"""A shop changes its attributes between two releases: items are updated all the same, and a switch loses no attribute. Redis is
the module's own, Milvus is embedded; no text changes, so Triton is not asked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from baguni.clients.item_index import collection_names
from baguni.domain.catalog import AttributeValue, Catalog, Item
from baguni.domain.events import ItemRemoval, ItemUpsert
from baguni.domain.release import Release, write_manifest
from baguni.domain.semantic_ids import SemanticIdTable
from baguni.domain.signature import ModelSignature
from baguni.releases.item_updates import ItemServers, ItemUpdates, carry_over
from baguni.settings import Endpoints
from baguni.stores.live_items import LiveItemWriter

NUM_ITEMS, DIM = 20, 8
TIME_MS = 1_700_000_000_000
OLD, NEW = {"price": "number", "size": "number"}, {"price": "number", "pack_size": "number"}
SENT: list[Mapping[str, AttributeValue]] = [
    {"price": 2.0, "pack_size": 500.0},  # renamed
    {"price": 2.0, "size": 500.0, "pack_size": 500.0, "halal": True},  # added
    {"price": 2.0},  # dropped
    {"price": True, "size": 500.0, "pack_size": True},  # of another type
]


def release_of(path: Path, release_id: str, types: Mapping[str, str]) -> Release:
    """A release with the parts that item updates read: random vectors."""
    path.mkdir()
    rng = np.random.default_rng(0)
    items = [Item(f"item-{n}", f"bread {n}", ("BREAD",), dict.fromkeys(types, 1.0)) for n in range(NUM_ITEMS)]
    Catalog(items, types).save(path / "catalog.parquet")
    codes = np.array([[n, 0] for n in range(NUM_ITEMS)], np.int32)
    SemanticIdTable(codes, (NUM_ITEMS, 4)).save(path / "semantic_ids.npz")
    ModelSignature(NUM_ITEMS, 16, (NUM_ITEMS, 4), DIM, DIM, DIM, 64, 4).save(path / "signature.json")
    for name in ("item_vectors", "content_vectors"):
        vectors = rng.standard_normal((NUM_ITEMS, DIM)).astype(np.float32)
        np.save(path / f"{name}.npy", vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    return write_manifest(path, {"release_id": release_id})


@contextmanager
def item_updates(release: Release, client: redis.Redis, folder: Path) -> Iterator[tuple[ItemUpdates, Counter[str]]]:
    """Item updates of a release that is in the embedded Milvus, and what they leave out."""
    left_out: Counter[str] = Counter()
    endpoints = Endpoints(milvus_uri=str(folder / "milvus.db"), triton_url="127.0.0.1:1")
    with closing(ItemServers.opened(release, endpoints, client)) as servers:
        servers.index.fill(release)
        yield ItemUpdates(release, servers, lambda name, problem: left_out.update([f"{name} {problem}"])), left_out


def sent(attributes: Mapping[str, AttributeValue], time_ms: int = TIME_MS) -> list[ItemUpsert]:
    """Every item is sold out, with these attributes."""
    items = [Item(f"item-{n}", f"bread {n}", ("BREAD",), attributes, available=False) for n in range(NUM_ITEMS)]
    return [ItemUpsert(item, time_ms) for item in items]


def live(client: redis.Redis, release: Release) -> dict[str, Item]:
    changes = LiveItemWriter(client, release.release_id).changes()
    return {each.item.item_id: each.item for each in changes if not each.removed}


def fitting(attributes: Mapping[str, AttributeValue], release: Release) -> dict[str, AttributeValue]:
    types = release.catalog.attribute_types
    return {name: x for name, x in attributes.items() if name in types and not isinstance(x, bool)}


@pytest.mark.parametrize("attributes", SENT, ids=["renamed", "added", "dropped", "mistyped"])
def test_items_are_updated_and_no_release_loses_an_attribute(
    client: redis.Redis, tmp_path: Path, attributes: Mapping[str, AttributeValue]
) -> None:
    """The next release's consumers read the topic again; one of them carries over later than another has read it."""
    old = release_of(tmp_path / "old", "r_old", OLD)
    new = release_of(tmp_path / "new", "r_new", NEW)
    with item_updates(old, client, tmp_path) as (updates, left_out):
        assert updates.apply(sent(attributes)) == []
        assert updates.apply(sent(attributes)) == []  # redelivered: nothing is left out again
        items = live(client, old)
        assert len(items) == NUM_ITEMS
        assert all(not item.available and item.attributes == fitting(attributes, old) for item in items.values())
        assert set(left_out.values()) <= {NUM_ITEMS}
        assert {name.split()[0] for name in left_out} == attributes.keys() - fitting(attributes, old).keys()
    with item_updates(new, client, tmp_path) as (first, _), item_updates(new, client, tmp_path) as (second, _):
        assert carry_over(LiveItemWriter(client, old.release_id), first) == NUM_ITEMS
        assert first.apply(sent(attributes)) == []
        assert carry_over(LiveItemWriter(client, old.release_id), second) == NUM_ITEMS
        assert second.apply([]) == []
        items = live(client, new)
        assert all(not item.available and item.attributes == fitting(attributes, new) for item in items.values())


def test_what_is_newer_is_carried_over_although_it_has_fewer_attributes(client: redis.Redis, tmp_path: Path) -> None:
    old = release_of(tmp_path / "old", "r_old", OLD)
    new = release_of(tmp_path / "new", "r_new", NEW)
    with item_updates(old, client, tmp_path) as (before, _), item_updates(new, client, tmp_path) as (after, _):
        after.apply(sent({"price": 1.0, "pack_size": 5.0}))
        before.apply([*sent({"price": 2.0}, TIME_MS + 1)[1:], ItemRemoval("item-0", TIME_MS + 1)])
        carry_over(LiveItemWriter(client, old.release_id), after)
        expected = {event.item_id: replace(event.item) for event in sent({"price": 2.0})[1:]}
        assert live(client, new) == expected


@pytest.mark.parametrize(
    "meets", ["before it writes", "between index and Redis", "between the other's index and Redis"]
)
def test_an_older_event_never_ends_above_a_newer_one(client: redis.Redis, tmp_path: Path, meets: str) -> None:
    """Two consumers have events of the same items, as when a topic has got more partitions."""
    release = release_of(tmp_path / "old", "r_old", OLD)
    older, newer = sent({"price": 2.0}), [*sent({"price": 3.0}, TIME_MS + 1)[1:], ItemRemoval("item-0", TIME_MS + 1)]
    with item_updates(release, client, tmp_path) as (slow, _), item_updates(release, client, tmp_path) as (quick, _):
        if meets == "before it writes":
            meanwhile(slow, "_publish", lambda: quick.apply(newer))
            slow.apply(older)
        elif meets == "between index and Redis":
            meanwhile(slow._servers.live_items, "write", lambda: quick.apply(newer))
            slow.apply(older)
        else:
            meanwhile(quick._servers.live_items, "write", lambda: slow.apply(older))
            quick.apply(newer)
        items = live(client, release)
        assert {item.attributes["price"] for item in items.values()} == {3.0}
        assert items.keys() == {f"item-{n}" for n in range(1, NUM_ITEMS)}
        index = slow._servers.index
        for name in collection_names(release.release_id):
            rows = index._client.query(name, filter="item_key >= 0", output_fields=["attribute_price"])
            assert [row["attribute_price"] for row in rows] == [3.0] * (NUM_ITEMS - 1)


def meanwhile(target: Any, method: str, does: Callable[[], object]) -> None:
    """Let something happen once, as a method begins."""
    original = getattr(target, method)

    def wrapped(*arguments: Any) -> Any:
        setattr(target, method, original)
        does()
        return original(*arguments)

    setattr(target, method, wrapped)
