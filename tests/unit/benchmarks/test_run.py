"""Our model as a contender, trained on the tiny shop: what is made, what is shared, and what no model may have seen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.quality.measure import Truth, check_lists
from benchmarks.quality.measured import Measured
from benchmarks.quality.ours import without_bought
from benchmarks.quality.report_slices import discounts
from benchmarks.quality.run import Bars, our_contenders, peer_contenders, run_cold_items, run_contenders, run_discounts
from benchmarks.quality.shop import DISCOUNTS, Shop
from tests.tiny_release import tiny_run
from trainer.data.reading import load_dataset
from trainer.recipes import Recipe
from trainer.run import Progress, silent

pytestmark = pytest.mark.slow


def never() -> Iterator[Progress]:
    raise AssertionError("nothing was left to make")


@contextmanager
def quiet() -> Iterator[Progress]:
    yield silent


@pytest.fixture(scope="module")
def recipe_and_shop(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Shop]:
    """The tiny shop after a benchmark of A, C and the teacher, one seed, and cold items."""
    folder = tmp_path_factory.mktemp("quality")
    recipe = replace(tiny_run(folder).recipe, steps=6, rescored_share=0.5)
    shop = Shop.open("complete-journey", folder / "shop", folder / "work", min_orders=1)
    benchmark(shop, recipe, quiet)
    run_cold_items(shop, recipe, silent)
    return recipe, shop


def benchmark(shop: Shop, recipe: Recipe, bars: Bars) -> None:
    chosen = [contender for contender in our_contenders(shop, recipe) if contender.name != "B"]
    run_contenders(shop, chosen, [0], bars)


def test_every_variant_answers_every_order_by_the_protocol(recipe_and_shop: tuple[Recipe, Shop]) -> None:
    _, shop = recipe_and_shop
    assert [record.contender for record in shop.store.records()] == ["A", "C", "generative", "served", "teacher"]
    for record in shop.store.records():
        check_lists(shop.store.load(record.contender, 0), Truth(shop.queries))
        assert record.training_s > 0
        assert record.samples_per_s > 0
    assert shop.store.has("C", 0, "orders1")
    assert not shop.store.has("teacher", 0, "orders1")


def test_what_is_served_is_the_list_of_c_in_another_order(recipe_and_shop: tuple[Recipe, Shop]) -> None:
    _, shop = recipe_and_shop
    retrieved, served = shop.store.load("C", 0), shop.store.load("served", 0)
    assert (retrieved["novel"] == served["novel"]).all()
    assert (retrieved["all"] != served["all"]).any()


def test_what_is_there_is_not_made_again(recipe_and_shop: tuple[Recipe, Shop]) -> None:
    recipe, shop = recipe_and_shop
    benchmark(shop, recipe, contextmanager(never))


def test_retrieval_alone_has_the_semantic_ids_of_the_dual_run_and_no_generative_head(
    recipe_and_shop: tuple[Recipe, Shop],
) -> None:
    _, shop = recipe_and_shop
    dual, alone = shop.folder / "runs" / "seed0", shop.folder / "runs" / "seed0-alone"
    assert (dual / "semantic_ids.npz").read_bytes() == (alone / "semantic_ids.npz").read_bytes()
    assert (dual / "dual_head.pt").read_bytes() != (alone / "dual_head.pt").read_bytes()
    by_name = {record.contender: record.recipe for record in shop.store.records()}
    assert by_name["A"]["generative_weight"] == 0
    assert by_name["C"]["generative_weight"] > 0


def test_held_out_items_are_in_no_order_before_the_test_month_and_alone_in_the_lists(
    recipe_and_shop: tuple[Recipe, Shop],
) -> None:
    _, shop = recipe_and_shop
    cold = shop.store.load_cold("C", 0)
    without = load_dataset(shop.folder / "without-items-seed0")
    before = without.before(shop.queries.start_ms)
    assert not np.isin(before.item_E, cold.held_out).any()
    assert len(without.catalog) == len(shop.dataset.catalog)
    assert len(before.item_E) == (~np.isin(shop.dataset.before(shop.queries.start_ms).item_E, cold.held_out)).sum()
    assert set(np.unique(cold.top_Qk).tolist()) <= {-1, *cold.held_out.tolist()}
    assert (cold.top_Qk >= 0).any()


def test_a_larger_discount_lists_less_of_what_is_popular(recipe_and_shop: tuple[Recipe, Shop]) -> None:
    recipe, shop = recipe_and_shop
    run_discounts(shop, recipe, silent)
    rows = Measured(shop, shop.store.records(), (10,)).discounts()
    assert [row["discount"] for row in rows] == list(DISCOUNTS)
    np.testing.assert_array_equal(shop.store.load("C", 0, "discount0.0")["all"], shop.store.load("C", 0)["all"])
    assert rows[-1]["novel"]["popularity lift"] < rows[0]["novel"]["popularity lift"]
    summary = {"discounts": rows, "settings": ["all", "novel"]}
    assert sum(line.startswith("| 0.") for line in discounts(summary)) == len(DISCOUNTS)


def test_in_the_literatures_protocol_nobody_is_trained_on_the_validation_month(tmp_path: Path) -> None:
    tiny_run(tmp_path)
    names = ("amazon-beauty", "amazon-beauty-literature")
    plain, literature = (Shop.open(name, tmp_path / "shop", tmp_path / "work", min_orders=1) for name in names)
    assert plain.train_until_ms == plain.queries.start_ms
    assert literature.train_until_ms < literature.queries.start_ms
    np.testing.assert_array_equal(literature.queries.order_Q, plain.queries.order_Q)  # and all the same are asked
    assert literature.queries.purchases().item_P.tolist() == plain.queries.purchases().item_P.tolist()
    for shop in (plain, literature):
        (popular,) = (peer for peer in peer_contenders(shop) if peer.name == "global popularity")
        lists = popular.make(0, silent).lists(shop.queries)
        trained_on = shop.dataset.before(shop.train_until_ms)
        sold_N = np.bincount(trained_on.item_E[trained_on.order_E >= 0], minlength=len(shop.dataset.catalog))
        np.testing.assert_array_equal(shop.frequency_N, sold_N)
        assert (np.diff(sold_N[lists["all"]], axis=1) <= 0).all()


def test_bought_items_leave_novel_lists_and_the_rest_moves_up(tmp_path: Path) -> None:
    tiny_run(tmp_path)
    shop = Shop.open("complete-journey", tmp_path / "shop", tmp_path / "work", min_orders=1)
    truth = Truth(shop.queries)
    items = np.arange(60)
    bought = items[truth.bought(np.zeros(60, int), items)]
    new = np.setdiff1d(items, bought)
    top = np.full((len(truth), 10), -1)
    top[0, :4] = bought[0], new[0], bought[1], new[1]
    assert without_bought(top, truth)[0, :4].tolist() == [new[0], new[1], -1, -1]
