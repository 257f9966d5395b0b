"""Histories in bulk, beside a consumer: loaded from Parquet, rebuilt from topics, and compared with both."""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis
from click.testing import CliRunner, Result

from baguni.domain.errors import InvalidInputError
from baguni.domain.history import Action, HistoryEvent
from baguni.settings import Endpoints
from baguni.stores.history_store import HistoryWriter
from streaming.histories import read_file
from streaming.histories_cli import histories
from tests.damage import damaged
from tests.integration.streams import Shop, cancellation, click, deletion, order

pytestmark = pytest.mark.stack
TIME_MS = 1_700_000_000_000


@pytest.fixture
def endpoints(stack: Endpoints, monkeypatch: pytest.MonkeyPatch) -> Endpoints:
    """The stack with an empty Redis database, which no consumer writes; commands find it by the environment."""
    endpoints = stack.model_copy(update={"redis_url": stack.redis_url.replace("/0", "/6")})
    for name, value in endpoints.environment().items():
        monkeypatch.setenv(name, value)
    with redis.Redis.from_url(endpoints.redis_url) as client:
        client.flushdb()
    return endpoints


@pytest.fixture
def writer(endpoints: Endpoints) -> Iterator[HistoryWriter]:
    with redis.Redis.from_url(endpoints.redis_url) as client:
        yield HistoryWriter(client)


@pytest.fixture
def shop(stack: Endpoints) -> Iterator[Shop]:
    producing = Shop(stack)
    yield producing
    producing.close()


def run(*arguments: str) -> Result:
    return CliRunner().invoke(histories, arguments, catch_exceptions=False)


def write_events(path: Path, **columns: list[object]) -> Path:
    """A file of two users, with some columns changed; times are of New York."""
    zone = ZoneInfo("America/New_York")
    times = [
        datetime.fromtimestamp(TIME_MS / 1000 + n, UTC).astimezone(zone).replace(tzinfo=None) for n in (0, 0, 1, 2)
    ]
    table = {
        "user_id": ["u1", "u1", "u2", "u1"],
        "item_id": ["rye", "milk", "jam", "7"],
        "action": ["order", "order", "click", "cart"],
        "order_id": ["o1", "o1", None, "ignored"],
        "time": times,
        **columns,
    }
    pq.write_table(pa.table(table), path)
    return path


def test_a_file_is_loaded_once_however_often_and_beside_what_streams_in(
    writer: HistoryWriter, tmp_path: Path, endpoints: Endpoints
) -> None:
    path = str(write_events(tmp_path / "events.parquet"))
    writer.apply({"u1": [HistoryEvent("milk", Action.ORDERED, TIME_MS, "o1"), HistoryEvent("tea", Action.CLICKED, 5)]})
    for _ in range(2):
        result = run("load", path, "--timezone", "America/New_York")
        assert result.exit_code == 0
        assert "4 events" in result.output
    first, second = writer.read(["u1", "u2"])
    assert first.events == (
        HistoryEvent("tea", Action.CLICKED, 5),
        HistoryEvent("milk", Action.ORDERED, TIME_MS, "o1"),
        HistoryEvent("rye", Action.ORDERED, TIME_MS, "o1"),
        HistoryEvent("7", Action.CARTED, TIME_MS + 2_000),
    )
    assert second.events == (HistoryEvent("jam", Action.CLICKED, TIME_MS + 1_000),)


@pytest.mark.parametrize(
    ("columns", "timezone", "message"),
    [
        ({}, None, "column time has no time zone, expected one, or --timezone"),
        ({}, "Mars", "--timezone is 'Mars', expected a name such as Asia/Seoul"),
        (
            {"action": ["order", "order", "look", "cart"]},
            "UTC",
            "row 3: action is 'look', expected one of order, click",
        ),
        ({"user_id": ["u1", "", "u2", "u1"]}, "UTC", "row 2: user_id is '', expected text of 1 to 256 characters"),
        ({"item_id": ["rye", "milk", "jam", None]}, "UTC", "row 4: item_id is None"),
        ({"order_id": [None, "o1", None, None]}, "UTC", "row 1: order_id is None"),
        ({"time": [1, 2, 3, 4]}, "UTC", "column time is int64, expected timestamps"),
        ({"time": [None, *[datetime(2023, 1, 1)] * 3]}, "UTC", "row 1: time is None, expected a time after 1990"),
    ],
)
def test_a_bad_file_is_refused_by_row_and_column(tmp_path: Path, columns, timezone: str | None, message: str) -> None:
    path = write_events(tmp_path / "events.parquet", **columns)
    with pytest.raises(InvalidInputError) as error:
        list(read_file(path, timezone))
    assert message in str(error.value)


def test_what_is_no_parquet_or_lacks_a_column_is_refused(tmp_path: Path) -> None:
    (tmp_path / "no.parquet").write_text("user_id,item_id")
    with pytest.raises(InvalidInputError, match="is no Parquet file"):
        list(read_file(tmp_path / "no.parquet"))
    pq.write_table(pa.table({"user_id": ["u1"]}), tmp_path / "few.parquet")
    with pytest.raises(InvalidInputError, match="has no column item_id, action, order_id, time"):
        list(read_file(tmp_path / "few.parquet"))


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
def test_a_damaged_file_is_read_or_named(tmp_path: Path, compression: str) -> None:
    """Bits that turned, pages that were overwritten, files that were cut: bytes that are no text, and times without a date."""
    rng, rows = random.Random(compression), 400
    columns = {
        "user_id": [f"u{row % 7}" for row in range(rows)],
        "item_id": [f"소금 {row}" for row in range(rows)],
        "action": ["order"] * rows,
        "order_id": [f"o{row // 5}" for row in range(rows)],
        "time": [datetime(2024, 1, 1 + row % 20, tzinfo=UTC) for row in range(rows)],
    }
    pq.write_table(pa.table(columns), tmp_path / "sound.parquet", compression=compression)
    sound, refused = (tmp_path / "sound.parquet").read_bytes(), list[str]()
    for _ in range(150):
        (tmp_path / "events.parquet").write_bytes(damaged(sound, rng))
        try:
            list(read_file(tmp_path / "events.parquet", "UTC"))
        except InvalidInputError as error:
            refused.append(str(error))
    assert len(refused) > 50
    assert all("events.parquet" in message for message in refused)


CSV = """user_id,quantity,item_id,action,order_id,time
u2,,jam,click,,2024-03-01T18:30:01+09:00
u1,2,rye,order,0017,2024-03-01T18:30:00
u1,1,milk,order,0017,2024-03-01T09:30:00Z
"""


def test_a_csv_file_says_the_same(tmp_path: Path) -> None:
    """Ids stay text; times with and without a zone may stand side by side."""
    (tmp_path / "events.csv").write_text(CSV)
    found = dict(read_file(tmp_path / "events.csv", "Asia/Seoul"))
    at = int(datetime(2024, 3, 1, 9, 30, tzinfo=UTC).timestamp() * 1000)
    assert sorted(found["u1"]) == sorted(HistoryEvent(item, Action.ORDERED, at, "0017") for item in ("rye", "milk"))
    assert found["u2"] == [HistoryEvent("jam", Action.CLICKED, at + 1_000)]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("action", "what", "has no column action"),
        ("T18:30:00\n", "T18:30:00Z,7\n", "Expected 6 columns, got 7"),
        ("2024-03-01T09:30:00Z", "yesterday", "row 3: time is 'yesterday', expected ISO 8601"),
        ("01T09:30:00Z", "01T09:30:00", "row 2: time is '2024-03-01T18:30:00', expected a time zone, or --timezone"),
        ("jam,click", "jam,look", "row 1: action is 'look'"),
        ("order,0017", "order,", "row 2: order_id is ''"),
    ],
)
def test_a_bad_csv_file_is_refused_by_row_and_column(tmp_path: Path, old: str, new: str, message: str) -> None:
    (tmp_path / "events.csv").write_text(CSV.replace(old, new, 1))
    with pytest.raises(InvalidInputError) as error:
        list(read_file(tmp_path / "events.csv", None if "time zone" in message else "Asia/Seoul"))
    assert message in str(error.value)


def test_topics_rebuild_what_redis_lost_and_a_difference_is_named(
    writer: HistoryWriter, shop: Shop, tmp_path: Path, endpoints: Endpoints
) -> None:
    """Cancelled and deleted included. Other tests' events are in the topics too."""
    user, gone = (f"{name}-{uuid.uuid4().hex[:8]}" for name in ("user", "gone"))
    for message in (
        order(user, "o1", "rye", "milk", time_ms=TIME_MS),
        order(user, "o2", "salt", time_ms=TIME_MS + 1),
        cancellation(user, "o2", TIME_MS + 2),
        click(user, "tea", TIME_MS + 3),
        click(gone, "jam", TIME_MS),
        deletion(gone, TIME_MS + 5),
    ):
        shop.send(message)
    path = str(write_events(tmp_path / "events.parquet", user_id=[user, user, f"{user}-2", user]))
    assert run("load", path, "--timezone", "America/New_York").exit_code == 0
    assert run("verify", path, "--timezone", "America/New_York").exit_code == 1  # the topics' part is missing
    rebuilt = run("rebuild", "--from-topic")
    assert rebuilt.exit_code == 0, rebuilt.output
    assert [event.item_id for event in writer.read([user])[0].events] == ["milk", "rye", "tea", "7"]
    assert writer.read([gone])[0].events == ()

    verified = run("verify", path, "--timezone", "America/New_York")
    assert verified.exit_code == 0, verified.output
    assert "histories are what the batch build says" in verified.output

    writer.apply({user: [HistoryEvent("stray", Action.CLICKED, TIME_MS + 9)]})
    differing = run("verify", path, "--timezone", "America/New_York")
    assert differing.exit_code == 1
    assert "1 of" in differing.output
    assert "stray" in differing.output


def test_dropping_asks_first(writer: HistoryWriter, endpoints: Endpoints) -> None:
    writer.apply({"u1": [HistoryEvent("rye", Action.CLICKED, 1)]})
    refused = CliRunner().invoke(histories, ["rebuild", "--from-topic", "--drop"], input="n\n")
    assert refused.exit_code == 1
    assert len(writer.read(["u1"])[0]) == 1
    agreed = CliRunner().invoke(histories, ["rebuild", "--from-topic", "--drop"], input="y\n", catch_exceptions=False)
    assert agreed.exit_code == 0
    assert len(writer.read(["u1"])[0]) == 0
