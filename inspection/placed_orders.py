"""What users really ordered, from a prepared data folder (docs/data-format.md): the truth beside a list.

`baguni data validate` checks such a folder; here it is only read.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from zoneinfo import ZoneInfo

import pandas as pd
import pyarrow as pa

from baguni.domain.errors import InvalidInputError
from baguni.parquet import read_parquet

COLUMNS = ["user_id", "item_id", "action", "order_id", "time"]


@dataclass(frozen=True)
class PlacedOrder:
    """One order. `time_ms` is that of its latest line; each item once."""

    order_id: str
    time_ms: int
    item_ids: tuple[str, ...]


class OrderLog:
    """All orders of a folder."""

    def __init__(self, lines: pd.DataFrame) -> None:
        """`lines`: user_id, item_id, order_id and time_ms of each line of an order."""
        self._lines = lines.sort_values("user_id", kind="stable", ignore_index=True)
        self._users = self._lines["user_id"].to_numpy(object)

    def orders(self, user_id: str) -> list[PlacedOrder]:
        """A user's orders, oldest first; none for somebody who is not in the folder."""
        start, stop = self._users.searchsorted(user_id), self._users.searchsorted(user_id, side="right")
        orders = [
            PlacedOrder(str(order_id), int(lines["time_ms"].max()), tuple(dict.fromkeys(lines["item_id"])))
            for order_id, lines in self._lines.iloc[start:stop].groupby("order_id", sort=False)
        ]
        return sorted(orders, key=lambda order: (order.time_ms, order.order_id))

    def next_order(self, user_id: str, after_ms: int) -> PlacedOrder | None:
        """The first order after a moment, None if there is none."""
        return next((order for order in self.orders(user_id) if order.time_ms > after_ms), None)


def read_orders(folder: Path) -> OrderLog:
    """The orders of the folder. Raises InvalidInputError where it is not one, or has no orders."""
    try:
        timezone = str(json.loads((folder / "dataset.json").read_text())["timezone"])
        ZoneInfo(timezone)
        events = _events(folder)
        lines = events[events["action"] == "order"]
        time_ms = _utc(lines["time"], timezone).dt.as_unit("ms").astype("int64")
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise InvalidInputError(
            f"{folder} cannot be read: {error}; `baguni data validate {folder}` says more"
        ) from error
    if lines.empty:
        raise InvalidInputError(f"{folder} has no orders, expected events whose action is order")
    return OrderLog(lines.drop(columns=["action", "time"]).assign(time_ms=time_ms))


def _events(folder: Path) -> pd.DataFrame:
    file = folder / "events.parquet"
    if file.is_file():
        events: pd.DataFrame = read_parquet(file, COLUMNS).to_pandas()
        return events
    return pd.read_csv(folder / "events.csv", usecols=COLUMNS, dtype=str, keep_default_na=False)


def _utc(times: pd.Series, timezone: str) -> pd.Series:
    """Times without a zone are on the store's clock."""
    if not pd.api.types.is_datetime64_any_dtype(times):
        text = times.str.strip()
        zoned = text.str.contains(r"(?:Z|[+-]\d\d:?\d\d)$", regex=True)
        parsed = pd.to_datetime(text[zoned], utc=True, format="ISO8601")
        naive = pd.to_datetime(text[~zoned], format="ISO8601")
        return pd.concat([parsed, _utc(naive, timezone)]).reindex(times.index) if len(naive) else parsed
    zoned_times = times
    if times.dt.tz is None:
        zoned_times = times.dt.tz_localize(timezone, ambiguous=True, nonexistent="shift_forward")
    utc: pd.Series = zoned_times.dt.tz_convert("UTC")
    return utc
