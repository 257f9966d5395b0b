"""Requests that nobody should send, endlessly and the same for the same seed: bytes that are no message, messages with a bit
turned or an end missing, and messages that are well formed and mean harm.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from google.protobuf.timestamp_pb2 import Timestamp

from baguni.v1 import recommendation_pb2 as pb

SERVICE = "/baguni.v1.RecommendationService/"
METHODS = ("Recommend", "SimilarItems", "GenerateTopItems")
HOSTILE = (
    "",
    "\x00",
    "x" * 256,
    "x" * 257,
    "한" * 300,
    "'",
    '"',
    "\\",
    '"] or true or item_id in ["',
    '" or available == true or "" == "',
    "available == true",
    "'; drop collection items; --",
    "{{7*7}}",
    "${jndi:ldap://x}",
    "../../etc/passwd",
    "\u202e\ufeff\u0000",
    "NaN",
    "-1",
    "bread-rye",
    "category",
    "brand",
    "price",
)
NUMBERS = (0, 1, -1, 20, 200, 201, 2**31 - 1, -(2**31))
FLOATS = (0.0, 1.0, -1.0, 1e308, -1e308, float("inf"), float("-inf"), float("nan"), 5e-324)
SECONDS = (0, 1, -1, 1_712_000_000, 253_402_300_799, -62_135_596_800)


class Fuzzer:
    """`ids` are ids that exist, so that some requests go all the way."""

    def __init__(self, seed: int, ids: Sequence[str]) -> None:
        self._random, self._ids = random.Random(seed), ids

    def requests(self) -> Iterator[tuple[str, bytes]]:
        """Path and body, for ever."""
        while True:
            method = self._random.choices(METHODS, (8, 4, 1))[0]
            body = getattr(self, f"_{method.lower()}")().SerializeToString()
            yield SERVICE + method, self._spoiled(body)

    def bytes(self) -> bytes:
        """What is not even HTTP/2, or begins as if it were."""
        start = self._random.choice(
            (b"", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01")
        )
        return start + self._random.randbytes(self._random.randrange(200))

    def _spoiled(self, body: bytes) -> bytes:
        kind = self._random.random()
        if kind < 0.5:
            return body
        if kind < 0.6:
            return self._random.randbytes(self._random.randrange(200))
        if kind < 0.7:
            return body[: self._random.randrange(len(body) + 1)]
        spoiled = bytearray(body)
        for _ in range(self._random.randrange(1, 6)):
            place = self._random.randrange(len(spoiled) + 1)
            if self._random.random() < 0.5 or place == len(spoiled):
                spoiled[place:place] = self._random.randbytes(3)
            else:
                spoiled[place] ^= 1 << self._random.randrange(8)
        return bytes(spoiled)

    def _text(self) -> str:
        return self._random.choice(self._ids if self._random.random() < 0.5 else HOSTILE)

    def _texts(self) -> list[str]:
        count = self._random.choices((0, 1, 5, 1_001), (50, 30, 19, 1))[0]
        return [self._text() for _ in range(count)]

    def _time(self) -> Timestamp:
        return Timestamp(seconds=self._random.choice(SECONDS), nanos=self._random.choice(NUMBERS))

    def _filters(self) -> list[pb.Filter]:
        return [self._filter() for _ in range(self._random.choices((0, 1, 3), (60, 30, 10))[0])]

    def _filter(self) -> pb.Filter:
        found = pb.Filter(attribute=self._text())
        kind = self._random.randrange(4)
        if kind == 0:
            found.any_of.values.extend(self._texts())
        elif kind == 1:
            found.range.min, found.range.max = self._random.choice(FLOATS), self._random.choice(FLOATS)
        elif kind == 2:
            setattr(found, "is", self._random.random() < 0.5)
        return found

    def _recommend(self) -> pb.RecommendRequest:
        choice = self._random
        request = pb.RecommendRequest(
            request_id=self._text(),
            placement=self._text() if choice.random() < 0.3 else "",
            page_size=choice.choice(NUMBERS),
            page_token=self._text() if choice.random() < 0.2 else "",
            filters=self._filters(),
            candidate_item_ids=self._texts(),
            exclude_item_ids=self._texts(),
            exclude_purchased=choice.random() < 0.3,
            caps=[
                pb.Cap(attribute=self._text(), max_items=choice.choice(NUMBERS))
                for _ in range(choice.choice((0, 0, 1, 5)))
            ],
            diversity=choice.choice((0.0, 0.0, *FLOATS)) if choice.random() < 0.5 else 0.0,
        )
        if choice.random() < 0.7:
            request.user_id = self._text()
        elif choice.random() < 0.9:
            request.anonymous.anonymous_id = self._text()
            request.anonymous.recent_events.extend(
                pb.HistoryEvent(
                    item_id=self._text(),
                    action=choice.choice(NUMBERS[:3]),
                    order_id=self._text(),
                    event_time=self._time(),
                )
                for _ in range(choice.choice((0, 1, 3, 201)))
            )
        if choice.random() < 0.4:
            request.now.CopyFrom(self._time())
        return request

    def _similaritems(self) -> pb.SimilarItemsRequest:
        return pb.SimilarItemsRequest(
            request_id=self._text(),
            item_id=self._text(),
            space=self._random.choice((0, 1, 2, 3, 99)),
            page_size=self._random.choice(NUMBERS),
            filters=self._filters(),
            exclude_item_ids=self._texts(),
        )

    def _generatetopitems(self) -> pb.GenerateTopItemsRequest:
        return pb.GenerateTopItemsRequest(
            request_id=self._text(),
            user_ids=self._texts()[:300],
            k=self._random.choice(NUMBERS),
            filters=self._filters(),
            exclude_item_ids=self._texts(),
            exclude_purchased=self._random.random() < 0.3,
        )
