"""Names from outside become labels: as many as there is room for, and no made-up one in the place of a real one."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, Counter, generate_latest

from baguni.exposition import COUNTED, FREQUENT, MAX_LABEL, OTHER, BoundedNames


def test_the_first_names_are_labels_at_once_and_later_ones_when_they_are_frequent() -> None:
    name = BoundedNames(4)
    assert [name(each) for each in ("a", "b", "c", "a", OTHER)] == ["a", "b", OTHER, "a", OTHER]
    assert [name("c") for _ in range(FREQUENT)].count("c") == 2  # the one above counts
    assert name("c") == "c"


def test_made_up_names_displace_neither_configured_nor_frequent_ones() -> None:
    name = BoundedNames(6, ["home", "cart"])
    labels = {name(f"made-up-{number}") for number in range(20_000)}
    assert len(labels) == 2  # one, and other
    for number in range(5_000):
        name(f"again-{number}")
        if number % 10 == 0:
            name("sale")
    assert [name(each) for each in ("home", "cart", "sale", "once")] == ["home", "cart", "sale", OTHER]


@pytest.mark.parametrize("most", [1, 2, 50])
def test_there_are_never_more_labels_than_the_most(most: int) -> None:
    name = BoundedNames(most)
    for number in range(200):
        for _ in range(2 * FREQUENT):
            name(str(number))
    assert len({name(str(number)) for number in range(200)} - {OTHER}) <= most
    assert len(name._counts) <= COUNTED + 1


@pytest.mark.parametrize("name", ["\ud800", "a\udfffb", "x" * 100_000, '\n"\\', "\0", "소금"])
def test_any_name_is_a_label_that_can_be_scraped(name: str) -> None:
    registry = CollectorRegistry()
    Counter("tested", "Tested.", ["name"], registry=registry).labels(BoundedNames(5)(name)).inc()
    assert len(generate_latest(registry)) < 1_000 + 2 * MAX_LABEL
