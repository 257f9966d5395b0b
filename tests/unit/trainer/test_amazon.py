"""Reviews without a clock become orders on one, so that leave-one-out is the split by months."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from baguni.domain.errors import InvalidInputError, NotFoundError
from trainer.data.amazon import prepare
from trainer.data.reading import load_dataset
from trainer.data.splits import evaluation_queries, last_month_start_ms

BEAUTY = {"asin": "A", "title": "Red lacquer", "brand": None, "categories": ["Makeup", "Nails"]}
SPORTS = {"asin": "B", "keyphrase": "clean gun", "attributes": ["Tipton", "Sports & Outdoors", "Hunting", "Kits"]}


def write(folder: Path, sequences: str) -> Path:
    rows = [{"item_id": n, **(BEAUTY if n % 2 else SPORTS)} for n in range(1, 6)]
    with gzip.open(folder / "items.jsonl.gz", "wt") as file:
        file.write("\n".join(json.dumps(row) for row in rows))
    with gzip.open(folder / "sequences.txt.gz", "wt") as file:
        file.write(sequences)
    return folder


def test_the_last_item_is_the_test_and_the_one_before_it_validates(tmp_path: Path) -> None:
    prepare(tmp_path / "data", write(tmp_path, "1 5 1 2\n2 3 4 1 5\n"))
    data = load_dataset(tmp_path / "data")
    test_start = last_month_start_ms(data)
    orders = data.orders()

    def targets(log, start: int) -> list[str]:
        chosen = evaluation_queries(log, start, min_orders=1).order_Q
        return [log.catalog.items[log.orders().item_P[order]].item_id for order in chosen]

    assert targets(data, test_start) == ["2", "5"]
    validation = data.before(test_start)
    assert targets(validation, last_month_start_ms(validation)) == ["1", "1"]
    assert (orders.last_O - orders.first_O == 1).all()


def test_brand_and_path_come_from_categories_or_from_attributes(tmp_path: Path) -> None:
    prepare(tmp_path / "data", write(tmp_path, "1 1 2 3\n"))
    items = {item.item_id: item for item in load_dataset(tmp_path / "data").catalog.items}
    assert (items["1"].category, items["1"].attributes.get("brand")) == ("Makeup > Nails", None)
    assert (items["2"].title, items["2"].category, items["2"].attributes["brand"]) == (
        "clean gun",
        "Hunting > Kits",
        "Tipton",
    )


def test_a_user_too_short_to_split_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="user 9 has 2 items, expected at least 3"):
        prepare(tmp_path / "data", write(tmp_path, "1 1 2 3\n9 1 2\n"))


def test_a_folder_without_the_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"sequences.txt.gz"):
        prepare(tmp_path / "data", tmp_path)
