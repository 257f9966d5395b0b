"""Filters in Python; that Milvus agrees item by item is tests/integration/test_item_index.py."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baguni.domain.catalog import Item
from baguni.domain.errors import InvalidInputError
from baguni.domain.filters import NO_NUMBER, NO_TEXT, Filter, check, expression, field_kinds, index_fields, mask

RYE = Item("rye", "Rye", ("GROCERY", "BREAD"), {"brand": "own", "size": 2.0, "organic": True})
SODA = Item("soda", "Soda", ("GROCERY", "BREADLESS"), {"brand": 'o"w\\n'}, available=False)
BARE = Item("bare", "Bare")
TYPES = {"brand": "string", "size": "number", "organic": "bool"}


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (Filter("category", any_of=("GROCERY",)), [True, True, False]),
        (Filter("category", any_of=("GROCERY > BREAD",)), [True, False, False]),
        (Filter("category", any_of=("BREAD",)), [False, False, False]),
        (Filter("category", any_of=("",)), [False, False, True]),
        (Filter("brand", any_of=("own", 'o"w\\n')), [True, True, False]),
        (Filter("size", bounds=(2.0, 2.0)), [True, False, False]),
        (Filter("size", bounds=(2.1, None)), [False, False, False]),
        (Filter("size", bounds=(None, None)), [True, False, False]),
        (Filter("organic", is_=False), [False, False, False]),
        (Filter("available", is_=True), [True, False, True]),
    ],
)
def test_what_a_condition_lets_through(condition: Filter, expected: list[bool]) -> None:
    assert mask([condition], [RYE, SODA, BARE]).tolist() == expected


def test_every_condition_must_hold() -> None:
    both = [Filter("category", any_of=("GROCERY",)), Filter("available", is_=True)]
    assert mask(both, [RYE, SODA, BARE]).tolist() == [True, False, False]
    assert mask([], [RYE, SODA, BARE]).tolist() == [True, True, True]


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (Filter("category", any_of=("A", 'B "x"')), r'array_contains_any(category_prefixes, ["A", "B \"x\""])'),
        (Filter("brand", any_of=("라면\\",)), r'attribute_brand in ["라면\\"]'),
        (
            Filter("size", bounds=(1.0, 2.5)),
            f"(attribute_size > {NO_NUMBER} and attribute_size >= 1.0 and attribute_size <= 2.5)",
        ),
        (Filter("size", bounds=(None, 1e-7)), f"(attribute_size > {NO_NUMBER} and attribute_size <= 1e-07)"),
        (Filter("size", bounds=(None, None)), f"(attribute_size > {NO_NUMBER})"),
        (Filter("organic", is_=False), "attribute_organic == 0"),
        (Filter("available", is_=True), "available == true"),
    ],
)
def test_conditions_as_expressions(condition: Filter, expected: str) -> None:
    assert expression([condition]) == expected


def test_conditions_and_exclusions_join_with_and() -> None:
    both = [Filter("available", is_=True), Filter("organic", is_=True)]
    assert expression(both, [7, 12]) == "available == true and attribute_organic == 1 and item_key not in [7, 12]"
    assert expression([]) == ""


def test_the_index_holds_every_prefix_of_a_category() -> None:
    assert index_fields(RYE, TYPES) == {
        "available": True,
        "category_prefixes": ["GROCERY", "GROCERY > BREAD"],
        "attribute_brand": "own",
        "attribute_size": 2.0,
        "attribute_organic": True,
    }


def test_what_an_item_does_not_have_is_a_value_that_no_filter_asks_for() -> None:
    fields = index_fields(BARE, TYPES)
    assert fields.keys() == field_kinds(TYPES).keys()
    assert (fields["attribute_brand"], fields["attribute_size"]) == (NO_TEXT, NO_NUMBER)
    assert fields["attribute_organic"] not in (0, 1)
    assert expression([Filter("brand", any_of=(NO_TEXT, "own"))]) == 'attribute_brand in ["own"]'
    odd = Item("odd", "Odd", (), {"brand": NO_TEXT, "size": NO_NUMBER})
    assert not mask([Filter("brand", any_of=(NO_TEXT,))], [odd])[0]
    assert not mask([Filter("size", bounds=(None, None))], [odd])[0]


@given(st.lists(st.text(max_size=4) | st.sampled_from(["a b", "a_x20_b", "_x", "x_x", "라면", "a-b"]), unique=True))
def test_every_attribute_has_a_field_of_its_own_with_a_name_that_is_one(names: list[str]) -> None:
    kinds = field_kinds(dict.fromkeys(names, "string"))
    own = set(kinds) - {"available", "category_prefixes"}
    assert len(own) == len(set(names) - {"available", "category"})
    assert all(re.fullmatch(r"attribute_[A-Za-z0-9_]*", field) for field in own)


@given(st.lists(st.sampled_from(["A", "B", "A > B", " > ", ""]), max_size=4))
def test_a_path_matches_exactly_what_the_index_holds_of_it(levels: list[str]) -> None:
    item = Item("x", "X", tuple(levels))
    for path in ("A", "B", "A > B", "", "A > B > A", " > "):
        assert Filter("category", any_of=(path,)).holds_for(item) == (
            path in index_fields(item, {})["category_prefixes"]
        )  # type: ignore[operator]


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (
            Filter("colour", any_of=("red",)),
            r"filters\[1\].attribute is 'colour', expected one of available, brand, category, organic, size",
        ),
        (Filter("size", any_of=("2",)), r"filters\[1\] is a string condition, but 'size' has type number"),
        (Filter("available", bounds=(0, 1)), r"filters\[1\] is a number condition, but 'available' has type bool"),
        (Filter("size", bounds=(float("nan"), None)), r"filters\[1\].range has a bound nan, expected a finite number"),
        (Filter("size", bounds=(0, float("inf"))), r"filters\[1\].range has a bound inf, expected a finite number"),
    ],
)
def test_a_wrong_filter_is_named(condition: Filter, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        check([Filter("available", is_=True), condition], TYPES)


def test_right_filters_pass() -> None:
    check([Filter("category", any_of=("A",)), Filter("size", bounds=(None, 1.0)), Filter("organic", is_=True)], TYPES)
