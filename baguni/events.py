"""What streams in: Kafka records, as CloudEvents in binary mode, become the domain's events, or MalformedEvent.

Parsing is pure: record in, event out. What is done with an event is the business of `streaming`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from google.protobuf.json_format import Parse, ParseError
from google.protobuf.message import DecodeError, Message
from google.protobuf.timestamp_pb2 import Timestamp

from baguni.catalog import AttributeValue, Item
from baguni.errors import InvalidInputError
from baguni.history import Action, HistoryEvent
from baguni.v1 import events_pb2 as pb

MAX_ID_LENGTH = 256
TYPE_PREFIX = "baguni.v1."
TOPICS = {
    "OrderPlaced": "baguni.orders",
    "ItemClicked": "baguni.clicks",
    "CartAdded": "baguni.carts",
    "ItemUpserted": "baguni.items",
    "ItemRemoved": "baguni.items",
}
USER_TOPICS = ("baguni.orders", "baguni.clicks", "baguni.carts")
ITEM_TOPIC = "baguni.items"
DEAD_LETTER_TOPIC = "baguni.dead-letters"
_MESSAGES: dict[str, type[Message]] = {
    "OrderPlaced": pb.OrderPlaced,
    "ItemClicked": pb.ItemClicked,
    "CartAdded": pb.CartAdded,
    "ItemUpserted": pb.ItemUpserted,
    "ItemRemoved": pb.ItemRemoved,
}


class MalformedEvent(InvalidInputError):  # noqa: N818 - an event, which is malformed
    """A record that will never parse. `reason` is a short stable word for counting; the message says what is wrong."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class UserEvents:
    """What one record adds to one user's history."""

    user_id: str
    events: tuple[HistoryEvent, ...]


@dataclass(frozen=True)
class ItemUpsert:
    """An item as it is from now on."""

    item: Item
    time_ms: int


@dataclass(frozen=True)
class ItemRemoval:
    """An item that left the catalogue."""

    item_id: str
    time_ms: int


Event = UserEvents | ItemUpsert | ItemRemoval


def parse(headers: Mapping[str, bytes], key: bytes | None, value: bytes | None) -> Event:
    """A record's event. Raises MalformedEvent; unknown newer fields are ignored."""
    message = _decode(headers, value)
    if isinstance(message, pb.OrderPlaced):
        event = _order(message)
    elif isinstance(message, pb.ItemClicked):
        event = _single(message, Action.CLICKED)
    elif isinstance(message, pb.CartAdded):
        event = _single(message, Action.CARTED)
    elif isinstance(message, pb.ItemUpserted):
        return ItemUpsert(_item(message), _time_ms(message.event_time))
    else:
        assert isinstance(message, pb.ItemRemoved)
        return ItemRemoval(_identifier("item_id", message.item_id), _time_ms(message.event_time))
    if key is not None and key.decode(errors="replace") != event.user_id:
        raise MalformedEvent(
            "key_mismatch", f"the record's key is {key!r}, expected the user_id {event.user_id!r}: order would be lost"
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


def _decode(headers: Mapping[str, bytes], value: bytes | None) -> Message:
    if value is None:
        raise MalformedEvent("empty", "the record has no value, expected an event")
    type_name = headers.get("ce_type", b"").decode(errors="replace")
    message_type = _MESSAGES.get(type_name.removeprefix(TYPE_PREFIX)) if type_name.startswith(TYPE_PREFIX) else None
    if message_type is None:
        known = ", ".join(TYPE_PREFIX + name for name in _MESSAGES)
        raise MalformedEvent("unknown_type", f"header ce_type is {type_name!r}, expected one of {known}")
    content_type = headers.get("content-type", b"application/protobuf").decode(errors="replace").split(";")[0].strip()
    message = message_type()
    try:
        if content_type == "application/json":
            return Parse(value, message, ignore_unknown_fields=True)
        if content_type == "application/protobuf":
            message.ParseFromString(value)
            return message
    except (ParseError, DecodeError, UnicodeDecodeError) as error:
        raise MalformedEvent("undecodable", f"the value is no {message_type.__name__}: {error}") from error
    raise MalformedEvent(
        "content_type", f"content-type is {content_type!r}, expected application/protobuf or application/json"
    )


def _order(message: pb.OrderPlaced) -> UserEvents:
    if not message.lines:
        raise MalformedEvent("invalid_field", "lines is empty, expected at least one item")
    order_id = _identifier("order_id", message.order_id)
    time_ms = _time_ms(message.event_time)
    lines = [
        HistoryEvent(_identifier(f"lines[{n}].item_id", line.item_id), Action.ORDERED, time_ms, order_id)
        for n, line in enumerate(message.lines)
    ]
    return UserEvents(_identifier("user_id", message.user_id), tuple(dict.fromkeys(lines)))


def _single(message: pb.ItemClicked | pb.CartAdded, action: Action) -> UserEvents:
    item_id = _identifier("item_id", message.item_id)
    event = HistoryEvent(item_id, action, _time_ms(message.event_time))
    return UserEvents(_identifier("user_id", message.user_id), (event,))


def _item(message: pb.ItemUpserted) -> Item:
    if not message.title.strip():
        raise MalformedEvent("invalid_field", "title is empty, expected words that say what the item is")
    attributes: dict[str, AttributeValue] = {}
    for name, value in message.attributes.items():
        kind = value.WhichOneof("value")
        if kind is None:
            raise MalformedEvent("invalid_field", f"attributes[{name!r}] has no value")
        attributes[name] = getattr(value, kind)
    return Item(
        _identifier("item_id", message.item_id),
        message.title.strip(),
        tuple(message.category_path),
        attributes,
        message.available if message.HasField("available") else True,
        message.description,
    )


def _identifier(field: str, value: str) -> str:
    if not 0 < len(value) <= MAX_ID_LENGTH:
        raise MalformedEvent("invalid_field", f"{field} has {len(value)} characters, expected 1 to {MAX_ID_LENGTH}")
    return value


def _time_ms(time: Timestamp) -> int:
    milliseconds = time.seconds * 1000 + time.nanos // 1_000_000
    if milliseconds <= 0:
        raise MalformedEvent("invalid_field", "event_time is missing, expected a time after 1970")
    return milliseconds
