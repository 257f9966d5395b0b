"""Exposures and what users did, as tables: from Parquet, or from the topics.

exposures   unit_id, experiment, variation, time_ms
actions     unit_id, action, time_ms, value       action: click, cart or order; value: what an order is worth
shown       one row a place of a page in whose order chance had a share (`SHOWN`), and what became of the item there
lists       exposure_token, position, item_id     what a candidate would have shown, by `baguni release replay --lists`
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from google.protobuf.message import DecodeError, Message
from google.protobuf.timestamp_pb2 import Timestamp

from baguni import parquet
from baguni.clients.topics import Record, TopicReader
from baguni.domain.errors import InvalidInputError
from baguni.domain.events import EXPOSURE_TOPIC, LOOKED_AT, TOPICS
from baguni.v1 import events_pb2, exposures_pb2

Action = events_pb2.OrderPlaced | events_pb2.ItemClicked | events_pb2.CartAdded
ACTIONS = ("click", "cart", "order")
EXPOSURES = {"unit_id": pa.string(), "experiment": pa.string(), "variation": pa.string(), "time_ms": pa.int64()}
DONE = {"unit_id": pa.string(), "action": pa.string(), "time_ms": pa.int64(), "value": pa.float64()}
SHOWN = {
    "exposure_token": pa.string(), "unit_id": pa.string(), "position": pa.int64(), "item_id": pa.string(),
    "propensity": pa.float64(), "share": pa.float64(), "among": pa.int64(), "shuffled": pa.bool_(),
    "clicked": pa.bool_(), "carted": pa.bool_(), "ordered": pa.bool_(),
}  # fmt: skip
LISTS = {"exposure_token": pa.string(), "position": pa.int64(), "item_id": pa.string()}
OUTCOMES = {"click": "clicked", "cart": "carted", "order": "ordered"}  # the last columns of SHOWN
READERS: dict[str, tuple[str, type[Action]]] = {
    "OrderPlaced": ("order", events_pb2.OrderPlaced),
    "ItemClicked": ("click", events_pb2.ItemClicked),
    "CartAdded": ("cart", events_pb2.CartAdded),
}


@dataclass(frozen=True)
class Tables:
    """Exposures and actions; `shown` has rows where they come from the topics."""

    exposures: pd.DataFrame
    actions: pd.DataFrame
    shown: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(SHOWN)))


def read_parquet(exposures: Path, actions: Path) -> Tables:
    """Raises InvalidInputError that names a column or a value."""
    tables = Tables(_frame(exposures, EXPOSURES), _frame(actions, DONE))
    unknown = tables.actions[~tables.actions["action"].isin(ACTIONS)]
    if len(unknown):
        raise InvalidInputError(
            f"{actions}: action is {unknown['action'].iloc[0]!r}, expected one of {', '.join(ACTIONS)}"
        )
    return tables


def read_shown(path: Path) -> pd.DataFrame:
    """Raises InvalidInputError that names a column or a value."""
    frame = _frame(path, SHOWN)
    wrong = frame[~((frame["propensity"] > 0) & (frame["propensity"] <= 1))]
    if len(wrong):
        raise InvalidInputError(f"{path}: propensity is {wrong['propensity'].iloc[0]}, expected above 0, at most 1")
    return frame


def read_lists(path: Path) -> pd.DataFrame:
    """Raises InvalidInputError that names a column."""
    return _frame(path, LISTS)


def read_topics(bootstrap: str) -> Tables:
    """Everything that the topics hold, less lists that no shopper saw; what is malformed is skipped, and has its dead letter.
    Raises UnavailableError."""
    exposures: list[tuple[str, str, str, int]] = []
    places: list[tuple[Any, ...]] = []
    for record in TopicReader(bootstrap, [EXPOSURE_TOPIC], {}):
        served = exposures_pb2.ListServed()
        if _parsed(served, record) and not served.request_id.startswith(LOOKED_AT):
            exposures += _exposures(served)
            places += _places(served)
    topics = sorted({TOPICS[name] for name in READERS})
    actions: list[tuple[str, str, int, float]] = []
    of_lists: dict[str, set[tuple[str, str]]] = {action: set() for action in ACTIONS}
    for record in TopicReader(bootstrap, topics, {}):
        for action, message in _read_action(record):
            actions.append(_action(action, message))
            if message.exposure_token:
                of_lists[action].update((message.exposure_token, item_id) for item_id in _item_ids(message))
    names = list(SHOWN)[: -len(OUTCOMES)]
    shown = pd.DataFrame(places, columns=names).drop_duplicates(["exposure_token", "position"], ignore_index=True)
    items = list(zip(shown["exposure_token"], shown["item_id"], strict=True))
    for action, column in OUTCOMES.items():
        shown[column] = [item in of_lists[action] for item in items]
    return Tables(
        pd.DataFrame(exposures, columns=list(EXPOSURES)),
        pd.DataFrame(actions, columns=list(DONE)).drop_duplicates(),  # a producer that tries again says the same twice
        shown,
    )


def write_parquet(tables: Tables, folder: Path) -> None:
    """exposures.parquet, actions.parquet and shown.parquet."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, columns in (("exposures", EXPOSURES), ("actions", DONE), ("shown", SHOWN)):
        table = pa.Table.from_pandas(getattr(tables, name), pa.schema(columns), preserve_index=False)
        pq.write_table(table, folder / f"{name}.parquet")


def _frame(path: Path, columns: dict[str, pa.DataType]) -> pd.DataFrame:
    try:
        table = parquet.read_parquet(path)
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


def _exposures(served: exposures_pb2.ListServed) -> Iterator[tuple[str, str, str, int]]:
    unit_id, time_ms = served.user_id or served.anonymous_id, _milliseconds(served.event_time)
    for assigned in served.experiment_assignments:
        if unit_id:
            yield unit_id, assigned.experiment_key, assigned.variation_key, time_ms


def _places(served: exposures_pb2.ListServed) -> Iterator[tuple[Any, ...]]:
    if not served.HasField("exploration"):
        return
    how, unit_id = served.exploration, served.user_id or served.anonymous_id
    for item, propensity in zip(served.items, how.propensities, strict=False):
        place = (served.exposure_token, unit_id, item.position, item.item_id)
        yield *place, propensity, how.share, how.among, how.shuffled


def _read_action(record: Record) -> Iterator[tuple[str, Action]]:
    kind = dict(record.headers).get("ce_type", b"").decode(errors="replace").rpartition(".")[2]
    if kind in READERS:
        action, reader = READERS[kind]
        message = reader()
        if _parsed(message, record):
            yield action, message


def _action(action: str, message: Action) -> tuple[str, str, int, float]:
    lines = message.lines if isinstance(message, events_pb2.OrderPlaced) else ()
    worth = float(sum(line.unit_price * max(line.quantity, 1) for line in lines))
    return message.user_id, action, _milliseconds(message.event_time), worth


def _item_ids(message: Action) -> list[str]:
    if isinstance(message, events_pb2.OrderPlaced):
        return [line.item_id for line in message.lines]
    return [message.item_id]


def _parsed(message: Message, record: Record) -> bool:
    try:
        message.ParseFromString(record.value or b"")
    except DecodeError:
        return False
    return True


def _milliseconds(time: Timestamp) -> int:
    return int(time.seconds * 1000 + time.nanos // 1_000_000)
