"""When malformed records are a broken schema and not an accident."""

from __future__ import annotations

import pytest

from baguni.domain.errors import SchemaBreakError
from baguni.domain.events import MalformedEvent
from streaming.consumer import LEAST_DEAD, WINDOW, DeadRate

BAD = MalformedEvent("undecodable", "the value is no OrderPlaced")


def test_a_share_beyond_what_is_allowed_stops_with_the_reason() -> None:
    rate = DeadRate(0.5)
    rate.check(400, [BAD] * 200)
    with pytest.raises(
        SchemaBreakError, match=r"302 of the last 600 records are malformed, expected at most 50%.*OrderPlaced"
    ):
        rate.check(200, [BAD] * 102)


def test_a_few_are_an_accident_however_large_their_share() -> None:
    rate = DeadRate(0.5)
    rate.check(LEAST_DEAD - 1, [BAD] * (LEAST_DEAD - 1))
    with pytest.raises(SchemaBreakError):
        rate.check(1, [BAD])


def test_what_was_long_ago_does_not_count() -> None:
    rate = DeadRate(0.5)
    rate.check(400, [BAD] * 200)
    for _ in range(WINDOW // 100 + 1):
        rate.check(100, [])
    rate.check(200, [BAD] * 200)  # 200 of more than 1,000


def test_everything_may_be_malformed_where_that_is_allowed() -> None:
    DeadRate(1.0).check(10_000, [BAD] * 10_000)
