"""An item is updated whatever its attributes are: those that a release cannot have are left out, and reported."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baguni.domain.catalog import AttributeValue, Item
from baguni.exposition import OTHER
from baguni.releases.item_updates import MAX_NAMES, DeclaredAttributes

TYPES = {"brand": "string", "size": "string", "price": "number", "organic": "bool"}
OF_TYPE = {"string": (str,), "number": (float, int), "bool": (bool,)}
NAMES = st.sampled_from([*TYPES, "pack_size", "", "소금", "Size", "other"])
VALUES: st.SearchStrategy[AttributeValue] = st.one_of(st.text(max_size=5), st.floats(allow_nan=False), st.booleans())


def belongs(name: str, value: AttributeValue) -> bool:
    kinds = OF_TYPE.get(TYPES.get(name, ""), ())
    return isinstance(value, kinds) and isinstance(value, bool) == (bool in kinds)


def attributes(item: Item) -> tuple[Item, Counter[tuple[str, str]]]:
    """Return the fitted item, and what was reported."""
    reported: Counter[tuple[str, str]] = Counter()
    declared = DeclaredAttributes(TYPES, lambda name, problem: reported.update([(name, problem)]))
    fitted = declared.fit(item)
    assert not reported
    declared.report(item)
    return fitted, reported


@given(st.dictionaries(NAMES, VALUES))
def test_exactly_what_is_declared_is_kept_and_the_rest_is_reported(sent: dict[str, AttributeValue]) -> None:
    item = Item("rye", "rye bread", ("BREAD",), sent, available=False)
    fitted, reported = attributes(item)
    assert fitted == replace(item, attributes={name: x for name, x in sent.items() if belongs(name, x)})
    wrong = [name for name, x in sent.items() if not belongs(name, x)]
    assert reported == Counter((name, "type" if name in TYPES else "undeclared") for name in wrong)
    assert attributes(fitted) == (fitted, Counter())


def test_an_item_that_fits_is_not_copied() -> None:
    item = Item("rye", "rye bread", (), {"brand": "own", "price": 1.0, "organic": True})
    assert attributes(item)[0] is item


def test_however_many_names_a_shop_makes_up_their_labels_and_lines_of_the_log_have_an_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    labels: set[str] = set()
    declared = DeclaredAttributes(TYPES, lambda name, problem: labels.add(name))
    with caplog.at_level(logging.WARNING):
        for number in range(3_000):
            declared.report(Item(f"item-{number}", "bread", (), {f"made-up-{number}": "x", "price": "1.99"}))
    assert OTHER in labels
    assert "price" in labels
    assert len(labels) <= MAX_NAMES + len(TYPES) + 1
    assert len(caplog.records) == len(labels)
    (line,) = [
        record.getMessage() for record in caplog.records if "price" in record.getMessage().split(", expected")[0]
    ]
    assert line == "left out of item='item-0': attributes['price'] is a string, expected a number"
