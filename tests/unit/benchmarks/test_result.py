"""A row's words and its verdict come from one statement of its bar."""

from __future__ import annotations

import json

import pytest

from benchmarks.result import PAGE, RESULTS, Row, render

BESIDE = ("the other", 10.0)


@pytest.mark.parametrize(
    ("row", "bar", "holds"),
    [
        (Row.at_most("x", 2_500, "bytes", 2_500), "≤ 2,500 bytes", True),
        (Row.at_most("x", 2_500.1, "bytes", 2_500), "≤ 2,500 bytes", False),
        (Row.at_most("x", 1.0, "×", 1.05), "≤ 1.05 ×", True),
        (Row.at_most("x", 0, "", 0), "0", True),
        (Row.at_most("x", 1, "", 0), "0", False),
        (Row.at_most("x", float("nan"), "ms", 5), "≤ 5 ms", False),
        (Row.at_least("x", 1_000_000, "/ s", 1_000_000), "≥ 1,000,000 / s", True),
        (Row.at_least("x", 0.97, "", 0.98), "≥ 0.98", False),
        (Row.at_least("x", float("nan"), "", 0.98), "≥ 0.98", False),
        (Row.at_most_times("x", 15.0, "ms", 1.5, BESIDE), "≤ 1.5 ×", True),
        (Row.at_most_times("x", 15.1, "ms", 1.5, BESIDE), "≤ 1.5 ×", False),
        (Row.at_least_times("x", 12.5, "/ s", 1.25, BESIDE), "≥ 1.25 ×", True),
        (Row.at_least_times("x", 12.4, "/ s", 1.25, BESIDE), "≥ 1.25 ×", False),
        (Row.reported("x", 1e9, "ms"), "reported", True),
    ],
)
def test_bar_and_verdict(row: Row, bar: str, holds: bool) -> None:
    assert (row.bar, row.holds) == (bar, holds)


def test_the_page_is_that_of_the_results() -> None:
    results = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    assert PAGE.read_text() == render(results), "run `make bench-page`"


def test_the_ratio_is_that_to_the_value_beside() -> None:
    assert Row.reported("x", 5.0, "ms", BESIDE).ratio == 0.5
    assert Row.reported("x", 5.0, "ms").ratio is None
    assert Row.at_most("x", 5.0, "ms", 9, ("nothing measured", 0.0)).ratio is None
