"""Whom a campaign is for, one user after the other: memory does not grow with how many there are."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import reduce
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from baguni.domain.catalog import CATEGORY_SEPARATOR, Catalog
from baguni.domain.errors import InvalidInputError
from baguni.domain.history import HistoryEvent
from baguni.stores.history_store import HistoryWriter
from crm.campaign import Audience, Did, FileAudience, HistoryAudience, SegmentAudience, Where

DAY_MS = 86_400_000
READ_AT_ONCE = 500
NUMBER = r"^[0-9]+\.0*$|^[0-9](\.[0-9]+)?[eE]\+[0-9]{2}$"  # as spreadsheets and data frames write an id that they take for one


def users_of(
    audience: Audience, histories: HistoryWriter, catalog: Callable[[], Catalog], now_ms: int
) -> Iterator[str]:
    """The users, in no particular order, some perhaps twice. `catalog` is asked for categories. Raises InvalidInputError that
    names what is wrong, before the first user; UnavailableError if histories are asked and Redis is away."""
    if audience.file is not None:
        return _users_of_file(audience.file)
    if audience.segment is not None:
        return _users_of_segment(audience.segment)
    assert audience.histories is not None
    return _users_of_histories(audience.histories, histories, catalog, now_ms)


def _users_of_file(audience: FileAudience) -> Iterator[str]:
    schema, batches = _open_csv(audience.path) if audience.path.suffix == ".csv" else _open_parquet(audience.path)
    for column in (audience.column, *(where.column for where in audience.where)):
        count = schema.names.count(column)
        if count != 1:
            raise InvalidInputError(
                f"{audience.path} has {count or 'no'} column{'s' * (count > 1)} {column!r}, expected one of "
                f"{', '.join(schema.names)}",
                "audience",
            )
    return _named(_users_of_batches(audience, batches), audience.path)


def _named(users: Iterator[str], path: Path) -> Iterator[str]:
    """Raise InvalidInputError that names the file for what Arrow cannot read of it: a later block may be bad, too."""
    try:
        yield from users
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"audience {path} cannot be read: {error}", "audience") from error


def _users_of_batches(audience: FileAudience, batches: Iterator[pa.RecordBatch]) -> Iterator[str]:
    first_row = 1
    for batch in batches:
        user_ids = _ids(batch[audience.column], audience, first_row)
        first_row += len(batch)
        conditions = [_fits(batch, where, audience.path) for where in audience.where]
        kept = user_ids.filter(reduce(pc.and_kleene, conditions)) if conditions else user_ids
        yield from filter(None, kept.to_pylist())


def _ids(column: pa.Array, audience: FileAudience, first_row: int) -> pa.Array:
    """Return ids as text. Raises InvalidInputError for those that a spreadsheet or a data frame turned into numbers: 2001.0 is
    nobody's id."""
    is_number = pa.types.is_floating(column.type) or pa.types.is_decimal(column.type)
    texts = column.cast(pa.string())
    is_changed = pc.fill_null(pc.match_substring_regex(texts, NUMBER), fill_value=False)
    if is_number:
        is_changed = pc.is_valid(texts)
    if pc.any(is_changed).as_py():
        row = pc.index(is_changed, value=True).as_py()
        raise InvalidInputError(
            f"audience {audience.path} row {first_row + row}: {audience.column} is {texts[row].as_py()!r}, expected an id as "
            "in the events: a spreadsheet or a data frame turned it into a number",
            "audience",
        )
    return texts


def _open_csv(path: Path) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """Every column as text: an id keeps its zeros, and a later block cannot contradict the type that the first suggests."""
    try:
        with path.open("rb") as file:
            names = pa.csv.open_csv(file).schema.names
        as_text = pa.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False)
        reader = pa.csv.open_csv(path, convert_options=as_text)
    except (OSError, pa.ArrowException) as error:
        raise InvalidInputError(f"audience {path} is no CSV file: {error}", "audience") from error
    return reader.schema, iter(reader)


def _open_parquet(path: Path) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    try:
        file = pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise InvalidInputError(f"audience {path} is no Parquet file: {error}", "audience") from error
    return file.schema_arrow, file.iter_batches()


def _fits(batch: pa.RecordBatch, where: Where, path: Path) -> pa.Array:
    column, conditions = batch[where.column], []
    if isinstance(where.equals, bool):
        conditions.append(pc.equal(pc.utf8_lower(column.cast(pa.string())), str(where.equals).lower()))
    elif isinstance(where.equals, float):
        conditions.append(pc.equal(_numbers(column, where, path), where.equals))
    elif where.equals is not None:
        conditions.append(pc.equal(column.cast(pa.string()), where.equals))
    if where.at_least is not None:
        conditions.append(pc.greater_equal(_numbers(column, where, path), where.at_least))
    if where.at_most is not None:
        conditions.append(pc.less_equal(_numbers(column, where, path), where.at_most))
    return pc.fill_null(reduce(pc.and_kleene, conditions), fill_value=False)


def _numbers(column: pa.Array, where: Where, path: Path) -> pa.Array:
    try:
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            column = pc.if_else(pc.equal(column, ""), pa.scalar(None, column.type), column)
        return column.cast(pa.float64())
    except pa.ArrowException as error:
        raise InvalidInputError(
            f"{path}: column {where.column!r} is compared with a number: {error}", "audience"
        ) from error


def _users_of_segment(segment: SegmentAudience) -> Iterator[str]:
    """`baguni segment` in a process of its own: it needs torch, which this one does not."""
    kind = "category" if segment.within_days is None else "repurchase"
    command = [sys.executable, "-m", "baguni.cli", "segment", kind, str(segment.data)]
    options = {
        "--run": segment.run, "--recipe": segment.recipe, "--category": segment.category, "--item": segment.item_id,
        "--within-days": segment.within_days,
    }  # fmt: skip
    for name, value in options.items():
        if value is not None:
            command += [name, str(value)]
    column = "probability" if segment.within_days is None else f"bought_within_{segment.within_days:g}_days"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "segment.csv"
        done = subprocess.run([*command, "--out", str(path)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise InvalidInputError(f"audience.segment: {done.stderr.strip() or done.stdout.strip()}", "audience")
        likely = Where(column=column, at_least=segment.min_probability)
        yield from _users_of_file(FileAudience(path=path, column="user", where=(likely,)))


def _users_of_histories(
    audience: HistoryAudience, histories: HistoryWriter, catalog: Callable[[], Catalog], now_ms: int
) -> Iterator[str]:
    did = [_counter(condition, catalog, now_ms) for condition in audience.did]
    did_not = [_counter(condition, catalog, now_ms) for condition in audience.did_not]
    user_ids = histories.user_ids()
    while some := list(islice(user_ids, READ_AT_ONCE)):
        for user_id, history in zip(some, histories.read(some), strict=True):
            if not history.events:
                continue
            if all(holds(history.events) for holds in did) and not any(holds(history.events) for holds in did_not):
                yield user_id


def _counter(condition: Did, catalog: Callable[[], Catalog], now_ms: int) -> Callable[[tuple[HistoryEvent, ...]], bool]:
    item_ids = set(condition.item_ids)
    if condition.category:
        under = condition.category + CATEGORY_SEPARATOR
        found = {
            item.item_id
            for item in catalog().items
            if item.category == condition.category or item.category.startswith(under)
        }
        if not found:
            raise InvalidInputError(
                f"audience: no item of the active release has the category {condition.category!r}, expected a path such as "
                f"{catalog().items[0].category!r}",
                "audience",
            )
        item_ids |= found
    since_ms = 0 if condition.within_days is None else now_ms - int(condition.within_days * DAY_MS)

    def holds(events: tuple[HistoryEvent, ...]) -> bool:
        times = 0
        for event in reversed(events):
            if event.time_ms < since_ms:
                break
            if event.action is condition.number and (not item_ids or event.item_id in item_ids):
                times += 1
                if times >= condition.at_least:
                    return True
        return False

    return holds
