"""Trees as a peer: what their candidates are, and that they learn from what is known of them."""

from __future__ import annotations

from datetime import datetime

import numpy as np
import pytest

from baguni.domain.catalog import Catalog, Item
from baguni.domain.history import Action
from benchmarks.quality.trees import Trees, TreesRecipe
from trainer.data.dataset import Dataset
from trainer.data.queries import OrderQueries
from trainer.data.splits import local_ms

DAY = 86_400_000
NUM_USERS, NUM_ITEMS, NUM_ORDERS = 40, 30, 24
START = local_ms(datetime(2017, 8, 1), "UTC")
TEST = local_ms(datetime(2017, 11, 1), "UTC")
RECIPE = TreesRecipe(num_orders=300, other_items=12, num_trees=30, min_samples_leaf=20)


@pytest.fixture(scope="module")
def shop() -> Dataset:
    """Every user orders once in five days for four months: always their own two staples, and an item that they never bought."""
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(NUM_USERS), NUM_ORDERS)
    order = np.tile(np.arange(NUM_ORDERS), NUM_USERS)
    staples = np.stack([user % 5, 5 + user % 3])
    others = np.concatenate([rng.permutation(np.arange(8, NUM_ITEMS))[: NUM_ORDERS - 2] for _ in range(NUM_USERS)])
    has_other = order < NUM_ORDERS - 2
    rows = np.r_[np.arange(len(user)), np.arange(len(user)), np.flatnonzero(has_other)]
    item = np.r_[staples[0], staples[1], others]
    by_user = np.lexsort((item, rows))
    rows, item = rows[by_user], item[by_user]
    return Dataset(
        "staples",
        "UTC",
        Catalog([Item(str(index), str(index)) for index in range(NUM_ITEMS)], {}),
        tuple(str(index) for index in range(NUM_USERS)),
        tuple(str(index) for index in range(len(user))),
        user[rows],
        item,
        np.full(len(rows), int(Action.ORDERED)),
        rows,
        START + order[rows] * 5 * DAY,
    )


@pytest.fixture(scope="module")
def trees(shop: Dataset) -> Trees:
    return Trees.train(shop, TEST, RECIPE)


def test_what_a_user_always_orders_comes_first(shop: Dataset, trees: Trees) -> None:
    queries = OrderQueries.of(shop, TEST)
    top = trees.lists(queries)["all"][:, :2]
    user = queries.user_Q
    np.testing.assert_array_equal(np.sort(top, axis=1), np.stack([user % 5, 5 + user % 3], axis=1))


def test_a_list_of_what_is_new_has_nothing_that_was_bought(shop: Dataset, trees: Trees) -> None:
    queries = OrderQueries.of(shop, TEST)
    novel, bought = trees.lists(queries)["novel"], queries.purchases()
    owned = np.zeros((len(queries), NUM_ITEMS), bool)
    owned[bought.row_P, bought.item_P] = True
    row, place = np.nonzero(novel >= 0)
    assert len(row)
    assert not owned[row, novel[row, place]].any()


def test_they_are_the_same_whatever_comes_later(shop: Dataset, trees: Trees) -> None:
    before = shop.before(TEST + 20 * DAY)
    early = OrderQueries.of(before, TEST)
    late = OrderQueries.of(shop, TEST)
    later = trees.lists(late)["all"][np.isin(late.order_Q, _same(late, early))]
    np.testing.assert_array_equal(np.sort(trees.lists(early)["all"][:, :2]), np.sort(later[:, :2]))


def _same(late: OrderQueries, early: OrderQueries) -> np.ndarray:
    """Return the orders of `late` whose (user, time) are in `early`."""
    keys = {*zip(early.user_Q.tolist(), early.time_Q.tolist(), strict=True)}
    pairs = zip(late.user_Q.tolist(), late.time_Q.tolist(), late.order_Q.tolist(), strict=True)
    return np.asarray([order for user, moment, order in pairs if (user, moment) in keys])
