"""What streams in: Kafka records, as CloudEvents in binary mode, become the domain's events, or MalformedEvent.

Parsing is pure: record in, event out. What is done with an event is the business of `streaming`.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn, Protocol

from google.protobuf.json_format import Parse, ParseError
from google.protobuf.message import DecodeError, Message
from google.protobuf.timestamp_pb2 import Timestamp

from baguni.domain.catalog import AttributeValue, Item
from baguni.domain.errors import InvalidInputError
from baguni.domain.history import LATEST_TIME_MS, Action, Cancellation, Change, Deletion, HistoryEvent
from baguni.v1 import events_pb2 as pb

log = logging.getLogger(__name__)
MAX_ID_LENGTH = 256
MAX_TEXT_LENGTH = 10_000  # of a title or a description
MAX_VALUE_LENGTH = 1_024  # of an attribute's text, or of one level of a category
MAX_CATEGORY_LEVELS = 16
MAX_PLACEMENT = 64  # characters; a longer name is no placement
EARLIEST_TIME_MS = 631_152_000_000  # 1990: what is older comes from a clock that was never set
MAX_FUTURE_S = 600.0  # how far a producer's clock may be ahead of ours
TYPE_PREFIX = "baguni.v1."
DELETION_TOPIC = "baguni.users"  # to be kept for ever: few and small records, which a rebuild needs
TOPICS = {
    "OrderPlaced": "baguni.orders",
    "OrderCancelled": "baguni.orders",
    "ItemClicked": "baguni.clicks",
    "CartAdded": "baguni.carts",
    "UserDeleted": DELETION_TOPIC,
    "ItemUpserted": "baguni.items",
    "ItemRemoved": "baguni.items",
}
USER_TOPICS = ("baguni.orders", "baguni.clicks", "baguni.carts", DELETION_TOPIC)
ITEM_TOPIC = "baguni.items"
EXPOSURE_TOPIC = "baguni.exposures"  # what the gateway served: ListServed
LOOKED_AT = "inspect-"  # begins the request_id of a list that was asked for to look into it: its shopper never saw it
DEAD_LETTER_TOPIC = "baguni.dead-letters"
_MESSAGES: dict[bytes, type[Message]] = {
    f"{TYPE_PREFIX}{message.__name__}".encode(): message
    for message in (
        pb.OrderPlaced,
        pb.OrderCancelled,
        pb.ItemClicked,
        pb.CartAdded,
        pb.UserDeleted,
        pb.ItemUpserted,
        pb.ItemRemoved,
    )
}


def is_id(text: str) -> bool:
    """Return whether this can be the id of a user or an item."""
    return 0 < len(text) <= MAX_ID_LENGTH


MAX_ERROR_LENGTH = 1_000  # characters of what is said of a record


class MalformedEvent(InvalidInputError):  # noqa: N818 - an event, which is malformed
    """A record that will never parse. `reason` is a short stable word for counting; the message says what is wrong."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message[:MAX_ERROR_LENGTH])  # a parser may quote the whole record
        self.reason = reason

    @classmethod
    def unforeseen(cls, error: Exception) -> MalformedEvent:
        """Return what stands for an error that nobody foresaw."""
        return cls("unforeseen", f"{type(error).__name__}: {error}")


class UserEvents(NamedTuple):
    """Changes of one record in one user's history. `placement`: where it was clicked, if that is known; `exposure_token`:
    of the page that led there, as it came."""

    user_id: str
    changes: tuple[Change, ...]
    placement: str = ""
    exposure_token: str = ""


@dataclass(frozen=True)
class ItemUpsert:
    """An item as it is from now on."""

    item: Item
    time_ms: int

    @property
    def item_id(self) -> str:
        """The item's id."""
        return self.item.item_id


@dataclass(frozen=True)
class ItemRemoval:
    """An item that left the catalogue."""

    item_id: str
    time_ms: int


Event = UserEvents | ItemUpsert | ItemRemoval


class RawRecord(Protocol):
    """A record as a consumer gets it. `timestamp`: ms, by the producer or the broker."""

    @property
    def topic(self) -> str: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Sequence[tuple[str, bytes | None]]: ...
    @property
    def timestamp(self) -> int: ...


def read(record: RawRecord, latest_ms: int = LATEST_TIME_MS) -> Event | None:
    """Return a record's event. A record with a key and no value is a tombstone, as compaction leaves them: on the item topic it
    removes the item, on any other it means nothing, which is None. Raises MalformedEvent, and nothing else."""
    try:
        return _read(record, latest_ms)
    except MalformedEvent:
        raise
    except Exception as error:  # of parsers of what others send
        log.exception("parsing failed unforeseen")
        raise MalformedEvent.unforeseen(error) from error


def _read(record: RawRecord, latest_ms: int) -> Event | None:
    if record.value is None and record.key is not None:
        if record.topic != ITEM_TOPIC:
            return None
        event = ItemRemoval(_identifier("key", record.key.decode(errors="replace")), record.timestamp)
        _check_time(event.time_ms, latest_ms)
        return event
    return parse(dict(record.headers), record.key, record.value, latest_ms)


def latest_time_ms(max_future_s: float = MAX_FUTURE_S) -> int:
    """Return the latest event time that is taken now, in ms."""
    return int((time.time() + max_future_s) * 1000)


def parse(
    headers: Mapping[str, bytes | None], key: bytes | None, value: bytes | None, latest_ms: int = LATEST_TIME_MS
) -> Event:
    """Return a record's event; ignores unknown newer fields. Raises MalformedEvent, also for an event after `latest_ms`."""
    event = _event(_decode(headers, value))
    _check_time(event.changes[0].time_ms if isinstance(event, UserEvents) else event.time_ms, latest_ms)
    field, expected = ("user_id", event.user_id) if isinstance(event, UserEvents) else ("item_id", event.item_id)
    if key is None and isinstance(event, UserEvents):
        return event  # histories are sets: without the order of a partition nothing is lost
    if (key or b"").decode(errors="replace") != expected:
        raise MalformedEvent(
            "key_mismatch",
            f"the record's key is {key!r}, expected the {field} {expected!r}: its events would lose their order",
        )
    return event


def cloud_event_headers(message: Message, event_id: str, source: str) -> list[tuple[str, bytes]]:
    """The headers to produce a message of `baguni.v1` with."""
    return [
        ("ce_specversion", b"1.0"),
        ("ce_id", event_id.encode()),
        ("ce_source", source.encode()),
        ("ce_type", f"{TYPE_PREFIX}{type(message).__name__}".encode()),
        ("content-type", b"application/protobuf"),
    ]


def producible(message: Message, event_id: str, source: str) -> dict[str, Any]:
    """Return the arguments of `KafkaProducer.send` that produce a message as its contract says, keyed by its user or item."""
    key = getattr(message, "user_id", "") or getattr(message, "item_id", "")
    return {
        "topic": TOPICS[type(message).__name__],
        "key": key.encode(),
        "value": message.SerializeToString(),
        "headers": cloud_event_headers(message, event_id, source),
    }


def _event(message: Message) -> Event:
    if isinstance(message, pb.OrderPlaced):
        return _order(message)
    if isinstance(message, pb.ItemClicked):
        placement = message.placement
        return _single(message, Action.CLICKED, placement if len(placement) <= MAX_PLACEMENT else "")
    if isinstance(message, pb.CartAdded):
        return _single(message, Action.CARTED)
    if isinstance(message, pb.OrderCancelled):
        cancellation = Cancellation(_identifier("order_id", message.order_id), _time_ms(message.event_time))
        return UserEvents(_identifier("user_id", message.user_id), (cancellation,))
    if isinstance(message, pb.UserDeleted):
        return UserEvents(_identifier("user_id", message.user_id), (Deletion(_time_ms(message.event_time)),))
    if isinstance(message, pb.ItemUpserted):
        return ItemUpsert(_item(message), _time_ms(message.event_time))
    assert isinstance(message, pb.ItemRemoved)
    return ItemRemoval(_identifier("item_id", message.item_id), _time_ms(message.event_time))


def _decode(headers: Mapping[str, bytes | None], value: bytes | None) -> Message:
    if value is None:
        raise MalformedEvent("empty", "the record has no value, expected an event")
    named = headers.get("ce_type") or b""  # a header may be there and null
    message_type = _MESSAGES.get(named)
    if message_type is None:
        type_name = named.decode(errors="replace")
        known = ", ".join(name.decode() for name in _MESSAGES)
        raise MalformedEvent("unknown_type", f"header ce_type is {type_name!r}, expected one of {known}")
    content_type = headers.get("content-type") or b"application/protobuf"
    try:
        if content_type == b"application/protobuf":
            return message_type.FromString(value)
        content_type = content_type.split(b";")[0].strip()
        if content_type == b"application/protobuf":
            return message_type.FromString(value)
        if content_type == b"application/json":
            return Parse(value, message_type(), ignore_unknown_fields=True)
    except (ParseError, DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedEvent("undecodable", f"the value is no {message_type.__name__}: {error}") from error
    raise MalformedEvent(
        "content_type",
        f"content-type is {content_type.decode(errors='replace')!r}, expected application/protobuf or application/json",
    )


def _order(message: pb.OrderPlaced) -> UserEvents:
    if not message.lines:
        raise MalformedEvent("invalid_field", "lines is empty, expected at least one item")
    order_id = _identifier("order_id", message.order_id)
    time_ms = _time_ms(message.event_time)
    lines = []
    for n, line in enumerate(message.lines):
        if line.quantity < 0 or not math.isfinite(line.unit_price):
            _refuse_line(n, line)
        item_id = line.item_id
        if not 0 < len(item_id) <= MAX_ID_LENGTH:
            _identifier(f"lines[{n}].item_id", item_id)
        lines.append(HistoryEvent(item_id, Action.ORDERED, time_ms, order_id))
    return UserEvents(
        _identifier("user_id", message.user_id),
        tuple(dict.fromkeys(lines)),
        exposure_token=message.exposure_token,
    )


def _refuse_line(number: int, line: pb.OrderLine) -> NoReturn:
    if line.quantity < 0:
        raise MalformedEvent(
            "invalid_field",
            f"lines[{number}].quantity is {line.quantity}, expected 0 or more: a return is no order; send the order again with "
            "the lines that are left, or OrderCancelled",
        )
    raise MalformedEvent("invalid_field", f"lines[{number}].unit_price is {line.unit_price}, expected a finite number")


def _single(message: pb.ItemClicked | pb.CartAdded, action: Action, placement: str = "") -> UserEvents:
    if isinstance(message, pb.CartAdded) and message.quantity < 0:
        raise MalformedEvent("invalid_field", f"quantity is {message.quantity}, expected 0 or more")
    item_id = _identifier("item_id", message.item_id)
    event = HistoryEvent(item_id, action, _time_ms(message.event_time))
    return UserEvents(_identifier("user_id", message.user_id), (event,), placement, message.exposure_token)


def _item(message: pb.ItemUpserted) -> Item:
    if not message.title.strip():
        raise MalformedEvent("invalid_field", "title is empty, expected words that say what the item is")
    if not 0 < len(message.category_path) <= MAX_CATEGORY_LEVELS:
        levels = len(message.category_path)
        raise MalformedEvent("invalid_field", f"category_path has {levels} levels, expected 1 to {MAX_CATEGORY_LEVELS}")
    attributes: dict[str, AttributeValue] = {}
    for name, value in message.attributes.items():
        kind = value.WhichOneof("value")
        if kind is None:
            raise MalformedEvent("invalid_field", f"attributes[{name!r}] has no value")
        attributes[name] = _attribute(f"attributes[{name!r}]", getattr(value, kind))
    return Item(
        _identifier("item_id", message.item_id),
        _text("title", message.title.strip(), MAX_TEXT_LENGTH),
        tuple(_text("category_path", level, MAX_VALUE_LENGTH) for level in message.category_path),
        attributes,
        message.available if message.HasField("available") else True,
        _text("description", message.description, MAX_TEXT_LENGTH),
    )


def _attribute(field: str, value: AttributeValue) -> AttributeValue:
    if isinstance(value, str):
        return _text(field, value, MAX_VALUE_LENGTH)
    if not math.isfinite(value):
        raise MalformedEvent("invalid_field", f"{field} is {value}, expected a finite number")
    return value


def _text(field: str, value: str, max_length: int) -> str:
    if len(value) > max_length:
        raise MalformedEvent("invalid_field", f"{field} has {len(value)} characters, expected at most {max_length}")
    return value


def _identifier(field: str, value: str) -> str:
    if not is_id(value):
        raise MalformedEvent("invalid_field", f"{field} has {len(value)} characters, expected 1 to {MAX_ID_LENGTH}")
    return value


def _time_ms(stamp: Timestamp) -> int:
    milliseconds = stamp.seconds * 1000 + stamp.nanos // 1_000_000
    if milliseconds == 0:
        raise MalformedEvent("invalid_field", "event_time is missing, expected a time after 1990")
    if not EARLIEST_TIME_MS <= milliseconds <= LATEST_TIME_MS:
        raise MalformedEvent("invalid_field", f"event_time is {milliseconds} ms, expected a time from 1990 to 9999")
    return milliseconds


def _check_time(time_ms: int, latest_ms: int) -> None:
    if time_ms > latest_ms:
        ahead_s = (time_ms - latest_ms) / 1000
        raise MalformedEvent(
            "future_time",
            f"event_time is {time_ms} ms, expected at most {latest_ms}: it is {ahead_s:.0f} s beyond what this clock allows",
        )
    if time_ms < EARLIEST_TIME_MS:
        raise MalformedEvent("invalid_field", f"event_time is {time_ms} ms, expected a time after 1990")
