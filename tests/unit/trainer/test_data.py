"""The data format: every problem is reported where it is, and nothing is dropped silently."""

from __future__ import annotations

import random
import re
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from baguni.domain.errors import InvalidInputError
from baguni.domain.history import Action
from tests.conftest import repository
from tests.damage import damaged
from tests.tiny_shop import write_tiny_shop
from trainer.data.cli import data
from trainer.data.complete_journey import prepare
from trainer.data.dataset import Dataset
from trainer.data.reading import load_dataset, validate
from trainer.data.splits import evaluation_queries, last_month_start_ms, local_ms


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    return write_tiny_shop(tmp_path / "shop")


def change(path: Path, row: int, column: str, value: str) -> None:
    """Set one cell; `row` counts as users do, from 1."""
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    frame.loc[row - 1, column] = value
    frame.to_csv(path, index=False)


PROBLEMS = [
    ("items.csv", 3, "item_id", "bread-rye", "twice"),
    ("items.csv", 3, "item_id", "", "empty"),
    ("items.csv", 4, "title", " ", "empty"),
    ("items.csv", 5, "category", "", "empty"),
    ("items.csv", 6, "available", "maybe", "truth value"),
    ("events.csv", 7, "item_id", "no-such", "not among the items"),
    ("events.csv", 8, "user_id", "", "empty"),
    ("events.csv", 9, "user_id", "u" * 257, "longer than 256"),
    ("events.csv", 10, "action", "stole", "order, click, cart"),
    ("events.csv", 1, "order_id", "", "empty"),
    ("events.csv", 200, "order_id", "order-0-0", "another user"),
    ("events.csv", 12, "time", "yesterday", "ISO 8601"),
    ("events.csv", 12, "time", "1889-01-01T00:00:00", "before 1990"),
    ("events.csv", 12, "time", "2999-01-01T00:00:00", "future"),
]


@pytest.mark.parametrize(("file", "row", "column", "value", "words"), PROBLEMS)
def test_a_problem_is_reported_with_file_row_and_what_was_expected(shop, file, row, column, value, words) -> None:
    if column == "order_id" and value:
        change(shop / file, row, "action", "order")
    change(shop / file, row, column, value)
    found = [p for p in validate(shop).problems if p.column == column and p.row == row]
    assert found, validate(shop).problems
    assert any(words in problem.message for problem in found)
    assert all(problem.file == file for problem in found)


def test_all_problems_are_reported_at_once_and_loading_refuses(shop: Path) -> None:
    for row in range(1, 8):
        change(shop / "events.csv", row, "item_id", f"unknown-{row}")
    change(shop / "items.csv", 1, "title", "")
    assert len(validate(shop).problems) == 8
    with pytest.raises(InvalidInputError, match="8 problems"):
        load_dataset(shop)


@pytest.mark.parametrize("file", ["items.csv", "events.csv", "dataset.json"])
def test_a_missing_file_is_named(shop: Path, file: str) -> None:
    (shop / file).unlink()
    assert file.split(".")[0] in validate(shop).problems[0].file


def test_a_missing_column_is_named(shop: Path) -> None:
    pd.read_csv(shop / "events.csv").drop(columns=["time"]).to_csv(shop / "events.csv", index=False)
    assert [(p.file, p.column) for p in validate(shop).problems] == [("events.csv", "time")]


def test_an_unknown_time_zone_is_named(shop: Path) -> None:
    (shop / "dataset.json").write_text('{"name": "x", "timezone": "Mars/Olympus"}')
    assert "time zone" in validate(shop).problems[0].message


@pytest.mark.parametrize("file", ["items.csv", "dataset.json"])
def test_a_file_in_another_encoding_is_named(shop: Path, file: str) -> None:
    content = (shop / file).read_text(encoding="utf-8")
    (shop / file).write_bytes(content.replace("a", "가").encode("cp949"))
    (problem,) = (found for found in validate(shop).problems if found.file == file)
    assert "which is not UTF-8: export it as UTF-8" in problem.message


def test_a_byte_order_mark_is_no_problem(shop: Path) -> None:
    for file in ("items.csv", "events.csv", "dataset.json"):
        (shop / file).write_text((shop / file).read_text(encoding="utf-8"), encoding="utf-8-sig")
    assert not validate(shop).problems


def test_the_command_exits_with_1_on_problems_and_0_without(shop: Path) -> None:
    assert CliRunner().invoke(data, ["validate", str(shop)]).exit_code == 0
    change(shop / "items.csv", 1, "title", "")
    result = CliRunner().invoke(data, ["validate", str(shop)])
    assert result.exit_code == 1
    assert "items.csv" in result.output


def test_a_naive_time_is_the_stores_and_a_zoned_one_is_an_instant(shop: Path) -> None:
    change(shop / "events.csv", 1, "time", "2024-01-10T08:00:00")
    change(shop / "events.csv", 2, "time", "2024-01-10T13:00:00Z")
    times = set(load_dataset(shop).time_E.tolist())
    assert local_ms(datetime(2024, 1, 10, 8), "America/New_York") in times
    assert local_ms(datetime(2024, 1, 10, 13), "UTC") in times
    assert local_ms(datetime(2024, 1, 10, 8), "America/New_York") == local_ms(datetime(2024, 1, 10, 13), "UTC")


@pytest.mark.parametrize("stem", ["items", "events"])
def test_a_damaged_table_is_read_or_named(shop: Path, stem: str) -> None:
    rng = random.Random(stem)
    pd.read_csv(shop / f"{stem}.csv", dtype=str, keep_default_na=False).to_parquet(
        shop / f"{stem}.parquet", compression=None
    )
    (shop / f"{stem}.csv").unlink()
    sound, refused = (shop / f"{stem}.parquet").read_bytes(), list[str]()
    for _ in range(100):
        (shop / f"{stem}.parquet").write_bytes(damaged(sound, rng))
        try:
            load_dataset(shop)
        except InvalidInputError as error:
            refused.append(str(error))
    assert len(refused) > 30
    assert all(stem in message for message in refused)


def test_parquet_and_csv_give_the_same_data(shop: Path) -> None:
    from_csv = load_dataset(shop)
    for stem in ("items", "events"):
        frame = pd.read_csv(shop / f"{stem}.csv", dtype={"user_id": str, "item_id": str, "order_id": str})
        if stem == "events":
            frame["time"] = pd.to_datetime(frame["time"])
        frame.to_parquet(shop / f"{stem}.parquet")
        (shop / f"{stem}.csv").unlink()
    from_parquet = load_dataset(shop)
    for column in ("user_E", "item_E", "action_E", "order_E", "time_E"):
        assert np.array_equal(getattr(from_csv, column), getattr(from_parquet, column))
    assert from_csv.catalog.items == from_parquet.catalog.items


def test_histories_are_the_rows_of_the_log(shop: Path) -> None:
    dataset = load_dataset(shop)
    user = dataset.user_index["user-3"]
    history = dataset.history(user)
    rows = pd.read_csv(shop / "events.csv", keep_default_na=False).query("user_id == 'user-3'")
    assert len(history) == len(rows)
    ordered = {(e.order_id, e.item_id) for e in history if e.action is Action.ORDERED}
    assert ordered == set(rows[rows.action == "order"][["order_id", "item_id"]].itertuples(index=False, name=None))


def test_before_cuts_time_and_keeps_indexes(shop: Path) -> None:
    dataset = load_dataset(shop)
    start = last_month_start_ms(dataset)
    assert start == local_ms(datetime(2024, 4, 1), "America/New_York")
    past = dataset.before(start)
    assert past.time_E.max() < start
    assert past.catalog is dataset.catalog
    assert past.user_ids == dataset.user_ids


def test_first_queries_are_one_per_eligible_user_and_rolling_are_all(shop: Path) -> None:
    dataset = load_dataset(shop)
    start, orders = last_month_start_ms(dataset), dataset.orders()
    rolling = evaluation_queries(dataset, start, mode="rolling").order_Q
    first = evaluation_queries(dataset, start, mode="first").order_Q
    assert (orders.time_O[rolling] >= start).all()
    assert sorted(set(orders.user_O[rolling].tolist())) == orders.user_O[first].tolist()
    assert len(evaluation_queries(dataset, start, min_orders=1000)) == 0


def test_the_documented_example_is_well_formed(tmp_path: Path) -> None:
    page = (repository() / "docs/data-format.md").read_text()
    blocks = re.findall(r"```(json|csv)\n(.*?)```", page, flags=re.DOTALL)
    for name, (_, block) in zip(("dataset.json", "items.csv", "events.csv"), blocks, strict=True):
        (tmp_path / name).write_text(block)
    found = validate(tmp_path)
    assert not found.problems
    assert found.tables is not None
    assert found.tables.attribute_types == {"brand": "string", "price": "number"}
    assert len(load_dataset(tmp_path).time_E) == 3


@pytest.fixture(scope="module")
def complete_journey(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, dict[str, int]]:
    folder = tmp_path_factory.mktemp("complete-journey")
    counts = prepare(folder)
    return load_dataset(folder), counts


def test_complete_journey_has_the_protocols_catalogue_orders_and_households(complete_journey) -> None:
    dataset, counts = complete_journey
    assert len(dataset.catalog) == 11_659
    assert len(dataset.order_ids) == 131_332
    assert len(dataset.user_ids) == 2_456
    kept = counts["lines kept"] + sum(n for what, n in counts.items() if what.startswith(("dropped", "merged")))
    assert kept == counts["lines read"]


def test_complete_journey_has_the_protocols_december(complete_journey) -> None:
    dataset, _ = complete_journey
    start, frozen = last_month_start_ms(dataset), local_ms(datetime(2017, 11, 1), dataset.store_timezone)
    sizes = [len(evaluation_queries(dataset, start, None, mode, 5, frozen)) for mode in ("first", "rolling")]
    assert sizes == [1_934, 10_732]


def test_global_popularity_has_the_published_score(complete_journey) -> None:
    """The protocol's own row: popularity over all of the past, first orders of December, HR .391 and NDCG .085."""
    from trainer.metrics import per_order, top_k

    dataset, _ = complete_journey
    start, frozen = last_month_start_ms(dataset), local_ms(datetime(2017, 11, 1), dataset.store_timezone)
    queries = evaluation_queries(dataset, start, None, "first", 5, frozen).order_Q
    orders = dataset.orders()
    before = dataset.before(start)
    popularity = np.bincount(before.item_E, minlength=len(dataset.catalog)).astype(float)
    top = np.repeat(top_k(popularity[None], 10, np.random.default_rng(0)), len(queries), axis=0)
    sizes = orders.last_O[queries] - orders.first_O[queries]
    rows = np.repeat(np.arange(len(queries)), sizes)
    items = np.concatenate(
        [orders.item_P[a:b] for a, b in zip(orders.first_O[queries], orders.last_O[queries], strict=True)]
    )
    metrics = per_order(top, rows, items)
    assert round(float(metrics["HR"].mean()), 3) == 0.391
    assert round(float(metrics["NDCG"].mean()), 3) == 0.085
