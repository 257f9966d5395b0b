"""Promises judged by hand, and a report of made-up contenders on a made-up shop."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from baguni.domain.catalog import Catalog, Item
from baguni.domain.semantic_ids import SemanticIdTable
from benchmarks.quality.measure import K
from benchmarks.quality.page import html_page
from benchmarks.quality.plots import pictures
from benchmarks.quality.promises import promised_rows
from benchmarks.quality.report import render
from benchmarks.quality.results import write_report, write_runs, write_summary
from benchmarks.quality.shop import Shop
from benchmarks.quality.slices import cold_item_queries, cold_users
from benchmarks.quality.store import ColdItems, Record
from benchmarks.quality.summary import summarise
from benchmarks.quality.tables import number
from trainer.data.dataset import Dataset
from trainer.data.queries import OrderQueries
from trainer.metrics import top_k

NUM_USERS, NUM_ITEMS, WEEKS, TEST_WEEK = 80, 40, 8, 6
MACHINE = {"cpu": "abacus", "cores": 2, "memory_gb": 1, "gpu": None}


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """Four contenders, better the more their scores know of the truth; two seeds of C; cold users and cold items."""
    shop = made_up_shop("complete-journey", tmp_path_factory.mktemp("work"))
    for place, (name, seed) in enumerate([("EASE", 0), ("A", 0), ("C", 0), ("C", 1), ("teacher", 0)]):
        shop.store.save(name, seed, made_up_lists(shop.queries, place / 10, seed))
        family = "peer" if name == "EASE" else "ours"
        shop.store.save_record(
            Record(
                name, family, f"made-up {name}", seed, {"steps": 7}, 60.0 * place, machine=MACHINE, date="2026-01-01"
            )
        )
        shop.store.save(name, seed, made_up_lists(cold_users(shop.queries, 1), place / 20, seed), "orders1")
    held_out = np.arange(0, NUM_ITEMS, 2)
    query = cold_item_queries(shop.queries, held_out)
    shop.store.save_cold("C", 0, ColdItems(held_out, query, np.tile(held_out[:K], (len(query), 1))))
    run = shop.folder / "runs/seed0"
    run.mkdir(parents=True)
    np.save(run / "embeddings.npy", np.random.default_rng(0).standard_normal((NUM_ITEMS, 4)).astype(np.float32))
    return shop


def made_up_shop(name: str, folder: Path, largest: int = 5, weeks: int = WEEKS) -> Shop:
    rng = np.random.default_rng(0)
    rows = [
        (user, item, user * WEEKS + week, week * 10 + 1)
        for user in range(NUM_USERS)
        for week in range(weeks)
        for item in np.sort(rng.choice(NUM_ITEMS, rng.integers(1, largest + 1), replace=False)).tolist()
    ]
    user, item, number, time = (np.asarray(column, np.int64) for column in zip(*rows, strict=True))
    items = [Item(str(index), f"item {index}", ("ODD" if index % 2 else "EVEN",)) for index in range(NUM_ITEMS)]
    users = tuple(f"user-{index}" for index in range(NUM_USERS))
    orders = tuple(f"order-{index}" for index in range(NUM_USERS * WEEKS))
    dataset = Dataset(name, "UTC", Catalog(items, {}), users, orders, user, item, np.ones_like(user), number, time)
    return Shop(name, folder, folder / name, dataset, OrderQueries.of(dataset, TEST_WEEK * 10, min_orders=1))


def made_up_lists(queries: OrderQueries, knowledge: float, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    scores = rng.random((len(queries), NUM_ITEMS))
    scores[queries.true_row_P, queries.true_item_P] += knowledge
    novel, bought = scores.copy(), queries.purchases()
    novel[bought.row_P, bought.item_P] = -np.inf
    return {"all": top_k(scores, K, rng), "novel": top_k(novel, K, rng)}


@pytest.fixture(scope="module")
def summary(made_up: Shop) -> dict[str, Any]:
    codes = np.c_[np.arange(NUM_ITEMS) // 10, np.arange(NUM_ITEMS) % 10, np.zeros(NUM_ITEMS, int)].astype(np.int32)
    return summarise(made_up, (10,), SemanticIdTable(codes, (4, 16, 16)))


@pytest.fixture(scope="module")
def written(made_up: Shop, summary: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("repository")
    folder = root / "results" / "quality" / made_up.name
    write_summary(folder, summary)
    write_runs(folder, summary, made_up.store.records(), "make bench-quality")
    write_report(root / "results", root / "docs", "make bench-quality")
    return root


def a_summary(**changes: Any) -> dict[str, Any]:
    """C .62 and .24, its peer .60 and .20, its A .50, its teacher .80: one value for all settings."""
    scores = {"C": (0.62, 0.24), "EASE": (0.60, 0.20), "A": (0.50, 0.15), "teacher": (0.80, 0.30)}
    metrics = {
        name: {"rolling": {s: {"HR@10": {"mean": hr}, "NDCG@10": {"mean": n}} for s in ("all", "novel")}}
        for name, (hr, n) in scores.items()
    }
    comparisons = [
        {
            "first": "C",
            "second": second,
            "mode": "rolling",
            "setting": setting,
            "metric": metric,
            "difference": difference,
            "low": difference - 0.05,
            "high": difference + 0.05,
            "base": base,
            "relative": difference / base,
        }
        for setting in ("all", "novel")
        for second, metric, difference, base in (
            ("EASE", "NDCG@10", 0.04, 0.20),
            ("A", "HR@10", 0.12, 0.50),
            ("teacher", "HR@10", -0.18, 0.80),
        )
    ]
    whole = {
        "dataset": "complete-journey",
        "metrics": metrics,
        "comparisons": comparisons,
        "best_peer": {"all": "EASE", "novel": "EASE"},
        "best_head": "C",
        "contenders": {"C": {"training_s": [3000, 5460]}},
        "cold_items": None,
    }
    return whole | changes


def test_each_promise_is_a_row_with_its_bar_and_whether_it_holds() -> None:
    rows = {row.what: row for row in promised_rows(a_summary())}
    every = "Complete Journey, rolling, all items: "
    hit_rate = rows[every + "HR@10 of C"]
    assert (hit_rate.value, hit_rate.bar) == (0.62, "reported")
    assert (hit_rate.reference, hit_rate.reference_value) == ("EASE", 0.60)
    assert hit_rate.ratio == pytest.approx(0.62 / 0.60)
    gain = rows[every + "NDCG@10 of C over the best peer"]
    assert gain.value == pytest.approx(20.0)
    assert (gain.bar, gain.holds) == ("≥ 3.5 %", True)
    never = "Complete Journey, rolling, never bought: "
    assert (rows[never + "HR@10 of C"].bar, rows[never + "NDCG@10 of C"].bar) == ("≥ 0.112", "≥ 0.023")
    assert rows[never + "NDCG@10 of the teacher"].holds
    lower = rows[every + "NDCG@10, C − EASE, lower end of the paired interval"]
    assert lower.value == pytest.approx(-0.01)
    assert not lower.holds
    assert rows[every + "HR@10, C − A, lower end of the paired interval"].holds


def test_where_a_list_was_rescored_it_is_the_one_that_is_promised() -> None:
    summary = a_summary()
    summary["metrics"]["served"] = summary["metrics"]["A"]
    summary["comparisons"] += [row | {"first": "served"} for row in summary["comparisons"] if row["second"] == "EASE"]
    rows = {row.what: row.value for row in promised_rows(summary)}
    assert rows["Complete Journey, rolling, all items: HR@10 of served"] == 0.50


def test_the_worst_size_of_an_order_must_not_be_below_the_peer() -> None:
    sizes = {"1–2": {"relative": 0.02}, "21+": {"relative": -0.01}}
    baskets = {"by_size": sizes, "by_items": {"relative": 0.01}}
    rows = {row.what: row for row in promised_rows(a_summary(baskets=baskets))}
    every = "Complete Journey, rolling, all items: the same, "
    worst = rows[every + "worst size of an order (21+ items)"]
    assert (worst.value, worst.holds) == (pytest.approx(-1.0), False)
    assert rows[every + "each item counted alike"].value == pytest.approx(1.0)


def test_ratios_stand_beside_those_of_the_source() -> None:
    rows = {row.what: row for row in promised_rows(a_summary())}
    over_alone = rows["Complete Journey, rolling, never bought: HR@10, C over A"]
    assert (over_alone.value, over_alone.reference_value) == (pytest.approx(0.62 / 0.50), 1.66)
    of_teacher = rows["Complete Journey, rolling, never bought: HR@10, C over its teacher"]
    assert (of_teacher.value, of_teacher.reference_value) == (pytest.approx(0.62 / 0.80), 0.80)


def test_training_is_as_long_as_its_slowest_seed() -> None:
    row = next(row for row in promised_rows(a_summary()) if "training" in row.what)
    assert (row.value, row.holds) == (91.0, False)


def test_cold_items_must_beat_chance_their_category_and_neighbours() -> None:
    cold = {
        "model": {"mean": 0.10, "low": 0.08, "high": 0.12},
        "category": {"mean": 0.09, "low": 0.07, "high": 0.11},
        "random": 0.02,
        "over_category": {"difference": 0.01, "low": -0.01, "high": 0.03, "base": 0.09},
        "neighbours": {"mean": 0.12, "low": 0.11, "high": 0.13},
        "over_neighbours": {"difference": -0.02, "low": -0.03, "high": -0.01, "base": 0.12},
    }
    rows = [row for row in promised_rows(a_summary(cold_items=cold)) if "held out" in row.what]
    assert [(row.reference, row.reference_value, row.holds) for row in rows] == [
        ("chance", 0.02, False),
        ("popularity of the category", 0.09, False),
        ("neighbours by text", 0.12, False),
    ]


def test_on_amazon_the_best_head_must_pass_the_bar_of_the_literatures_protocol() -> None:
    metrics = {
        name: {"rolling": {"novel": {"Recall@10": {"mean": recall}, "NDCG@10": {"mean": ndcg}}}}
        for name, recall, ndcg in (("C", 0.098, 0.055), ("SASRec", 0.099, 0.058))
    }
    found = a_summary(dataset="amazon-beauty-literature", metrics=metrics)
    rows = promised_rows(found)
    assert [(row.value, row.bar, row.holds) for row in rows] == [(0.098, "≥ 0.0975", True), (0.055, "≥ 0.056", False)]
    assert [row.reference_value for row in rows] == [0.099, 0.058]
    found["dataset"] = "amazon-beauty"  # the literature's bars are for its own protocol
    assert [row.bar for row in promised_rows(found)] == ["reported"] * 2


def test_contenders_that_were_not_run_give_no_rows() -> None:
    assert promised_rows(a_summary(metrics={}, comparisons=[], contenders={})) == []
    assert promised_rows(a_summary(dataset="amazon-sports", metrics={}, comparisons=[], best_head=None)) == []


def test_summary_finds_the_best_and_compares_the_pairs_of_the_ablation(summary: dict[str, Any]) -> None:
    assert summary["best_peer"] == {"all": "EASE", "novel": "EASE"}
    assert summary["best_head"] == "teacher"
    pairs = {(row["first"], row["second"]) for row in summary["comparisons"]}
    assert pairs == {("C", "EASE"), ("teacher", "EASE"), ("C", "A"), ("C", "teacher")}
    assert summary["contenders"]["C"]["seeds"] == [0, 1]
    cell = summary["metrics"]["C"]["rolling"]["all"]["NDCG@10"]
    assert cell["mean"] == pytest.approx(np.mean(cell["seeds"]))
    assert list(summary["cold_users"]["C"]) == ["1", "whole"]
    whole = summary["cold_users"]["C"]["whole"]["all"]["NDCG@10"]["mean"]
    assert whole == summary["metrics"]["C"]["first"]["all"]["NDCG@10"]["mean"]
    assert summary["cold_items"]["random"] == K / (NUM_ITEMS / 2)


def test_report_names_every_contender_and_every_promise(written: Path, summary: dict[str, Any]) -> None:
    page = (written / "docs" / "quality.md").read_text()
    result = json.loads((written / "results" / "quality.json").read_text())
    for row in result["rows"]:
        assert f"| {row['what']} | {row['value']:.4g}" in page
        if not row["holds"]:
            assert f"- {row['what']} is " in page
    for name in summary["metrics"]:
        assert f"| {name} | made-up {name} |" in page
    assert result["rows"]
    assert "2 cores of abacus" in page


def test_html_page_has_the_pictures_and_needs_no_network(written: Path) -> None:
    page = (written / "docs" / "quality.html").read_text()
    assert page.count("<svg") == page.count("<figure") == 6
    assert "picture:" not in page
    assert not re.findall(r"(?:https?:)?//\w", page)
    assert not re.findall(r'(?:src|href)="[^#]|url\([^#]|@import', page)


def test_orders_of_one_item_show_recall_once_and_only_what_can_be_new(tmp_path: Path) -> None:
    shop = made_up_shop("amazon-beauty-literature", tmp_path, largest=1, weeks=TEST_WEEK + 1)
    for name in ("A", "C"):
        shop.store.save(name, 0, made_up_lists(shop.queries, 0.2, 0))
        shop.store.save_record(Record(name, "ours", f"made-up {name}", 0, machine=MACHINE, date="2026-01-01"))
    found = summarise(shop, (5, 10), None)
    assert list(found["metrics"]["C"]["rolling"]) == ["novel"]
    page = render([found], promised_rows(found))
    assert "| contender | Recall@5 | NDCG@5 | Recall@10 | NDCG@10 |" in page
    assert "**all items**" not in page.split("## Amazon Beauty, trained as in the literature")[1]
    assert "| TIGER | published: arXiv:2305.05065 | .0454 | .0321 | .0648 | .0384 |" in page
    assert "published" in pictures(found)


@pytest.mark.parametrize(
    ("value", "sign", "shown"),
    [(0.2204, "", ".2204"), (-0.012, "+", "−.0120"), (10.5, "", "10.5000"), (0, "+", "+.0000")],
)
def test_numbers_lose_only_a_leading_zero(value: float, sign: str, shown: str) -> None:
    assert number(value, sign) == shown


def test_one_file_a_run(written: Path) -> None:
    folder = written / "results" / "quality" / "complete-journey"
    names = {path.name for path in folder.iterdir()}
    assert names == {
        f"{run}.json" for run in ("EASE-seed0", "A-seed0", "C-seed0", "C-seed1", "teacher-seed0", "summary")
    }
    run = json.loads((folder / "C-seed1.json").read_text())
    assert (run["contender"], run["seed"], run["recipe"], run["machine"]) == ("C", 1, {"steps": 7}, MACHINE)
    summary = json.loads((folder / "summary.json").read_text())
    row = next(row for row in run["rows"] if row["what"] == "rolling, all items: NDCG@10")
    assert row["value"] == summary["metrics"]["C"]["rolling"]["all"]["NDCG@10"]["seeds"][1]


def test_markdown_tables_become_html_and_missing_pictures_nothing() -> None:
    page = html_page("# T\n\n<!-- picture: a/b -->\n\n| x |\n| --- |\n| 1 |\n", {})
    assert "<title>T</title>" in page
    assert "<td>1</td>" in page
    assert "<figure" not in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0,x"], "--seeds is '0,x', expected different numbers such as 0,1,2"),
        (["--seeds", "1,1"], "--seeds is '1,1'"),
        (["--dataset", "amazon-beauty", "--data", "nowhere"], "nowhere does not exist"),
    ],
)
def test_bad_options_are_one_clear_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    from click.testing import CliRunner

    from benchmarks.quality.cli import benchmark

    result = CliRunner().invoke(benchmark, ["quality", "--work", str(tmp_path), *arguments])
    assert message in str(result.exception)
    assert "\n" not in str(result.exception)
