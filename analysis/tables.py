"""Exposures and what users did, as tables: from Parquet, or from the topics.

exposures   unit_id, experiment, variation, time_ms
actions     unit_id, action, time_ms, value       action: click, cart or order; value: what an order is worth
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from google.protobuf.message import DecodeError, Message
from google.protobuf.timestamp_pb2 import Timestamp

from baguni.errors import InvalidInputError
from baguni.events import EXPOSURE_TOPIC, TOPICS
from baguni.topics import Record, TopicReader
from baguni.v1 import events_pb2, exposures_pb2

ACTIONS = ("click", "cart", "order")
EXPOSURES = {"unit_id": pa.string(), "experiment": pa.string(), "variation": pa.string(), "time_ms": pa.int64()}
DONE = {"unit_id": pa.string(), "action": pa.string(), "time_ms": pa.int64(), "value": pa.float64()}
READERS = {
    "OrderPlaced": events_pb2.OrderPlaced,
    "ItemClicked": events_pb2.ItemClicked,
    "CartAdded": events_pb2.CartAdded,
}


@dataclass(frozen=True)
class Tables:
    """Both, as data frames."""

    exposures: pd.DataFrame
    actions: pd.DataFrame


def read_parquet(exposures: Path, actions: Path) -> Tables:
    """Raises InvalidInputError that names a column or a value."""
    tables = Tables(_frame(exposures, EXPOSURES), _frame(actions, DONE))
    unknown = tables.actions[~tables.actions["action"].isin(ACTIONS)]
    if len(unknown):
        raise InvalidInputError(
            f"{actions}: action is {unknown['action'].iloc[0]!r}, expected one of {', '.join(ACTIONS)}"
        )
    return tables


def read_topics(bootstrap: str) -> Tables:
    """Everything that the topics hold; what is malformed is skipped, and has its dead letter. Raises UnavailableError."""
    served = pd.DataFrame(
        [row for record in TopicReader(bootstrap, [EXPOSURE_TOPIC], {}) for row in _exposures(record)],
        columns=list(EXPOSURES),
    )
    topics = sorted({TOPICS[name] for name in READERS})
    done = pd.DataFrame(
        [row for record in TopicReader(bootstrap, topics, {}) for row in _actions(record)], columns=list(DONE)
    )
    return Tables(served, done.drop_duplicates())  # a producer that tries again says the same twice


def write_parquet(tables: Tables, folder: Path) -> None:
    """exposures.parquet and actions.parquet."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, frame, columns in (("exposures", tables.exposures, EXPOSURES), ("actions", tables.actions, DONE)):
        pq.write_table(
            pa.Table.from_pandas(frame, pa.schema(columns), preserve_index=False), folder / f"{name}.parquet"
        )


def _frame(path: Path, columns: dict[str, pa.DataType]) -> pd.DataFrame:
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise InvalidInputError(f"{path} is no Parquet file: {error}") from error
    missing = [name for name in columns if name not in table.column_names]
    if missing:
        raise InvalidInputError(f"{path} has no column {', '.join(missing)}, expected {', '.join(columns)}")
    try:
        table = table.select(list(columns)).cast(pa.schema(columns))
    except pa.ArrowException as error:
        raise InvalidInputError(
            f"{path}: {error}, expected {', '.join(f'{n} {t}' for n, t in columns.items())}"
        ) from error
    for name in columns:
        if table[name].null_count:
            raise InvalidInputError(f"{path}: column {name} has {table[name].null_count} empty values, expected none")
    frame: pd.DataFrame = table.to_pandas()
    return frame


def _exposures(record: Record) -> Iterator[tuple[str, str, str, int]]:
    served = exposures_pb2.ListServed()
    if not _parsed(served, record):
        return
    unit_id, time_ms = served.user_id or served.anonymous_id, _milliseconds(served.event_time)
    for assigned in served.experiment_assignments:
        if unit_id:
            yield unit_id, assigned.experiment_key, assigned.variation_key, time_ms


def _actions(record: Record) -> Iterator[tuple[str, str, int, float]]:
    kind = dict(record.headers).get("ce_type", b"").decode(errors="replace").rpartition(".")[2]
    if kind not in READERS:
        return
    message = READERS[kind]()
    if not _parsed(message, record):
        return
    if isinstance(message, events_pb2.OrderPlaced):
        worth = sum(line.unit_price * max(line.quantity, 1) for line in message.lines)
        yield message.user_id, "order", _milliseconds(message.event_time), worth
    else:
        action = "click" if isinstance(message, events_pb2.ItemClicked) else "cart"
        yield message.user_id, action, _milliseconds(message.event_time), 0.0


def _parsed(message: Message, record: Record) -> bool:
    try:
        message.ParseFromString(record.value or b"")
    except DecodeError:
        return False
    return True


def _milliseconds(time: Timestamp) -> int:
    return int(time.seconds * 1000 + time.nanos // 1_000_000)
