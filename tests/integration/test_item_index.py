"""The vector index in a real Milvus, standalone and embedded: exact neighbours, filters that agree with `filters.mask`,
changes seen within a second."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymilvus import DataType, MilvusClient

from baguni.clients.item_index import FLAT_ITEMS, LENGTH, RELEASE, IndexedItem, ItemIndex, lengthened
from baguni.clients.item_search import AsyncItemIndex, Hits
from baguni.clients.milvus import collection_names
from baguni.domain import filters
from baguni.domain.catalog import Catalog, Item
from baguni.domain.errors import RefusedError, ReleaseMismatchError, UnavailableError
from baguni.domain.filters import KEY, Filter
from baguni.domain.item_keys import ItemKeys, later_key
from baguni.domain.release import Release, write_manifest
from baguni.settings import Endpoints
from tests.strategies import ATTRIBUTE_TYPES, AWKWARD, item_filters, random_item
from tests.waiting import eventually

pytestmark = [pytest.mark.stack, pytest.mark.slow]
AWKWARD_IDS = ['q"uote', "back\\slash", "라면 1", "a,b]", "it's", "x" * 256, "한" * 256]
NUM_ITEMS, VECTOR_DIM, CONTENT_DIM = 60, 9, 8
Search = Callable[..., Hits]


def release_of(
    path: Path, items: Sequence[Item], release_id: str, attribute_types: Mapping[str, str] = ATTRIBUTE_TYPES
) -> Release:
    """A release with the parts that the index reads: random vectors."""
    rng = np.random.default_rng(0)
    path.mkdir()
    content = rng.standard_normal((len(items), CONTENT_DIM)).astype(np.float32)
    Catalog(items, attribute_types).save(path / "catalog.parquet")
    np.save(path / "item_vectors.npy", rng.standard_normal((len(items), VECTOR_DIM)).astype(np.float32))
    np.save(path / "content_vectors.npy", content / np.linalg.norm(content, axis=1, keepdims=True))
    return write_manifest(path, {"release_id": release_id})


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    ids = [*AWKWARD_IDS, *(f"item-{n}" for n in range(NUM_ITEMS - len(AWKWARD_IDS)))]
    rng = random.Random(0)
    return release_of(
        tmp_path_factory.mktemp("index") / "r", [random_item(item_id, rng) for item_id in ids], "r_filters"
    )


@pytest.fixture(scope="module", params=["standalone", "embedded"])
def uri(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The server's address, or a file: everything that asks for it holds for both."""
    if request.param == "embedded":
        return str(tmp_path_factory.mktemp("milvus") / "milvus.db")
    return str(request.getfixturevalue("stack").milvus_uri)


@pytest.fixture(scope="module")
def index(uri: str, release: Release) -> Iterator[ItemIndex]:
    built = ItemIndex(uri, release.release_id, release.catalog)
    assert built.fill(release)
    yield built
    built.drop()
    built.close()


@pytest.fixture(scope="module")
def search(uri: str, index: ItemIndex) -> Iterator[Search]:
    """AsyncItemIndex.search_items or, with content=True, search_content, without the await."""
    searching = AsyncItemIndex(uri, index.release_id)
    with asyncio.Runner() as runner:

        def run(vector: object, limit: int = NUM_ITEMS, expression: str = "", content: bool = False) -> Hits:
            method = searching.search_content if content else searching.search_items
            return runner.run(method(np.asarray(vector, np.float32), limit, expression, timeout_s=30.0))

        yield run
        runner.run(searching.close())


def keys_of(release: Release, item_ids: Iterable[str]) -> list[int]:
    """Return the items' keys in the collections of the release, in their order."""
    return ItemKeys(release.catalog.index).of(item_ids)


def exact(vectors_ND: np.ndarray, query_D: np.ndarray) -> list[int]:
    """Return the keys of all items of a release by inner product, in NumPy."""
    return np.argsort(-(vectors_ND @ query_D), kind="stable").tolist()


def test_neighbours_are_the_exact_ones_in_both_spaces(search: Search, release: Release) -> None:
    rng = np.random.default_rng(1)
    for _ in range(5):
        query_D = rng.standard_normal(VECTOR_DIM).astype(np.float32)
        hits = search(query_D)
        assert hits.key_I.tolist() == exact(release.item_vectors, query_D)
        np.testing.assert_allclose(hits.score_I, -np.sort(-(release.item_vectors @ query_D)), rtol=1e-5)
        query_C = release.content_vectors[7]
        assert search(query_C, content=True).key_I.tolist() == exact(release.content_vectors, query_C)
        assert len(search(query_D, limit=3).key_I) == 3


@settings(max_examples=150, deadline=None)
@given(
    conditions=st.lists(item_filters(), max_size=3),
    excluded=st.sets(st.sampled_from([*AWKWARD_IDS, "item-3", "nobody"])),
)
def test_milvus_and_the_mask_let_the_same_items_through(
    search: Search, release: Release, conditions: list[Filter], excluded: set[str]
) -> None:
    items = release.catalog.items
    allowed = filters.mask(conditions, items)
    expected = {item.item_id for item, ok in zip(items, allowed, strict=True) if ok} - excluded
    hits = search(np.ones(VECTOR_DIM), expression=filters.expression(conditions, keys_of(release, excluded)))
    assert sorted(hits.key_I.tolist()) == sorted(keys_of(release, expected))


def test_filters_let_enough_through_to_prove_something(release: Release) -> None:
    """So that agreement above is not agreement on nothing."""
    shares = [
        filters.mask([condition], release.catalog.items).mean()
        for condition in (
            Filter("category", any_of=("GROCERY", "BREAD", "라면 사리")),
            Filter("in", any_of=('a"b', "a\\b", 'back\\"both\\', "x\ny")),
            Filter("size", bounds=(-1.0, 1.1)),
            Filter("organic", is_=False),
        )
    ]
    assert all(0.1 < share < 0.9 for share in shares)


@pytest.mark.parametrize("limit", [1, 7, NUM_ITEMS])
@pytest.mark.parametrize("expression", ["", "available == true", f"{KEY} not in [3]"])
@pytest.mark.parametrize("content", [False, True])
def test_hits_are_those_of_the_public_client(
    uri: str, search: Search, release: Release, limit: int, expression: str, content: bool
) -> None:
    """AsyncItemIndex builds on parts of pymilvus that are not public: this fails where a new version changes them."""
    query = np.linspace(-1, 1, CONTENT_DIM if content else VECTOR_DIM, dtype=np.float32)
    hits = search(query, limit, expression, content)
    client = MilvusClient(uri, timeout=30)
    (expected,) = client.search(
        collection_names(release.release_id)[content],
        data=[query if content else np.append(query, np.float32(0))],
        limit=limit,
        filter=expression,
        search_params={"metric_type": "IP", "params": {"ef": 128}},
        timeout=30,
    )
    client.close()
    assert hits.key_I.tolist() == [hit.id for hit in expected]
    assert hits.score_I.tolist() == [hit.distance for hit in expected]


def test_a_thousand_values_in_one_filter_are_taken(search: Search, release: Release) -> None:
    thousand = Filter("brand", any_of=tuple(map(str, range(1000))))
    assert not len(search(np.ones(VECTOR_DIM), expression=filters.expression([thousand])).key_I)
    excluded = keys_of(release, [f"item-{n}" for n in range(5_000)])
    assert len(search(np.ones(VECTOR_DIM), expression=filters.expression([], excluded)).key_I) == len(AWKWARD_IDS)


def test_filling_again_changes_nothing_and_says_so(index: ItemIndex, release: Release, search: Search) -> None:
    assert not index.fill(release)
    index.check()
    assert len(search(np.ones(VECTOR_DIM)).key_I) == NUM_ITEMS


def test_a_change_is_found_and_a_removal_is_not(index: ItemIndex, search: Search, release: Release) -> None:
    new = Item('new "라면"', "New", ("GROCERY",), {"in": "own"})
    vectors = np.full(VECTOR_DIM, 9, np.float32), np.full(CONTENT_DIM, 0.5, np.float32)

    def found(expression: str = "") -> bool:
        by_content = search(vectors[1], 1, expression, content=True)
        both = (search(vectors[0], 1, expression), by_content)
        return all(hits.key_I.tolist() == keys_of(release, [new.item_id]) for hits in both)

    index.upsert([IndexedItem(new, *vectors)])
    eventually(found, "the new item is found")
    out_of_stock = Item(new.item_id, new.title, new.category_path, new.attributes, available=False)
    index.upsert([IndexedItem(out_of_stock, *vectors)])
    eventually(lambda: found("available == false"), "the item is found as out of stock")
    assert not found("available == true")
    index.delete([new.item_id, "nobody"])
    eventually(lambda: not found())


def test_two_thousand_items_that_come_and_go_leave_no_old_state_and_no_item_twice(uri: str, tmp_path: Path) -> None:
    rng = random.Random(3)
    items = [Item(f"i{number}", "title", available=rng.random() < 0.5) for number in range(2_000)]
    release = release_of(tmp_path / "r", items, "r_flips")
    index, searching = ItemIndex(uri, release.release_id, release.catalog), AsyncItemIndex(uri, release.release_id)
    index.fill(release)
    with asyncio.Runner() as runner:

        def available() -> list[int]:
            query_D, expression = np.ones(VECTOR_DIM, np.float32), filters.expression([Filter("available", is_=True)])
            hits = runner.run(searching.search_items(query_D, len(items), expression, timeout_s=30.0))
            return sorted(hits.key_I.tolist())

        try:
            for _ in range(2):
                items = [replace(item, available=not item.available) for item in items]
                for start in range(0, len(items), 250):
                    rows = [
                        IndexedItem(item, release.item_vectors[number], release.content_vectors[number])
                        for number, item in enumerate(items[start : start + 250], start)
                    ]
                    index.upsert(rows)
                    found = available()
                    assert len(found) == len(set(found))
                expected = [key for key, item in enumerate(items) if item.available]
                eventually(lambda expected=expected: available() == expected, "the new state is found")
        finally:
            runner.run(searching.close())
            index.drop()
            index.close()


HOSTILE_IDS = [
    "men's-tee",
    "x'] or item_id not in ['",
    'x"] or item_id not in ["',
    "x\\",
    '\\"] or item_id != "',
    "%",
    "_",
    "{ids}",
    "two\nlines",
    "a\x00b",
    "\u2028",
    "\u202eltr",
    "x" * 1_000,
    *AWKWARD,
]


def test_whatever_an_id_is_its_removal_removes_that_item_and_no_other(uri: str, tmp_path: Path) -> None:
    ids = sorted(set(HOSTILE_IDS))
    release = release_of(tmp_path / "r", [Item(item_id, "title") for item_id in ids], "r_hostile")
    index = ItemIndex(uri, release.release_id, release.catalog)
    client = MilvusClient(uri, timeout=30)

    def left() -> list[int]:
        (collection, _), whole = collection_names(release.release_id), {"limit": 1_000, "consistency_level": "Strong"}
        return sorted(row[KEY] for row in client.query(collection, "", output_fields=[KEY], **whole))

    def of(item_ids: Sequence[str]) -> list[int]:
        return sorted(keys_of(release, item_ids))

    try:
        index.fill(release)
        index.delete([f"{item_id}?" for item_id in ids if len(item_id) < 100])
        assert left() == of(ids)
        index.delete(ids[::2])
        assert left() == of(ids[1::2])
        for removed, item_id in enumerate(ids[1::2], start=1):
            index.delete([item_id])
            assert left() == of(ids[1::2][removed:])
    finally:
        client.close()
        index.drop()
        index.close()


def is_refused_and_built_anew(index: ItemIndex, release: Release) -> None:
    with pytest.raises(ReleaseMismatchError, match="was filled by an older version: activate the release again"):
        index.check()
    assert index.fill(release)
    index.check()


def test_a_filling_that_was_cut_short_is_done_again(uri: str, tmp_path: Path) -> None:
    release = release_of(tmp_path / "r", [Item("a", "A"), Item("b", "B")], "r_halfway")
    half_filled = f"{collection_names('r_halfway')[0]}_filling"
    client = MilvusClient(uri, timeout=30)
    client.create_collection(half_filled, dimension=2, timeout=30)
    index = ItemIndex(uri, "r_halfway", release.catalog)
    try:
        with pytest.raises(ReleaseMismatchError, match="Milvus has no collection items2_r_halfway"):
            index.check()
        assert index.fill(release)
        index.check()
        assert not client.has_collection(half_filled)
    finally:
        index.drop()
        index.close()
        client.close()


def test_a_collection_that_carries_another_release_is_refused(uri: str, tmp_path: Path) -> None:
    release = release_of(tmp_path / "r", [Item("a", "A")], "r_wanted")
    client = MilvusClient(uri, timeout=30)
    other = ItemIndex(uri, "r_other", release.catalog)
    index = ItemIndex(uri, "r_wanted", release.catalog)
    try:
        other.fill(release)
        client.rename_collection("items2_r_other", "items2_r_wanted", timeout=30)
        index.fill(release)
        with pytest.raises(
            ReleaseMismatchError, match="items2_r_wanted belongs to release 'r_other', expected 'r_wanted'"
        ):
            index.check()
    finally:
        other.drop()
        index.drop()
        other.close()
        index.close()
        client.close()


def test_a_collection_without_the_fields_that_filters_need_is_built_anew(uri: str, tmp_path: Path) -> None:
    release = release_of(tmp_path / "r", [Item("a", "A", (), {"brand": "own"})], "r_older")
    without_types = Catalog(release.catalog.items, {})
    older, index = ItemIndex(uri, "r_older", without_types), ItemIndex(uri, "r_older", release.catalog)
    try:
        assert older.fill(release)
        assert index.fill(release)
        assert not index.fill(release)
        index.check()
    finally:
        index.drop()
        older.close()
        index.close()


def test_a_collection_of_vectors_of_any_length_is_refused_and_built_anew(uri: str, tmp_path: Path) -> None:
    """As versions before filled them: without the further dimension."""
    release = release_of(tmp_path / "r", [Item("a", "A"), Item("b", "B")], "r_short")
    client, index = MilvusClient(uri, timeout=30), ItemIndex(uri, "r_short", release.catalog)
    try:
        for name in collection_names("r_short"):
            client.create_collection(name, dimension=VECTOR_DIM, properties={RELEASE: "r_short"}, timeout=30)
        is_refused_and_built_anew(index, release)
    finally:
        index.drop()
        index.close()
        client.close()


def test_a_collection_whose_keys_are_ids_is_refused_and_built_anew(uri: str, tmp_path: Path) -> None:
    """It has every field that filters need, so only its key tells it from a current one."""
    release = release_of(tmp_path / "r", [Item("a", "A"), Item("b", "B")], "r_texts", {})
    client, index = MilvusClient(uri, timeout=30), ItemIndex(uri, "r_texts", release.catalog)
    try:
        for name in collection_names("r_texts"):
            schema = client.create_schema(auto_id=False, enable_dynamic_field=True)
            schema.add_field("item_id", DataType.VARCHAR, max_length=64, is_primary=True)
            schema.add_field("vector", DataType.FLOAT_VECTOR, dim=VECTOR_DIM)
            schema.add_field("available", DataType.BOOL)
            schema.add_field(
                "category_prefixes", DataType.ARRAY, element_type=DataType.VARCHAR, max_capacity=8, max_length=64
            )
            properties = {RELEASE: "r_texts", LENGTH: "1.0"}
            client.create_collection(name, schema=schema, properties=properties, timeout=30)
        is_refused_and_built_anew(index, release)
    finally:
        index.drop()
        index.close()
        client.close()


@pytest.mark.parametrize("flat_items", [0, 20_000])
def test_graph_and_exact_index_give_inner_products_of_items_longer_than_all_before(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flat_items: int
) -> None:
    monkeypatch.setattr("baguni.clients.item_index.FLAT_ITEMS", flat_items)
    release = release_of(tmp_path / "r", [Item(str(n), "A") for n in range(50)], "r_long")
    longest = 9 * np.ones(VECTOR_DIM, np.float32)
    index, writing = (ItemIndex(uri, "r_long", release.catalog) for _ in range(2))

    async def found(query_D: np.ndarray) -> dict[int, float]:
        searching = AsyncItemIndex(uri, "r_long")
        try:
            hits = await searching.search_items(query_D, 51, "", timeout_s=30.0)
            return dict(zip(hits.key_I.tolist(), hits.score_I.tolist(), strict=True))
        finally:
            await searching.close()

    query_D = np.linspace(-1, 2, VECTOR_DIM).astype(np.float32)
    try:
        index.fill(release)
        writing.upsert(
            [IndexedItem(Item("new", "A"), longest, release.content_vectors[0])]
        )  # a consumer, another process
        eventually(lambda: len(asyncio.run(found(query_D))) == 51)
        scores = {n: float(vector @ query_D) for n, vector in enumerate(release.item_vectors)}
        scores[later_key("new")] = float(longest @ query_D)
        assert asyncio.run(found(query_D)) == pytest.approx(scores, rel=1e-4)
    finally:
        index.drop()
        index.close()
        writing.close()


def test_a_graph_is_whole_when_filling_returns(stack: Endpoints, tmp_path: Path) -> None:
    """Standalone alone says how much it has indexed."""
    release = release_of(tmp_path / "r", [Item(str(n), "A") for n in range(FLAT_ITEMS + 1)], "r_graph")
    index, client, stages = ItemIndex(stack.milvus_uri, "r_graph", release.catalog), MilvusClient(stack.milvus_uri), []
    try:
        index.fill(release, stages.append)
        for name in collection_names("r_graph"):
            found = client.describe_index(name, "vector")
            assert (found["indexed_rows"], found["pending_index_rows"]) == (len(release.catalog), 0)
    finally:
        index.drop()
        index.close()
        client.close()
    assert stages
    assert all(stage.startswith("index ") for stage in stages)


def test_lengthened_vectors_are_of_one_length_and_keep_their_inner_products() -> None:
    rng = np.random.default_rng(0)
    vectors_ND = (rng.standard_normal((40, 6)) * rng.lognormal(size=(40, 1))).astype(np.float32)
    lengths_N = np.linalg.norm(vectors_ND, axis=1)
    long_ND = lengthened(vectors_ND, float(lengths_N.max()))
    np.testing.assert_allclose(np.linalg.norm(long_ND, axis=1), lengths_N.max(), rtol=1e-5)
    np.testing.assert_array_equal(long_ND[:, :-1], vectors_ND)
    assert lengthened(vectors_ND, 0.1)[:, -1].max() == 0 or lengths_N.min() < 0.1


def test_more_attributes_than_a_collection_has_fields(uri: str, tmp_path: Path) -> None:
    types = {f"attribute {number}": "number" for number in range(80)}
    items = [Item(str(n), "A", (), {name: float(n) for name in types}) for n in range(10)]
    release = release_of(tmp_path / "r", items, "r_wide", types)
    index = ItemIndex(uri, "r_wide", release.catalog)

    async def found(attribute: str) -> set[int]:
        searching = AsyncItemIndex(uri, "r_wide")
        condition = filters.expression([Filter(attribute, bounds=(5.0, 7.0))])
        hits = await searching.search_items(np.ones(VECTOR_DIM, np.float32), 10, condition, timeout_s=30.0)
        await searching.close()
        return set(hits.key_I.tolist())

    try:
        index.fill(release)
        assert asyncio.run(found("attribute 0")) == asyncio.run(found("attribute 79")) == {5, 6, 7}
    finally:
        index.drop()
        index.close()


def test_milvus_away_is_reported(stack: Endpoints) -> None:
    nobody = "http://127.0.0.1:1"
    with pytest.raises(UnavailableError, match="milvus is unavailable"):
        ItemIndex(nobody, "r")

    async def search_nobody() -> None:
        searching = AsyncItemIndex(nobody, "r")
        with pytest.raises(UnavailableError, match="milvus is unavailable"):
            await searching.search_items(np.ones(2, np.float32), 1, "", timeout_s=0.3)
        await searching.close()

    asyncio.run(search_nobody())


def test_what_milvus_refuses_is_the_items_fault(index: ItemIndex) -> None:
    item = Item("a", "title", attributes={"in": "x" * 66_000})
    vectors = np.ones(VECTOR_DIM, np.float32), np.ones(CONTENT_DIM, np.float32)
    with pytest.raises(RefusedError, match=r"milvus refuses it: .*max"):
        index.upsert([IndexedItem(item, *vectors)])


def test_an_expression_that_milvus_refuses_is_no_outage(search: Search) -> None:
    for expression in ("item_id in ['men's']", "brand == ", "(" * 20):
        with pytest.raises(RefusedError, match="milvus refuses it"):
            search(np.ones(VECTOR_DIM), expression=expression)


def test_an_unknown_collection_is_unavailable_not_a_traceback(
    stack: Endpoints, caplog: pytest.LogCaptureFixture
) -> None:
    async def search_unknown() -> None:
        searching = AsyncItemIndex(stack.milvus_uri, "r_unknown")
        with pytest.raises(UnavailableError, match="collection not found"):
            await searching.search_items(np.ones(2, np.float32), 1, "", timeout_s=2.0)
        await searching.close()

    asyncio.run(search_unknown())
    assert not caplog.records
