"""Reading a shop's own data: every problem with its file, row and what was expected; no row is ever dropped silently.

Columns are read as they come and checked as whole columns, so a million rows take seconds. Rows are counted as a user
counts them: the first row of data is row 1.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
import pandas as pd
import pyarrow as pa

from baguni.domain.catalog import CATEGORY_SEPARATOR, Catalog, Item
from baguni.domain.errors import InvalidInputError
from baguni.domain.events import MAX_ID_LENGTH
from baguni.domain.history import Action
from baguni.parquet import read_parquet
from trainer.data.dataset import Dataset

ACTIONS = {"order": Action.ORDERED, "click": Action.CLICKED, "cart": Action.CARTED}
ITEM_COLUMNS = ("item_id", "title", "category")
EVENT_COLUMNS = ("user_id", "item_id", "action", "time")
OPTIONAL_ITEM_COLUMNS = ("description", "available")
IGNORED_EVENT_COLUMNS = ("quantity", "price")
EARLIEST = pd.Timestamp("1990-01-01", tz="UTC")
_ATTRIBUTE_NAME = re.compile(r"[a-z][a-z0-9_]*")
_RESERVED = {"item_id", "vector", "category", "category_prefixes", "available"}


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong. `row` is 0 where the whole file is meant."""

    file: str
    row: int
    column: str
    message: str

    def __str__(self) -> str:
        place = f"{self.file}, row {self.row}" if self.row else self.file
        return f"{place}, {self.column}: {self.message}" if self.column else f"{place}: {self.message}"


@dataclass
class Tables:
    """Checked columns: `items` and `events` with parsed times, attribute types by name."""

    name: str
    timezone: str
    items: pd.DataFrame
    events: pd.DataFrame
    attribute_types: dict[str, str]

    def dataset(self) -> Dataset:
        """As the trainer uses it."""
        catalog = Catalog(_items(self.items, self.attribute_types), self.attribute_types)
        events = self.events
        user_E, user_ids = pd.factorize(events["user_id"], sort=True)
        item_E = pd.Index(self.items["item_id"]).get_indexer(events["item_id"])
        is_order = (events["action"] == "order").to_numpy()
        order_E, order_ids = pd.factorize(events["order_id"].where(is_order), sort=True)
        time_E = events["time"].dt.as_unit("ms").astype("int64").to_numpy()
        action_E = events["action"].map({name: int(a) for name, a in ACTIONS.items()}).to_numpy(np.int64)
        sort = np.lexsort((item_E, order_E, time_E, user_E))
        columns = (column.astype(np.int64)[sort] for column in (user_E, item_E, action_E, order_E, time_E))
        return Dataset(self.name, self.timezone, catalog, tuple(user_ids), tuple(order_ids), *columns)


@dataclass
class Found:
    """What validation found; `tables` is None where problems kept a file from being read."""

    problems: list[Problem] = field(default_factory=list)
    tables: Tables | None = None


def validate(path: Path) -> Found:
    """Read the folder `path` and report every problem."""
    found = Found()
    settings = _settings(path, found)
    items = _read(path, "items", ITEM_COLUMNS, found)
    events = _read(path, "events", EVENT_COLUMNS, found)
    if items is None or events is None or settings is None:
        return found
    items_file, item_rows = items
    events_file, event_rows = events
    attribute_types = _check_items(items_file, item_rows, found)
    times = _check_events(events_file, event_rows, set(item_rows["item_id"].dropna()), settings["timezone"], found)
    if not found.problems:
        if "order_id" not in event_rows:
            event_rows["order_id"] = None
        found.tables = Tables(
            settings["name"], settings["timezone"], item_rows, event_rows.assign(time=times), attribute_types
        )
    return found


def load_dataset(path: Path) -> Dataset:
    """Read a folder in the documented format. Raises InvalidInputError with the first problems if there are any."""
    found = validate(path)
    if found.problems or found.tables is None:
        shown = "\n".join(f"  {problem}" for problem in found.problems[:5])
        raise InvalidInputError(
            f"{path} has {len(found.problems)} problems, the first:\n{shown}\n"
            f"`baguni data validate {path}` reports them all"
        )
    return found.tables.dataset()


def _settings(path: Path, found: Found) -> dict[str, str] | None:
    file = path / "dataset.json"
    try:
        settings = json.loads(file.read_text(encoding="utf-8-sig"))  # some editors begin a file with a mark
        ZoneInfo(settings["timezone"])
        return {"name": str(settings["name"]), "timezone": str(settings["timezone"])}
    except FileNotFoundError:
        message = 'is missing, expected {"name": "my-shop", "timezone": "Europe/Berlin"}'
    except UnicodeDecodeError as error:
        message = _not_utf8(error)
    except (json.JSONDecodeError, TypeError) as error:
        message = f"is no JSON object: {error}"
    except KeyError as error:
        message = f"has no {error}, expected the keys name and timezone"
    except (ZoneInfoNotFoundError, ValueError) as error:
        message = f"names no known time zone: {error}"
    found.problems.append(Problem("dataset.json", 0, "", message))
    return None


def _read(path: Path, stem: str, required: tuple[str, ...], found: Found) -> tuple[str, pd.DataFrame] | None:
    files = [file for suffix in ("parquet", "csv") if (file := path / f"{stem}.{suffix}").is_file()]
    if len(files) != 1:
        what = "both exist, expected one of them" if files else "neither exists, expected one of them"
        found.problems.append(Problem(f"{stem}.parquet or {stem}.csv", 0, "", what))
        return None
    file = files[0]
    try:
        if file.suffix == ".parquet":
            frame = read_parquet(file).to_pandas(strings_to_categorical=False)
        else:
            frame = pd.read_csv(file, dtype=str, keep_default_na=False, encoding="utf-8")
    except UnicodeDecodeError as error:
        found.problems.append(Problem(file.name, 0, "", _not_utf8(error)))
        return None
    except (pa.ArrowException, OSError, ValueError) as error:
        found.problems.append(Problem(file.name, 0, "", f"cannot be read: {error}"))
        return None
    missing = [name for name in required if name not in frame.columns]
    for name in missing:
        found.problems.append(Problem(file.name, 0, name, f"the column is missing, expected {', '.join(required)}"))
    return None if missing else (file.name, frame)


def _not_utf8(error: UnicodeDecodeError) -> str:
    return f"has {error.object[error.start : error.end]!r}, which is not UTF-8: export it as UTF-8"


def _check_items(file: str, items: pd.DataFrame, found: Found) -> dict[str, str]:
    _report_ids(file, items, "item_id", found)
    repeated = items["item_id"].duplicated() & ~_blank(items["item_id"])
    _report(file, "item_id", repeated, items["item_id"], "is there twice, expected each item once", found)
    _report(file, "title", _blank(items["title"]), items["title"], "is empty, expected words for the item", found)
    _report(
        file, "category", _blank(items["category"]), items["category"], "is empty, expected DEPARTMENT > SHELF", found
    )
    if "available" in items:
        parsed = items["available"].map(_truth)
        _report(
            file, "available", parsed.isna(), items["available"], "is no truth value, expected true or false", found
        )
        items["available"] = parsed
    types = {}
    for name in items.columns:
        if name in (*ITEM_COLUMNS, *OPTIONAL_ITEM_COLUMNS):
            continue
        if not _ATTRIBUTE_NAME.fullmatch(str(name)) or name in _RESERVED:
            found.problems.append(
                Problem(file, 0, str(name), "is no attribute name, expected letters a-z, digits and _")
            )
            continue
        items[name], types[name] = _attribute(items[name])
    return types


def _check_events(file: str, events: pd.DataFrame, item_ids: set[str], timezone: str, found: Found) -> pd.Series:
    _report_ids(file, events, "user_id", found)
    unknown = ~events["item_id"].isin(item_ids)
    _report(file, "item_id", unknown, events["item_id"], "is not among the items", found)
    wrong = ~events["action"].isin(list(ACTIONS))
    _report(file, "action", wrong, events["action"], f"is unknown, expected {', '.join(ACTIONS)}", found)
    is_order = events["action"] == "order"
    if "order_id" in events:
        _report(
            file, "order_id", is_order & _blank(events["order_id"]), events["order_id"], "is empty in an order", found
        )
        orders = events[is_order & ~_blank(events["order_id"])]
        first_user = orders.groupby("order_id")["user_id"].transform("first")
        shared = pd.Series(False, index=events.index)
        shared[orders.index] = first_user != orders["user_id"]
        _report(file, "order_id", shared, events["order_id"], "belongs to another user in an earlier row", found)
    elif is_order.any():
        found.problems.append(Problem(file, 0, "order_id", "the column is missing, and there are orders"))
    times = _times(events["time"], timezone)
    expected = "is no time, expected ISO 8601 such as 2017-12-01T18:30:00-05:00"
    _report(file, "time", times.isna(), events["time"], expected, found)
    outside = (times < EARLIEST) | (times > pd.Timestamp.now("UTC") + pd.Timedelta(days=2))
    _report(file, "time", outside, events["time"], "lies before 1990 or in the future", found)
    return times


def _times(column: pd.Series, timezone: str) -> pd.Series:
    """UTC times; naive ones are on the store's clock. What does not parse becomes NaT."""
    if isinstance(column.dtype, pd.DatetimeTZDtype):
        return column.dt.tz_convert("UTC")
    if pd.api.types.is_datetime64_any_dtype(column):
        return column.dt.tz_localize(timezone, ambiguous=True, nonexistent="shift_forward").dt.tz_convert("UTC")
    text = column.astype(str).str.strip()
    zoned = text.str.contains(r"(?:Z|[+-]\d\d:?\d\d)$", regex=True)
    parsed = pd.to_datetime(text.where(zoned), utc=True, errors="coerce", format="ISO8601")
    naive = pd.to_datetime(text.where(~zoned), errors="coerce", format="ISO8601")
    local = naive.dt.tz_localize(timezone, ambiguous=True, nonexistent="shift_forward").dt.tz_convert("UTC")
    return parsed.fillna(local)


def _attribute(column: pd.Series) -> tuple[pd.Series, str]:
    """An attribute's values and type: number or bool where every value that is there is one, else string."""
    present = column[~_blank(column)]
    if pd.api.types.is_bool_dtype(column) or (len(present) and present.map(_truth).notna().all()):
        return column.map(_truth), "bool"
    numbers = pd.to_numeric(present, errors="coerce")
    if len(present) and numbers.notna().all():
        return pd.to_numeric(column.where(~_blank(column)), errors="coerce"), "number"
    return column.where(~_blank(column)).map(str, na_action="ignore"), "string"


def _items(items: pd.DataFrame, attribute_types: dict[str, str]) -> list[Item]:
    description = items["description"].fillna("") if "description" in items else pd.Series("", index=items.index)
    available = items["available"] if "available" in items else pd.Series(True, index=items.index)
    attributes: list[dict[str, str | float | bool]] = [{} for _ in range(len(items))]
    for name in attribute_types:
        for values, value in zip(attributes, items[name].tolist(), strict=True):
            if not pd.isna(value):
                values[name] = value
    categories = (tuple(category.split(CATEGORY_SEPARATOR)) for category in items["category"])
    columns = zip(items["item_id"], items["title"], categories, attributes, available, description, strict=True)
    return [Item(i, title, path, values, bool(there), text) for i, title, path, values, there, text in columns]


def _report_ids(file: str, frame: pd.DataFrame, column: str, found: Found) -> None:
    values = frame[column]
    _report(file, column, _blank(values), values, "is empty", found)
    too_long = values.astype(str).str.len() > MAX_ID_LENGTH
    _report(file, column, too_long, values, f"is longer than {MAX_ID_LENGTH} characters", found)
    no_text = ~_blank(values) & ~values.map(lambda value: isinstance(value, str))
    _report(file, column, no_text, values, "is no text, expected a string column", found)


def _report(file: str, column: str, wrong: pd.Series, values: pd.Series, message: str, found: Found) -> None:
    found.problems.extend(_problems(file, column, wrong, values, message))


def _problems(file: str, column: str, wrong: pd.Series, values: pd.Series, message: str) -> Iterator[Problem]:
    for row in np.flatnonzero(wrong.to_numpy(dtype=bool)).tolist():
        shown = str(values.iloc[row])[:60]
        yield Problem(file, row + 1, column, f"{shown!r} {message}")


def _blank(column: pd.Series) -> pd.Series:
    return column.isna() | (column.astype(str).str.strip() == "")


def _truth(value: object) -> bool | None:
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    return {"true": True, "false": False}.get(str(value).strip().lower())
