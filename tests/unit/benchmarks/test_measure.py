"""From lists to numbers, by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from baguni.domain.catalog import Catalog, Item
from baguni.domain.errors import InvalidInputError
from baguni.domain.semantic_ids import SemanticIdTable
from benchmarks.quality.measure import K, Truth, breadth, compare, estimate, order_values
from benchmarks.quality.slices import (
    by_bucket,
    category_popularity_lists,
    cold_item_queries,
    cold_item_recall,
    cold_users,
    held_out_items,
    semantic_id_health,
    text_neighbour_lists,
)
from benchmarks.quality.store import ColdItems, ListStore, Record, slug
from trainer.data.dataset import Dataset
from trainer.data.queries import OrderQueries

D = [1 / math.log2(rank + 1) for rank in range(1, K + 1)]
START = 100
NUM_ITEMS = 20


def shop() -> Dataset:
    """Anna orders {0, 1}, {1, 2}, and in the test month {1, 3}, then {3, 4, 5}; Ben {7}, and in the test month {7}."""
    orders = [("anna", 10, (0, 1)), ("anna", 20, (1, 2)), ("anna", 110, (1, 3)), ("anna", 120, (3, 4, 5))]
    orders += [("ben", 30, (7,)), ("ben", 130, (7,))]
    users = ("anna", "ben")
    lines = [(users.index(u), item, number, t) for number, (u, t, items) in enumerate(orders) for item in items]
    user, item, number, time = (np.asarray(column, np.int64) for column in zip(*lines, strict=True))
    items = [Item(str(index), f"item {index}", ("EVEN" if index % 2 == 0 else "ODD",)) for index in range(NUM_ITEMS)]
    ids = tuple(f"order-{number}" for number in range(len(orders)))
    return Dataset("tiny", "UTC", Catalog(items, {}), users, ids, user, item, np.ones_like(user), number, time)


def queries() -> OrderQueries:
    return OrderQueries.of(shop(), START, min_orders=1)


def lists(*rows: tuple[int, ...]) -> np.ndarray:
    return np.asarray([[*row, *[-1] * (K - len(row))] for row in rows])


ALL = lists((1, 9, 3), (8, 4), (7,))
NOVEL = lists((9, 3), (5, 6, 4), (8,))


def test_rolling_orders_count_in_all_and_only_new_items_in_novel() -> None:
    values = order_values({"all": ALL, "novel": NOVEL}, Truth(queries()))
    assert values["all"]["HR@10"].tolist() == [1, 1, 1]
    assert values["all"]["Recall@10"].tolist() == [2 / 2, 1 / 3, 1 / 1]
    assert values["all"]["NDCG@10"].tolist() == pytest.approx([(D[0] + D[2]) / (D[0] + D[1]), D[1] / sum(D[:3]), 1.0])
    # Anna's new items are {3}, then {4, 5}, as 3 was bought ten milliseconds before; Ben has none, so his order drops out.
    assert values["novel"]["Recall@10"].tolist() == [1 / 1, 2 / 2]
    assert values["novel"]["NDCG@10"].tolist() == pytest.approx([D[1] / D[0], (D[0] + D[2]) / (D[0] + D[1])])


def test_metrics_at_five_see_five_places() -> None:
    late = lists((10, 11, 12, 13, 14, 1), (8, 4), (7,))
    values = order_values({"all": late, "novel": NOVEL}, Truth(queries()), ks=(5, 10))
    assert values["all"]["HR@5"].tolist() == [0, 1, 1]
    assert values["all"]["HR@10"].tolist() == [1, 1, 1]


def test_first_takes_each_users_first_order_of_the_month() -> None:
    truth = Truth(queries())
    assert truth.within("all", "first").tolist() == [True, False, True]
    assert truth.within("novel", "first").tolist() == [True, False]
    assert truth.modes == ("rolling", "first")
    assert Truth(queries().at(np.array([0, 2]))).modes == ("rolling",)


def test_history_length_and_size_of_each_order() -> None:
    truth = Truth(queries())
    assert truth.num_before_Q.tolist() == [2, 3, 1]
    assert truth.size_Q.tolist() == [2, 3, 1]


def test_novel_lists_with_a_bought_item_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="list 1 of the novel setting"):
        order_values({"all": ALL, "novel": lists((9,), (3,), (8,))}, Truth(queries()))


def test_lists_of_another_shape_or_of_unknown_items_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="shape"):
        order_values({"all": ALL[:2], "novel": NOVEL}, Truth(queries()))
    with pytest.raises(InvalidInputError, match="item 20"):
        order_values({"all": lists((20,), (1,), (1,)), "novel": NOVEL}, Truth(queries()))


def test_mean_over_seeds_and_their_spread() -> None:
    found = estimate([np.array([0.0, 1.0]), np.array([1.0, 1.0])], np.array([0, 1]))
    assert found.mean == (0 + 1 + 1 + 1) / 4
    assert found.seeds == (1 / 2, 1.0)
    assert found.spread == pytest.approx(math.sqrt(2 * 0.25**2))
    assert found.low <= 1 / 2 <= 1.0 <= found.high  # each resample is one of: (½, ½), (½, 1), (1, 1)
    assert estimate([np.array([0.5])], np.array([0])).spread is None


def test_paired_interval_is_that_of_the_differences() -> None:
    theirs = np.array([0.0, 0.9, 0.1, 0.5])
    paired = compare([theirs + 0.1], [theirs], np.array([0, 0, 1, 2]))
    assert paired.difference == pytest.approx(0.1)
    assert (paired.low, paired.high) == pytest.approx((0.1, 0.1))  # every order gains the same: nothing to doubt
    assert paired.relative == pytest.approx(0.1 / (1.5 / 4))


def test_paired_interval_of_a_toy_holds_zero_where_users_disagree() -> None:
    ours = [np.array([1.0, 0.0]), np.array([1.0, 0.0])]
    paired = compare(ours, [np.array([0.0, 1.0])], np.array([0, 1]))
    assert paired.difference == 0
    assert (paired.low, paired.high) == (-1, 1)  # both users drawn alike in half of the resamples
    assert compare([np.ones(2)], [np.zeros(2)], np.array([0, 1])).relative is None


def test_breadth_counts_the_lists_of_the_setting() -> None:
    frequency = np.zeros(NUM_ITEMS)
    frequency[[9, 3, 5, 6, 4]] = (1, 2, 3, 4, 5)
    found = breadth({"all": ALL, "novel": NOVEL}, Truth(queries()), frequency, "novel")
    assert found["coverage"] == 5 / NUM_ITEMS  # Ben's list does not count
    assert found["popularity lift"] == pytest.approx(((1 + 2 + 3 + 4 + 5) / 5) / ((2 + 5 + 3) / 3))


@pytest.mark.parametrize(("known", "before"), [(0, [0, 0]), (1, [1, 1]), (3, [2, 1])])
def test_cold_users_keep_only_their_newest_orders(known: int, before: list[int]) -> None:
    cold = cold_users(queries(), known)
    truth = Truth(cold)
    assert truth.num_before_Q.tolist() == before
    assert cold.first_Q.all()
    assert cold.true_item_P.tolist() == [1, 3, 7]
    # Anna's 1 was in her newest order; without orders everything is new.
    assert cold.novel_P.tolist() == ([True, True, True] if known == 0 else [False, True, False])
    assert cold.purchases().item_P.tolist() == {0: [], 1: [1, 2, 7], 3: [0, 1, 1, 2, 7]}[known]


def test_held_out_items_are_a_twentieth_of_the_catalogue_and_were_ordered() -> None:
    frequency = np.r_[np.zeros(60), np.ones(40)]
    held_out = held_out_items(100, frequency, seed=0)
    assert len(held_out) == 5
    assert (held_out >= 60).all()
    assert held_out.tolist() == sorted(set(held_out.tolist()))
    assert held_out.tolist() == held_out_items(100, frequency, seed=0).tolist()


def test_recall_of_held_out_items_takes_each_users_first_order_with_one() -> None:
    held_out = np.array([3, 4, 7, 9])
    query = cold_item_queries(queries(), held_out)
    assert query.tolist() == [0, 2]
    assert cold_item_queries(queries(), np.array([5])).tolist() == [1]
    assert cold_item_recall(lists((9, 3), (4,)), queries(), query, held_out).tolist() == [1, 0]
    both = cold_item_recall(lists((4, 9)), queries(), np.array([1]), held_out)
    assert both.tolist() == [1 / 2]  # of {3, 4}


def test_category_popularity_does_not_know_the_held_out_items_own() -> None:
    frequency = np.zeros(NUM_ITEMS)
    frequency[[2, 3, 5]] = (100, 7, 9)  # 2 is held out: EVEN has no other order
    top = category_popularity_lists(shop().catalog, np.array([2, 7]), frequency, 2, K)
    assert top.tolist() == lists((7, 2), (7, 2)).tolist()


def test_neighbours_by_text_do_not_know_purchases_of_held_out_items() -> None:
    """Anna has 0, 1 and 2 before her first order of the month, Ben 7; 7 is held out. Lengths of texts do not count."""
    text = np.eye(NUM_ITEMS, dtype=np.float32)
    text[3], text[9] = 5 * (text[0] + 0.1 * text[1]), text[1] + text[4]
    held_out, asked = np.array([3, 7, 9]), queries().at(np.array([0, 2]))
    top = text_neighbour_lists(asked.purchases(), text, held_out, K)
    assert top[0, :3].tolist() == [3, 9, 7]
    assert sorted(top[1, :3].tolist()) == [3, 7, 9]  # nothing is known of Ben but what is held out
    assert (top[:, 3:] == -1).all()


def test_buckets_of_few_orders_are_left_out() -> None:
    size = np.r_[np.ones(40, int), np.full(29, 3)]
    found = by_bucket([np.r_[np.full(40, 0.25), np.ones(29)]], np.arange(69), size, ((1, 2), (3, None)))
    assert list(found) == ["1–2"]
    assert found["1–2"][0] == 40
    assert found["1–2"][1].mean == 0.25


def test_health_of_semantic_ids_by_hand() -> None:
    codes = np.array([[0, 1, 0], [0, 1, 1], [0, 1, 2], [2, 3, 0], [2, 0, 0]], np.int32)
    paths = [("A", "x"), ("A", "x"), ("B", "y"), ("B", "y"), ("B", "z")]
    catalog = Catalog([Item(str(n), "", path) for n, path in enumerate(paths)], {})
    health = semantic_id_health(SemanticIdTable(codes, (4, 4, 8)), catalog)
    assert health["usage per level"] == [2 / 4, 3 / 4]
    assert health["items that share their codes"] == 3 / 5
    assert health["items that need a suffix"] == 2 / 5
    assert health["largest collision"] == 3
    assert health["purity of the first code, first category level"] == (2 + 2) / 5
    assert health["largest category, first category level"] == 3 / 5
    assert health["purity of the first code, second category level"] == (2 + 1) / 5


def test_lists_come_back_from_disk(tmp_path: Path) -> None:
    store = ListStore(tmp_path / "lists")
    record = Record("frequency × recency + 0.1 EASE", "peer", "a mix", seed=3, training_s=1.5)
    assert store.records() == []
    store.save(record.contender, 3, {"all": ALL, "novel": NOVEL})
    store.save(record.contender, 3, {"all": ALL, "novel": NOVEL}, "orders0")
    store.save_record(record)
    store.save_record(Record("C", "ours", "has no lists", seed=0))
    assert store.records() == [record]
    assert store.load(record.contender, 3)["novel"].tolist() == NOVEL.tolist()
    store.save_cold("C", 0, ColdItems(np.array([3]), np.array([1]), ALL[:1]))
    assert store.load_cold("C", 0).top_Qk.tolist() == ALL[:1].tolist()


def test_names_of_files_keep_contenders_apart() -> None:
    assert slug("frequency × recency + 0.1 EASE") == "frequency-recency-0.1-EASE"
    assert slug("popularity, 4 weeks") == "popularity-4-weeks"
