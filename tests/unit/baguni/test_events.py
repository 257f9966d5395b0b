"""Records become events, or say why not; nothing else comes out of parsing, whatever comes in."""

from __future__ import annotations

import contextlib
import json

import pytest
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from baguni.clients.topics import Record
from baguni.domain.catalog import Item
from baguni.domain.events import (
    Event,
    ItemRemoval,
    ItemUpsert,
    MalformedEvent,
    UserEvents,
    cloud_event_headers,
    parse,
    read,
)
from baguni.domain.history import Action, HistoryEvent
from baguni.v1 import events_pb2 as pb

Headers = tuple[tuple[str, bytes | None], ...]
TIME_MS = 1_700_000_000_123
TIME = Timestamp(seconds=1_700_000_000, nanos=123_999_999)


def order(**changes: object) -> pb.OrderPlaced:
    fields: dict[str, object] = {"user_id": "u1", "order_id": "o1", "lines": [pb.OrderLine(item_id="rye")]}
    return pb.OrderPlaced(**{**fields, "event_time": TIME, **changes})  # type: ignore[arg-type]


def item(**changes: object) -> pb.ItemUpserted:
    fields: dict[str, object] = {"item_id": "rye", "title": " Rye ", "category_path": ["GROCERY", "BREAD"]}
    return pb.ItemUpserted(**{**fields, "event_time": TIME, **changes})  # type: ignore[arg-type]


def parsed(message: Message, key: bytes | None = b"u1") -> Event:
    return parse(dict(cloud_event_headers(message, "id-1", "test")), key, message.SerializeToString())


def test_an_order_is_one_event_per_item_at_one_time() -> None:
    lines = [pb.OrderLine(item_id="rye", quantity=2), pb.OrderLine(item_id="milk"), pb.OrderLine(item_id="rye")]
    assert parsed(order(lines=lines)) == UserEvents(
        "u1",
        (
            HistoryEvent("rye", Action.ORDERED, TIME_MS, "o1"),
            HistoryEvent("milk", Action.ORDERED, TIME_MS, "o1"),
        ),
    )


@pytest.mark.parametrize(
    ("message", "action"),
    [
        (pb.ItemClicked(user_id="u1", item_id="rye", event_time=TIME), Action.CLICKED),
        (pb.CartAdded(user_id="u1", item_id="rye", event_time=TIME, quantity=3), Action.CARTED),
    ],
)
def test_clicks_and_carts_are_one_event(message: Message, action: Action) -> None:
    assert parsed(message) == UserEvents("u1", (HistoryEvent("rye", action, TIME_MS),))


def test_an_item_comes_with_its_attributes() -> None:
    attributes = {
        "brand": pb.AttributeValue(string_value="own"),
        "size": pb.AttributeValue(number_value=2.5),
        "organic": pb.AttributeValue(bool_value=False),
    }
    expected = Item("rye", "Rye", ("GROCERY", "BREAD"), {"brand": "own", "size": 2.5, "organic": False}, True, "dark")
    assert parsed(item(attributes=attributes, description="dark"), b"rye") == ItemUpsert(expected, TIME_MS)


@pytest.mark.parametrize(
    ("given_available", "expected"), [({}, True), ({"available": True}, True), ({"available": False}, False)]
)
def test_an_item_is_available_unless_it_says_not(given_available: dict[str, bool], expected: bool) -> None:
    event = parsed(item(**given_available), b"rye")
    assert isinstance(event, ItemUpsert)
    assert event.item.available is expected


def test_a_removal() -> None:
    assert parsed(pb.ItemRemoved(item_id="rye", event_time=TIME), b"rye") == ItemRemoval("rye", TIME_MS)


@pytest.mark.parametrize("content_type", ["application/json", "application/json; charset=utf-8"])
def test_json_says_the_same_as_protobuf(content_type: str) -> None:
    message = order(lines=[pb.OrderLine(item_id="라면", unit_price=1.5)])
    headers = {**dict(cloud_event_headers(message, "1", "test")), "content-type": content_type.encode()}
    body = json.dumps(MessageToDict(message), ensure_ascii=False).encode()
    assert parse(headers, b"u1", body) == parsed(message)


def test_unknown_newer_fields_are_ignored() -> None:
    message = order()
    headers = dict(cloud_event_headers(message, "1", "test"))
    newer = message.SerializeToString() + bytes([0x7A, 3]) + b"new"  # field 15, three bytes
    assert parse(headers, b"u1", newer) == parsed(message)
    newer_json = json.dumps({**MessageToDict(message), "loyaltyCard": "gold"}).encode()
    assert parse({**headers, "content-type": b"application/json"}, b"u1", newer_json) == parsed(message)


def test_a_user_event_without_a_key_is_applied() -> None:
    assert isinstance(parsed(order(), None), UserEvents)


LONG = "x" * 257
NAN = pb.AttributeValue(number_value=float("nan"))
LONG_TEXT = pb.AttributeValue(string_value="x" * 1025)
MALFORMED: list[tuple[Message, bytes | None, str, str]] = [
    (order(), b"u2", "key_mismatch", r"key is b'u2', expected the user_id 'u1'"),
    (item(), b"milk", "key_mismatch", r"key is b'milk', expected the item_id 'rye'"),
    (item(), None, "key_mismatch", r"key is None, expected the item_id 'rye'"),
    (order(lines=[]), b"u1", "invalid_field", "lines is empty, expected at least one item"),
    (order(user_id=""), b"", "invalid_field", "user_id has 0 characters, expected 1 to 256"),
    (order(order_id=""), b"u1", "invalid_field", "order_id has 0 characters"),
    (order(lines=[pb.OrderLine()]), b"u1", "invalid_field", r"lines\[0\].item_id has 0 characters"),
    (order(user_id=LONG), LONG.encode(), "invalid_field", "user_id has 257 characters"),
    (order(event_time=None), b"u1", "invalid_field", "event_time is missing"),
    (order(event_time=Timestamp(seconds=-1)), b"u1", "invalid_field", "event_time is -1000 ms"),
    (order(event_time=Timestamp(seconds=2**62)), b"u1", "invalid_field", "expected a time from 1990 to 9999"),
    (order(event_time=Timestamp(seconds=631_151_999)), b"u1", "invalid_field", "expected a time from 1990 to 9999"),
    (order(lines=[pb.OrderLine(item_id="rye", quantity=-2)]), b"u1", "invalid_field", r"lines\[0\].quantity is -2, expected"),
    (order(lines=[pb.OrderLine(item_id="rye", unit_price=float("inf"))]), b"u1", "invalid_field", r"lines\[0\].unit_price"),
    (pb.CartAdded(user_id="u1", item_id="rye", event_time=TIME, quantity=-1), b"u1", "invalid_field", "quantity is -1"),
    (item(title="  "), b"rye", "invalid_field", "title is empty"),
    (item(title="x" * 10_001), b"rye", "invalid_field", "title has 10001 characters, expected at most 10000"),
    (item(description="x" * 10_001), b"rye", "invalid_field", "description has 10001 characters"),
    (item(category_path=[]), b"rye", "invalid_field", "category_path has 0 levels, expected 1 to 16"),
    (item(category_path=["x"] * 17), b"rye", "invalid_field", "category_path has 17 levels"),
    (item(category_path=["x" * 1025]), b"rye", "invalid_field", "category_path has 1025 characters"),
    (item(attributes={"a": pb.AttributeValue()}), b"rye", "invalid_field", r"attributes\['a'\] has no value"),
    (item(attributes={"a": NAN}), b"rye", "invalid_field", "is nan, expected a finite number"),
    (item(attributes={"a": LONG_TEXT}), b"rye", "invalid_field", r"attributes\['a'\] has 1025 characters"),
    (pb.ItemRemoved(event_time=TIME), b"", "invalid_field", "item_id has 0 characters"),
]  # fmt: skip


@pytest.mark.parametrize(("message", "key", "reason", "words"), MALFORMED)
def test_a_wrong_field_is_named(message: Message, key: bytes | None, reason: str, words: str) -> None:
    with pytest.raises(MalformedEvent, match=words) as caught:
        parsed(message, key)
    assert caught.value.reason == reason


HEADERS = dict(cloud_event_headers(order(), "1", "test"))
BODY = order().SerializeToString()


@pytest.mark.parametrize(
    ("headers", "value", "reason", "words"),
    [
        (HEADERS, None, "empty", "no value"),
        ({}, BODY, "unknown_type", "header ce_type is '', expected one of baguni.v1.OrderPlaced"),
        ({**HEADERS, "ce_type": b"baguni.v1.OrderLost"}, BODY, "unknown_type", "baguni.v1.OrderLost"),
        ({**HEADERS, "ce_type": b"OrderPlaced"}, BODY, "unknown_type", "header ce_type is 'OrderPlaced'"),
        ({**HEADERS, "ce_type": b"\xff"}, BODY, "unknown_type", "ce_type"),
        ({**HEADERS, "ce_type": None}, BODY, "unknown_type", "header ce_type is ''"),
        ({**HEADERS, "content-type": b"text/csv"}, BODY, "content_type", "content-type is 'text/csv'"),
        (HEADERS, b"\xff\xff", "undecodable", "no OrderPlaced"),
        ({**HEADERS, "content-type": b"application/json"}, BODY, "undecodable", "no OrderPlaced"),
        ({**HEADERS, "content-type": b"application/json"}, b'{"userId": 1}', "undecodable", "userId"),
        ({**HEADERS, "content-type": b"application/json"}, b"[" * 100_000, "undecodable", "no OrderPlaced"),
        ({**HEADERS, "content-type": b"application/json"}, b'{"userId": "\\ud800"}', "undecodable", "no OrderPlaced"),
    ],
)
def test_a_record_that_is_no_event_says_why(
    headers: dict[str, bytes | None], value: bytes | None, reason: str, words: str
) -> None:
    with pytest.raises(MalformedEvent, match=words) as caught:
        parse(headers, b"u1", value)
    assert caught.value.reason == reason


def record(
    topic: str, key: bytes | None, value: bytes | None, headers: Headers = (), timestamp: int = TIME_MS
) -> Record:
    return Record(topic, 0, 7, key, value, headers, timestamp)  # type: ignore[arg-type]


def test_a_null_content_type_is_none_at_all() -> None:
    headers = (*((name, value) for name, value in HEADERS.items() if name != "content-type"), ("content-type", None))
    assert read(record("baguni.orders", b"u1", BODY, headers)) == parsed(order())


@pytest.mark.parametrize("topic", ["baguni.orders", "baguni.clicks", "baguni.users"])
def test_a_tombstone_of_a_user_topic_means_nothing(topic: str) -> None:
    assert read(record(topic, b"u1", None)) is None


def test_a_tombstone_of_an_item_removes_it_when_it_was_written() -> None:
    assert read(record("baguni.items", b"rye", None)) == ItemRemoval("rye", TIME_MS)
    with pytest.raises(MalformedEvent, match="key has 257 characters"):
        read(record("baguni.items", LONG.encode(), None))
    with pytest.raises(MalformedEvent, match="event_time is -1 ms"):
        read(record("baguni.items", b"rye", None, timestamp=-1))


def test_a_record_with_neither_key_nor_value_is_malformed() -> None:
    with pytest.raises(MalformedEvent, match="no value"):
        read(record("baguni.items", None, None))


@pytest.mark.parametrize(
    "message",
    [
        order(),
        pb.UserDeleted(user_id="u1", event_time=TIME),
        pb.OrderCancelled(user_id="u1", order_id="o", event_time=TIME),
    ],
)
def test_a_time_that_this_clock_does_not_allow_is_set_aside(message: Message) -> None:
    headers = tuple(cloud_event_headers(message, "1", "test"))
    late = record("baguni.orders", b"u1", message.SerializeToString(), headers)
    assert isinstance(read(late, TIME_MS), UserEvents)
    with pytest.raises(MalformedEvent, match=r"expected at most 1699999990000: it is 10 s beyond") as caught:
        read(late, TIME_MS - 10_123)
    assert caught.value.reason == "future_time"


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(["userId", "orderId", "lines", "eventTime", "itemId", "title", "attributes", "categoryPath"])


@given(
    type_name=st.sampled_from(["OrderPlaced", "ItemClicked", "CartAdded", "ItemUpserted", "ItemRemoved"]),
    body=st.binary(max_size=40) | st.dictionaries(FIELDS, JSON_VALUES).map(lambda d: json.dumps(d).encode()),
    content_type=st.sampled_from([b"application/json", b"application/protobuf"]),
    key=st.none() | st.binary(max_size=3),
)
def test_garbage_is_malformed_and_never_an_accident(
    type_name: str, body: bytes, content_type: bytes, key: bytes | None
) -> None:
    headers = {"ce_type": f"baguni.v1.{type_name}".encode(), "content-type": content_type}
    with contextlib.suppress(MalformedEvent):
        parse(headers, key, body)
