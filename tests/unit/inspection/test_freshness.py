"""How fresh what the page shows is."""

from __future__ import annotations

import pytest

from inspection.freshness import REPLAYED_MS, Freshness
from inspection.words import age, moment, plural

NOW_MS = 1_712_000_000_000


def test_an_event_that_arrives_while_the_page_looks_says_after_how_long_it_was_seen() -> None:
    fresh = Freshness(5, NOW_MS - 60_000, NOW_MS - 50_000, arrived=False).after(6, NOW_MS - 400, NOW_MS)
    sentence = fresh.sentence(NOW_MS + 3_000)
    assert sentence == "history version 6 · newest event 3.4 s ago · seen here 0.40 s after it happened"


def test_a_look_that_finds_the_same_version_changes_nothing() -> None:
    fresh = Freshness(5, NOW_MS - 60_000, NOW_MS - 50_000, arrived=False)
    assert fresh.after(5, NOW_MS - 60_000, NOW_MS) is fresh
    assert "watching, nothing new yet" in fresh.sentence(NOW_MS)


@pytest.mark.parametrize("event_ms", [NOW_MS - REPLAYED_MS - 1, NOW_MS + 1])
def test_no_delay_is_claimed_for_events_whose_time_is_not_when_they_were_sent(event_ms: int) -> None:
    sentence = Freshness(5, 0, 0, arrived=False).after(6, event_ms, NOW_MS).sentence(NOW_MS + 2_000)
    assert "seen here" not in sentence
    assert "changed 2.0 s ago" in sentence


def test_somebody_of_whom_nothing_is_stored() -> None:
    assert Freshness(0, 0, NOW_MS, arrived=False).sentence(NOW_MS) == "nothing stored"


@pytest.mark.parametrize(
    ("milliseconds", "words"),
    [
        (0, "0.0 s"),
        (1_449, "1.4 s"),
        (59_000, "59.0 s"),
        (60_000, "1 minute"),
        (7_300_000, "2 hours"),
        (86_400_000, "1 day"),
    ],
)
def test_an_age_is_in_its_largest_whole_unit(milliseconds: int, words: str) -> None:
    assert age(milliseconds) == words


def test_a_moment_is_by_the_stores_clock() -> None:
    assert moment(NOW_MS, "America/New_York") == "Mon 1 Apr 2024 15:33"


def test_plural() -> None:
    assert [plural(count, "item") for count in (0, 1, 1_200)] == ["0 items", "1 item", "1,200 items"]
