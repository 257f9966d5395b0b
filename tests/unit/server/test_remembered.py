"""A remembered list is returned again only if the same list would be made now, whatever changed in between."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from baguni.domain.catalog import Catalog, Item
from baguni.domain.filters import Filter
from baguni.domain.scoring import retrieval_scores
from baguni.domain.semantic_ids import SemanticIdTable
from baguni.stores.live_items import LiveItem
from server.lists import ranking
from server.lists.queries import Rules, Source
from server.lists.ranking import Candidates
from server.lists.remembered import ListKey, RememberedList, horizon, is_current, is_small
from server.lists.rules import permitted, permitted_of_all
from server.lists.users import KnownUser, UserCache
from server.release.items import ItemTable

NUM_ITEMS, DIM, LIMIT = 60, 4, 12
RULES = (
    Rules(),
    Rules(filters=(Filter("available", is_=True),)),
    Rules(exclude_item_ids=frozenset({"3", "9", "new1"})),
)


def item_table(rng: np.random.Generator) -> ItemTable:
    """Return the items of a release made up for the test."""
    items = [Item(str(n), "title", available=bool(rng.random() < 0.8)) for n in range(NUM_ITEMS)]
    vectors = rng.standard_normal((NUM_ITEMS, DIM)).astype(np.float32)
    codes = np.stack([np.arange(NUM_ITEMS), np.zeros(NUM_ITEMS)], axis=1).astype(np.int32)
    release = SimpleNamespace(
        catalog=Catalog(items, {}),
        semantic_ids=SemanticIdTable(codes, (NUM_ITEMS, 100)),
        item_vectors=vectors,
        content_vectors=vectors,
        popularity=np.ones(NUM_ITEMS, np.float32),
    )
    return ItemTable(release)  # type: ignore[arg-type]


def made_now(items: ItemTable, rules: Rules, user: KnownUser, index: ItemTable | None = None) -> RememberedList | None:
    """Return the list by an exact search: what a request makes if nothing is remembered, None if it may not be remembered.
    `index`: the items as they are where it searches, which may not have the newest changes."""
    index, embedding_V = index or items, user.embedding_qV[0]
    allowed_I = np.flatnonzero(permitted_of_all(index, rules, user.purchased_I))
    found_I = allowed_I[np.argsort(-(index.item_vectors(allowed_I) @ embedding_V), kind="stable")][:LIMIT]
    index_I, source_I = ranking.merged({Source.HISTORY: user.known_S, Source.RETRIEVAL: found_I})
    score_I = retrieval_scores(embedding_V, items.item_vectors(index_I), index_I, user.known_S, user.repeat_S)
    kept = Candidates(index_I, score_I, source_I).take(permitted(items, index_I, rules, user.purchased_I))
    ranked = ranking.best_first(kept, items.tie_break(kept.index_I))
    is_permitted_I = permitted(items, found_I, rules, user.purchased_I)
    least = horizon(found_I, is_permitted_I, LIMIT, items, embedding_V)
    return None if least is None else RememberedList(ranked, LIMIT, least, index.version)


def made_from_all(items: ItemTable, rules: Rules, user: KnownUser) -> RememberedList:
    """Return the list of an index that has every change."""
    made = made_now(items, rules, user)
    assert made is not None
    return made


def some_change(rng: np.random.Generator, items: ItemTable) -> LiveItem:
    """Return a change of a kind that item events bring: stock, text, removal, return, or a new item."""
    if rng.random() < 0.1:
        item, index = Item(f"new{len(items)}", "title"), 0
    else:
        index = int(rng.integers(len(items)))
        item = items.items[index]
    item = replace(item, available=bool(rng.random() < 0.8))
    own_V = items.item_vectors(np.array([index]))[0]
    vector = (
        own_V if rng.random() < 0.7 and item.item_id in items.index else rng.standard_normal(DIM).astype(np.float32)
    )
    return LiveItem(item, (0, len(items) % 100), vector, vector, 0, removed=bool(rng.random() < 0.2))


def some_user(rng: np.random.Generator) -> KnownUser:
    known_S = rng.permutation(NUM_ITEMS)[:5]
    embedding_qV = rng.standard_normal((2, DIM)).astype(np.float32)
    return KnownUser(1, 0, embedding_qV, known_S, rng.random(5).astype(np.float32), known_S[:2], None)


def test_a_list_that_is_current_is_the_list_that_would_be_made() -> None:
    outcomes: Counter[bool] = Counter()
    for seed in range(300):
        rng = np.random.default_rng(seed)
        items, user, rules = item_table(rng), some_user(rng), RULES[seed % len(RULES)]
        remembered = made_from_all(items, rules, user)
        for _ in range(5):
            items.apply([some_change(rng, items) for _ in range(int(rng.integers(0, 3)))])
            current = is_current(remembered, items, rules, user.embedding_qV[0], user.known_S, user.purchased_I)
            now = made_from_all(items, rules, user)
            if current:
                assert now.ranked.index_I.tolist() == remembered.ranked.index_I.tolist()
                np.testing.assert_allclose(now.ranked.score_I, remembered.ranked.score_I, rtol=1e-6)
                remembered = remembered._replace(items_version=items.version)
            else:
                remembered = now
            outcomes[current] += 1
    assert min(outcomes.values()) > 300  # neither answer is the rule


def test_a_list_of_an_index_that_is_behind_is_not_kept_longer_than_that() -> None:
    """Milvus shows a change a moment after it was announced: what it finds meanwhile must not stay."""
    compared = refused = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        items, user, rules = item_table(rng), some_user(rng), RULES[seed % len(RULES)]
        index = item_table(np.random.default_rng(seed))
        behind: list[list[LiveItem]] = []
        remembered: RememberedList | None = None
        for _ in range(12):
            if rng.random() < 0.5:
                behind.append([some_change(rng, items) for _ in range(int(rng.integers(1, 6)))])
                items.apply(behind[-1])
            if behind and rng.random() < 0.5:
                index.apply(behind.pop(0))
            ways = (items, rules, user.embedding_qV[0], user.known_S, user.purchased_I)
            if remembered is not None and is_current(remembered, *ways):
                remembered = remembered._replace(items_version=max(index.version, remembered.items_version))
                if not behind:
                    now = made_from_all(items, rules, user)
                    assert now.ranked.index_I.tolist() == remembered.ranked.index_I.tolist()
                    compared += 1
            else:
                remembered = made_now(items, rules, user, index)
                refused += remembered is None
    assert min(compared, refused) > 100


def same_as_before(items: ItemTable, index: int) -> LiveItem:
    own_V = items.item_vectors(np.array([index]))[0]
    return LiveItem(items.items[index], (index, 0), own_V, own_V, 0)


@pytest.mark.parametrize(("kept", "checked"), [(20, 1_000), (1_000, 20)])
def test_a_list_of_too_long_ago_or_before_many_changes_is_not_current(
    monkeypatch: pytest.MonkeyPatch, kept: int, checked: int
) -> None:
    monkeypatch.setattr("server.release.items.KEPT_CHANGES", kept)
    monkeypatch.setattr("server.release.items.CHECKED_CHANGES", checked)
    rng = np.random.default_rng(0)
    items, user = item_table(rng), some_user(rng)
    remembered = made_from_all(items, Rules(), user)
    others = np.setdiff1d(np.arange(NUM_ITEMS), np.r_[remembered.ranked.index_I, user.known_S])
    far = int(others[np.argmin(items.item_vectors(others) @ user.embedding_qV[0])])
    for change in range(25):
        current = is_current(remembered, items, Rules(), user.embedding_qV[0], user.known_S, user.purchased_I)
        assert current == (change <= 20)
        items.apply([same_as_before(items, far)])


def test_new_items_of_one_batch_have_their_own_codes() -> None:
    items = item_table(np.random.default_rng(0))
    vector = np.zeros(DIM, np.float32)
    items.apply([LiveItem(Item(f"new{n}", "title"), (n, 7), vector, vector, 0) for n in range(3)])
    assert items.codes_NL[-3:].tolist() == [[0, 7], [1, 7], [2, 7]]
    assert len(items.codes_NL) == len(items) == NUM_ITEMS + 3


def test_what_changed_a_moment_ago_is_not_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([100.0, 103.0, 104.0, *[106.0] * 4])
    monkeypatch.setattr("server.release.items.time.monotonic", lambda: next(moments))
    items = item_table(np.random.default_rng(0))
    for _ in range(3):
        items.apply([same_as_before(items, 3)])
    assert [items.settled_version(age_s) for age_s in (0.0, 2.5, 5.0, 9.0)] == [3, 2, 1, 0]


def test_tables_of_one_release_are_told_apart() -> None:
    """Indexes of items belong to one table."""
    one, other = item_table(np.random.default_rng(0)), item_table(np.random.default_rng(0))
    users, user = UserCache(10), some_user(np.random.default_rng(0))
    users.remember_user(one.number, "u", user)
    users.remember_found(one.number, "u", np.array([1, 2]))
    assert users.user(one.number, "u") is user
    assert users.user(other.number, "u") is None
    assert users.found(other.number, "u") is None
    assert users.forget_everywhere({"u"}) == 2


@pytest.mark.parametrize(
    ("rules", "small"),
    [
        (Rules(), True),
        (Rules(exclude_item_ids=frozenset(map(str, range(100)))), True),
        (Rules(exclude_item_ids=frozenset(map(str, range(1_000)))), False),
        (Rules(filters=(Filter("brand", any_of=("x" * 3_000,)),)), False),
        (Rules(filters=(Filter("price", bounds=(1.0, None)), Filter("brand", any_of=("own", "other")))), True),
    ],
)
def test_large_rules_are_not_kept(rules: Rules, small: bool) -> None:
    assert is_small(rules) == small


def test_of_the_lists_of_a_user_the_newest_remain() -> None:
    user = some_user(np.random.default_rng(0))
    keys = [ListKey(Rules(exclude_item_ids=frozenset({str(n)})), True, None, (), 0.0) for n in range(4)]
    empty = RememberedList(ranking.NO_CANDIDATES, 50, 0.0, 0)
    for key in [keys[0], keys[1], keys[0], keys[2]]:
        user.remember_list(key, empty, most=2)
    assert list(user.lists) == [keys[0], keys[2]]
    user.remember_list(keys[3], empty, most=0)
    assert not user.lists
