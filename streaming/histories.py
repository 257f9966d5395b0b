"""Histories in bulk: from files, from the topics, and whether Redis holds what both say. A history is a set, so consumers may
run meanwhile: what both write is there once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv

from baguni.clients.topics import Offsets, TopicReader
from baguni.domain.errors import InvalidInputError
from baguni.domain.events import (
    EARLIEST_TIME_MS,
    MAX_ID_LENGTH,
    USER_TOPICS,
    MalformedEvent,
    UserEvents,
    latest_time_ms,
    read,
)
from baguni.domain.history import MAX_EVENTS, Action, Change, HistoryEvent, build
from baguni.stores.history_store import HistoryWriter

COLUMNS = ("user_id", "item_id", "action", "order_id", "time")
ACTIONS = {"order": Action.ORDERED, "click": Action.CLICKED, "cart": Action.CARTED}
ROWS, CSV_BYTES = 250_000, 16 << 20  # read at a time
SORTED_AT_ONCE = 16  # of these: a user is written once then
USERS = 250  # written, or compared, at a time
ROUNDS = 5  # of waiting for what arrives while histories are compared

UserChanges = tuple[str, Sequence[Change]]


def read_file(path: Path, timezone: str | None = None) -> Iterator[UserChanges]:
    """Events of a Parquet or CSV file as docs/data-format.md has them, by user; a user may come several times. `timezone`: of
    times that name none. Raises InvalidInputError that names the column or the first bad row."""
    first_row = 1
    with _opened(path) as batches:
        while some := list(islice(batches, SORTED_AT_ONCE)):
            table = pa.Table.from_batches(some)
            ordered = _checked(table, path, first_row, timezone)
            latest_ms = _times_of_orders(ordered)
            for start in range(0, len(ordered), ROWS):
                yield from _by_user(ordered.slice(start, ROWS), latest_ms)
            first_row += len(table)


@contextmanager
def _opened(path: Path) -> Iterator[Iterator[pa.RecordBatch]]:
    """The file's columns, some rows at a time."""
    is_csv = path.suffix.lower() == ".csv"
    try:
        if is_csv:
            names = csv.open_csv(path, csv.ReadOptions(block_size=CSV_BYTES)).schema.names
        else:
            names = pq.ParquetFile(path).schema_arrow.names
    except (OSError, pa.ArrowException) as error:
        raise InvalidInputError(f"{path} is no {'CSV' if is_csv else 'Parquet'} file: {error}") from error
    missing = [name for name in COLUMNS if name not in names]
    if missing:
        raise InvalidInputError(f"{path} has no column {', '.join(missing)}, expected {', '.join(COLUMNS)}")
    if is_csv:
        as_text = csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), include_columns=COLUMNS)
        with csv.open_csv(path, csv.ReadOptions(block_size=CSV_BYTES), convert_options=as_text) as reader:
            yield _named(iter(reader), path)
    else:
        with pq.ParquetFile(path) as file:
            yield _named(file.iter_batches(ROWS, columns=list(COLUMNS)), path)


def _named(batches: Iterator[pa.RecordBatch], path: Path) -> Iterator[pa.RecordBatch]:
    """Yield the batches. Raises InvalidInputError that names the file, for a row with too many or too few cells, for damaged
    pages, and for bytes that are no UTF-8."""
    try:
        for batch in batches:
            batch.validate(full=True)
            yield batch
    except (pa.ArrowException, OSError) as error:
        raise InvalidInputError(f"{path}: {error}") from error


def read_events(reader: TopicReader) -> Iterator[UserChanges]:
    """What the user topics say; malformed records, which have their dead letters, are skipped."""
    latest_ms = latest_time_ms()
    for record in reader:
        try:
            event = read(record, latest_ms)
        except MalformedEvent:
            continue
        if isinstance(event, UserEvents):
            yield event.user_id, event.changes


def load(writer: HistoryWriter, histories: Iterable[UserChanges]) -> Iterator[int]:
    """Write histories; yields how many events each round trip took. Raises UnavailableError; safe to repeat as a whole."""
    sizes: deque[int] = deque()
    for _ in writer.apply_each(_batches(histories, sizes)):
        yield sizes.popleft()


def _batches(histories: Iterable[UserChanges], sizes: deque[int]) -> Iterator[Mapping[str, Sequence[Change]]]:
    users = iter(histories)
    while batch := list(islice(users, USERS)):
        changes: dict[str, list[Change]] = {}
        for user_id, theirs in batch:
            changes.setdefault(user_id, []).extend(theirs)
        sizes.append(sum(map(len, changes.values())))
        yield changes


@dataclass(frozen=True)
class Difference:
    """One user whose stored history is not what it should be."""

    user_id: str
    missing: tuple[HistoryEvent, ...]
    surplus: tuple[HistoryEvent, ...]


@dataclass
class Expected:
    """What histories should be, by all that ever happened to them, in memory."""

    max_events: int = MAX_EVENTS
    changes: dict[str, set[Change]] = field(default_factory=dict)

    def add(self, histories: Iterable[UserChanges]) -> None:
        """Take more into account."""
        for user_id, theirs in histories:
            self.changes.setdefault(user_id, set()).update(theirs)

    def differences(self, writer: HistoryWriter, user_ids: Iterable[str]) -> Iterator[Difference]:
        """Of these users, those whose stored histories differ."""
        ids = iter(user_ids)
        while batch := list(islice(ids, USERS)):
            for user_id, stored in zip(batch, writer.read(batch), strict=True):
                expected = build(self.changes.get(user_id, ()), self.max_events)
                if stored.events != expected:
                    missing = tuple(event for event in expected if event not in stored.events)
                    surplus = tuple(event for event in stored.events if event not in expected)
                    yield Difference(user_id, missing, surplus)


def verify(
    writer: HistoryWriter, bootstrap: str, files: Iterable[Iterator[UserChanges]] = (), max_events: int = MAX_EVENTS
) -> tuple[int, list[Difference]]:
    """Compare every history with a batch build of the topics, and of files that were loaded. Returns how many users there are
    and those that differ. What arrives meanwhile is read, too, until the differences stay."""
    expected = Expected(max_events)
    for file in files:
        expected.add(file)
    since = _catch_up(expected, bootstrap, {})
    user_ids = expected.changes.keys() | set(writer.user_ids())
    found = list(expected.differences(writer, user_ids))
    for _ in range(ROUNDS):
        if not found:
            break
        since = _catch_up(expected, bootstrap, since)
        again = list(expected.differences(writer, [difference.user_id for difference in found]))
        if again == found:
            break
        found = again
    return len(user_ids), found


def _catch_up(expected: Expected, bootstrap: str, since: Offsets) -> Offsets:
    reader = TopicReader(bootstrap, USER_TOPICS, since)
    expected.add(read_events(reader))
    return reader.ends


def _checked(table: pa.Table, path: Path, first_row: int, timezone: str | None) -> pa.Table:
    """The columns that events are made of, sorted by user, time and order."""
    time_ms = _milliseconds(table["time"], path, first_row, timezone)
    texts = {name: table[name].cast(pa.string()) for name in COLUMNS[:-1]}
    is_order = pc.equal(texts["action"], "order")
    texts["order_id"] = pc.if_else(is_order, texts["order_id"], "")
    for name in ("user_id", "item_id", "order_id"):
        low = pc.if_else(is_order, 1, 0) if name == "order_id" else 1
        length = pc.fill_null(pc.utf8_length(texts[name]), -1)
        fits = pc.and_(pc.greater_equal(length, low), pc.less_equal(length, MAX_ID_LENGTH))
        _require(fits, texts[name], name, f"text of 1 to {MAX_ID_LENGTH} characters", path, first_row)
    known = pc.is_in(texts["action"], value_set=pa.array(list(ACTIONS)))
    _require(known, texts["action"], "action", f"one of {', '.join(ACTIONS)}", path, first_row)
    filled = pc.fill_null(time_ms, 0)
    is_possible = pc.and_(pc.greater_equal(filled, EARLIEST_TIME_MS), pc.less_equal(filled, latest_time_ms()))
    _require(is_possible, table["time"], "time", "a time after 1990 and not in the future", path, first_row)
    keys = [("user_id", "ascending"), ("time_ms", "ascending"), ("order_id", "ascending")]
    return pa.table({**texts, "time_ms": time_ms}).sort_by(keys)


def _times_of_orders(ordered: pa.Table) -> dict[tuple[str, str], int]:
    """(user, order) → the latest time of its lines, where they have several: an order has one, and a later one would replace
    the lines of before."""
    orders = ordered.filter(pc.not_equal(ordered["order_id"], "")).group_by(["user_id", "order_id"])
    times = orders.aggregate([("time_ms", "min"), ("time_ms", "max")])
    several = times.filter(pc.not_equal(times["time_ms_min"], times["time_ms_max"]))
    keys = zip(several["user_id"].to_pylist(), several["order_id"].to_pylist(), strict=True)
    return dict(zip(keys, several["time_ms_max"].to_pylist(), strict=True))


def _by_user(rows: pa.Table, latest_ms: Mapping[tuple[str, str], int]) -> Iterator[UserChanges]:
    columns = (rows[name].to_pylist() for name in ("user_id", "item_id", "action", "order_id", "time_ms"))
    user_ids, item_ids, actions, order_ids, times_ms = columns
    if latest_ms:
        orders = zip(user_ids, order_ids, times_ms, strict=True)
        times_ms = [latest_ms.get((user_id, order_id), time_ms) for user_id, order_id, time_ms in orders]
    events = map(HistoryEvent, item_ids, map(ACTIONS.__getitem__, actions), times_ms, order_ids)
    for user_id, theirs in groupby(zip(user_ids, events, strict=True), key=itemgetter(0)):
        yield user_id, [event for _, event in theirs]


def _milliseconds(time: pa.ChunkedArray, path: Path, first_row: int, timezone: str | None) -> pa.ChunkedArray:
    if pa.types.is_string(time.type):
        return pa.chunked_array([_from_text(time, path, first_row, timezone)])
    if not pa.types.is_timestamp(time.type):
        raise InvalidInputError(f"{path}: column time is {time.type}, expected timestamps")
    if time.type.tz is None:
        if timezone is None:
            raise InvalidInputError(f"{path}: column time has no time zone, expected one, or --timezone")
        try:
            time = pc.assume_timezone(time, timezone, ambiguous="earliest", nonexistent="latest")
        except (pa.ArrowException, OSError) as error:
            raise _no_timezone(timezone, error) from error
    return pc.cast(time, pa.timestamp("ms", "UTC"), safe=False).cast(pa.int64())


def _no_timezone(timezone: str | None, error: Exception) -> InvalidInputError:
    return InvalidInputError(f"--timezone is {timezone!r}, expected a name such as Asia/Seoul: {error}")


def _from_text(time: pa.ChunkedArray, path: Path, first_row: int, timezone: str | None) -> pa.Array:
    """ISO 8601 → milliseconds."""
    try:
        zone = ZoneInfo(timezone) if timezone else None
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise _no_timezone(timezone, error) from error
    found = []
    for row, text in enumerate(time.to_pylist(), first_row):
        try:
            moment = datetime.fromisoformat(text)
        except (ValueError, TypeError) as error:
            expected = "ISO 8601 such as 2024-03-01T18:30:00+09:00"
            raise InvalidInputError(f"{path} row {row}: time is {text!r}, expected {expected}") from error
        if moment.tzinfo is None and zone is None:
            raise InvalidInputError(f"{path} row {row}: time is {text!r}, expected a time zone, or --timezone")
        found.append(int((moment if moment.tzinfo else moment.replace(tzinfo=zone)).timestamp() * 1000))
    return pa.array(found, pa.int64())


def _shown(value: pa.Scalar) -> str:
    """Return a value for a message, also a time that Python has no date for."""
    try:
        return repr(value.as_py())
    except (OverflowError, ValueError):
        return f"{value.value} {value.type}"


def _require(
    fits: pa.ChunkedArray, values: pa.ChunkedArray, column: str, expected: str, path: Path, first_row: int
) -> None:
    fits = pc.fill_null(fits, fill_value=False)
    if not pc.all(fits).as_py():
        row = pc.index(fits, False).as_py()
        raise InvalidInputError(f"{path} row {first_row + row}: {column} is {_shown(values[row])}, expected {expected}")
