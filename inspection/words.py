"""Moments, ages and answers in words."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from baguni.v1 import recommendation_pb2 as pb

SOURCES = {
    pb.SOURCE_RETRIEVAL: "retrieval",
    pb.SOURCE_HISTORY: "history",
    pb.SOURCE_GENERATIVE: "generative",
    pb.SOURCE_POPULAR: "popular",
    pb.SOURCE_CANDIDATE: "candidate",
    pb.SOURCE_CONTENT: "content",
}
TIERS = {
    pb.DEGRADATION_TIER_FULL: "everything answered",
    pb.DEGRADATION_TIER_CACHED_EMBEDDING: "degraded: the user as last seen",
    pb.DEGRADATION_TIER_CACHED_LIST: "degraded: the list found before, ranked again",
    pb.DEGRADATION_TIER_POPULAR: "degraded: popular items",
    pb.DEGRADATION_TIER_RETRIEVAL_ORDER: "degraded: without the generative head",
}
_UNITS = ((86_400_000, "day"), (3_600_000, "hour"), (60_000, "minute"))


def moment(time_ms: int, timezone: str) -> str:
    """By the store's clock, to the minute."""
    when = datetime.fromtimestamp(time_ms / 1000, UTC).astimezone(ZoneInfo(timezone))
    return f"{when:%a} {when.day} {when:%b %Y %H:%M}"


def age(milliseconds: int) -> str:
    """A length of time, in its largest whole unit.

    >>> age(90_000), age(1_400), age(3 * 86_400_000)
    ('1 minute', '1.4 s', '3 days')
    """
    for size, unit in _UNITS:
        count = milliseconds // size
        if count:
            return f"{count:,} {unit}{'s' if count > 1 else ''}"
    return f"{milliseconds / 1000:.1f} s"


def plural(count: int, noun: str) -> str:
    """ "1 item", "2 items"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def sources(numbers: Iterable[pb.Source.ValueType]) -> str:
    """Which parts proposed an item."""
    return ", ".join(SOURCES.get(number, f"source {number}") for number in numbers)
