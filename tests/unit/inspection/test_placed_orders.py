"""What users really ordered next."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pandas as pd
import pytest

from baguni.domain.errors import InvalidInputError
from inspection.placed_orders import read_orders
from tests.tiny_shop import TIMEZONE, events, write_tiny_shop

ROWS = """user_id,item_id,action,order_id,time
u1,rye,click,,2024-03-01T18:02:11-05:00
u1,rye,order,o-1,2024-03-01T18:30:00-05:00
u1,milk,order,o-1,2024-03-01T18:30:00-05:00
u1,milk,order,o-1,2024-03-01T18:30:00-05:00
u1,rye,order,o-2,2024-04-02T12:00:00
u0,milk,order,o-0,2024-03-05T12:00:00
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "dataset.json").write_text('{"name": "shop", "timezone": "America/New_York"}')
    (tmp_path / "events.csv").write_text(ROWS)
    return tmp_path


def local_ms(*moment: int) -> int:
    return int(datetime(*moment, tzinfo=ZoneInfo(TIMEZONE)).timestamp() * 1000)  # type: ignore[misc,arg-type]


def test_the_next_order_is_the_first_later_one_with_each_item_once(folder: Path) -> None:
    log = read_orders(folder)
    first = local_ms(2024, 3, 1, 18, 30)
    order = log.next_order("u1", first - 1)
    assert order is not None
    assert (order.order_id, order.time_ms, order.item_ids) == ("o-1", first, ("rye", "milk"))
    later = log.next_order("u1", first)
    assert later is not None
    assert (later.order_id, later.time_ms) == ("o-2", local_ms(2024, 4, 2, 12))
    assert log.next_order("u1", later.time_ms) is None


def test_somebody_who_is_not_in_the_folder_has_no_orders(folder: Path) -> None:
    assert read_orders(folder).orders("u") == []
    assert read_orders(folder).orders("u2") == []


def test_csv_and_parquet_of_the_same_shop_have_the_same_orders(tmp_path: Path) -> None:
    csv = write_tiny_shop(tmp_path / "csv")
    parquet = write_tiny_shop(tmp_path / "parquet")
    (parquet / "events.csv").unlink()
    events().assign(time=lambda rows: pd.to_datetime(rows["time"])).to_parquet(parquet / "events.parquet")
    assert read_orders(csv).orders("user-7") == read_orders(parquet).orders("user-7")
    assert len(read_orders(csv).orders("user-7")) == 16


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("dataset.json", "{}", "timezone"),
        ("dataset.json", '{"timezone": "Mars/Olympus"}', "Mars/Olympus"),
        ("events.csv", "user_id,item_id,action\n", "order_id"),
        ("events.csv", ROWS.replace("order,", "click,"), "has no orders"),
        ("events.csv", ROWS.replace("2024-04-02T12:00:00", "yesterday"), "yesterday"),
    ],
)
def test_a_folder_that_is_none_is_named_with_what_is_wrong(folder: Path, file: str, content: str, words: str) -> None:
    (folder / file).write_text(content)
    with pytest.raises(InvalidInputError, match=words) as raised:
        read_orders(folder)
    assert str(folder) in str(raised.value)


def test_a_folder_without_files_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"dataset\.json"):
        read_orders(tmp_path)
