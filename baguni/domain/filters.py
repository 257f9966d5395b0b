"""Conditions on catalogue attributes, in the three forms in which they are needed: checked, as an expression for the
vector index, and as a mask over items. The last two agree item by item.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from baguni.domain.catalog import CATEGORY_SEPARATOR, AttributeValue, Item
from baguni.domain.errors import InvalidInputError

BUILT_IN_TYPES = {"category": "string", "available": "bool"}
KEY, CATEGORY_PREFIXES = "item_key", "category_prefixes"  # fields of the vector index
MAX_TERMS = 20  # conditions that Milvus is sent: beyond some thirty, it refuses the expression as too deep
MAX_EXPRESSION = 1 << 20  # characters
_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"})
# The vector index has no value for "none" in a typed field. These are no attribute's: an item with one counts as without.
NO_TEXT, NO_NUMBER, NO_TRUTH = "\uffff", -sys.float_info.max, 2


@dataclass(frozen=True)
class Filter:
    """One condition: exactly one of `any_of` (strings), `bounds` (numbers, both ends included) and `is_` (truth)."""

    attribute: str
    any_of: tuple[str, ...] | None = None
    bounds: tuple[float | None, float | None] | None = None
    is_: bool | None = None

    @property
    def kind(self) -> str:
        """The type of attribute that the condition fits."""
        return "string" if self.any_of is not None else "number" if self.bounds is not None else "bool"

    def holds_for(self, item: Item) -> bool:
        """Return whether the item satisfies the condition; an item without the attribute does not."""
        value = value_of(item, self.attribute)
        if value is None:
            return False
        if self.any_of is not None:
            if self.attribute == "category":
                return any(value == path or str(value).startswith(path + CATEGORY_SEPARATOR) for path in self.any_of)
            return value in self.any_of
        if self.bounds is not None:
            low, high = self.bounds
            return (low is None or float(value) >= low) and (high is None or float(value) <= high)
        return value is self.is_


def field_kinds(attribute_types: Mapping[str, str]) -> dict[str, str]:
    """The fields of the vector index beside id and vector, and the kind of each: string, number, bool or strings.

    >>> field_kinds({"size": "number"})
    {'attribute_size': 'number', 'available': 'bool', 'category_prefixes': 'strings'}
    """
    attributes = {_field(name): kind for name, kind in attribute_types.items()}
    return {**attributes, "available": "bool", CATEGORY_PREFIXES: "strings"}


def index_fields(item: Item, attribute_types: Mapping[str, str]) -> dict[str, str | float | bool | list[str]]:
    """Return the fields of an item in the vector index, for `expression`: a value in every field.

    >>> index_fields(Item("1", "Rye", ("BAKERY", "BREAD"), {"size": 2.0}), {"size": "number", "organic": "bool"})
    {'attribute_size': 2.0, 'attribute_organic': 2, 'available': True, 'category_prefixes': ['BAKERY', 'BAKERY > BREAD']}
    """
    missing: dict[str, str | float] = {"string": NO_TEXT, "number": NO_NUMBER, "bool": NO_TRUTH}
    attributes: dict[str, str | float | bool | list[str]] = {}
    for name, kind in attribute_types.items():
        value = value_of(item, name)
        attributes[_field(name)] = missing[kind] if value is None else int(value) if kind == "bool" else value
    return {**attributes, "available": item.available, CATEGORY_PREFIXES: category_prefixes(item.category)}


def category_prefixes(category: str) -> list[str]:
    """A category's path and every path above it.

    >>> category_prefixes("BAKERY > BREAD")
    ['BAKERY', 'BAKERY > BREAD']
    """
    levels = category.split(CATEGORY_SEPARATOR)
    return [CATEGORY_SEPARATOR.join(levels[: depth + 1]) for depth in range(len(levels))]


def value_of(item: Item, attribute: str) -> AttributeValue | None:
    """Return the value that a condition on the attribute tests; None for an item without it."""
    if attribute == "category":
        return item.category
    if attribute == "available":
        return item.available
    value = item.attributes.get(attribute)
    return None if value in (NO_TEXT, NO_NUMBER) else value


def check(filters: Sequence[Filter], attribute_types: Mapping[str, str], field: str = "filters") -> None:
    """Raise InvalidInputError, naming the filter, if an attribute is unknown or of another type, or a bound no number."""
    known = {**BUILT_IN_TYPES, **attribute_types}
    for position, condition in enumerate(filters):
        where = f"{field}[{position}]"
        if condition.attribute not in known:
            raise InvalidInputError(
                f"{where}.attribute is {condition.attribute!r}, expected one of {', '.join(sorted(known))}",
                f"{where}.attribute",
            )
        if known[condition.attribute] != condition.kind:
            raise InvalidInputError(
                f"{where} is a {condition.kind} condition, but {condition.attribute!r} has type "
                f"{known[condition.attribute]}",
                where,
            )
        for bound in condition.bounds or ():
            if bound is not None and not math.isfinite(bound):
                raise InvalidInputError(
                    f"{where}.range has a bound {bound}, expected a finite number", f"{where}.range"
                )


def mask(filters: Sequence[Filter], items: Sequence[Item]) -> NDArray[np.bool_]:
    """Return [len(items)], whether each item satisfies every condition."""
    return np.fromiter((all(f.holds_for(item) for f in filters) for item in items), bool, len(items))


def expression(filters: Sequence[Filter], excluded_keys: Iterable[int] = ()) -> str:
    """Return the conditions as a Milvus boolean expression; text is quoted, never pasted in.

    >>> expression([Filter("available", is_=True)], [12, 7])
    'available == true and item_key not in [12, 7]'
    """
    terms = [_term(condition) for condition in filters]
    if excluded := list(excluded_keys):
        terms.append(f"{KEY} not in {excluded}")
    return " and ".join(terms)


def is_searchable(filters: Sequence[Filter], written: str) -> bool:
    """Return whether Milvus can evaluate `filters`, written as the expression `written`: it refuses deeply nested ones."""
    return len(filters) <= MAX_TERMS and len(written) <= MAX_EXPRESSION


def _term(condition: Filter) -> str:
    name = _field(condition.attribute)
    if condition.any_of is not None:
        values = _quoted([value for value in condition.any_of if value != NO_TEXT])
        # A path and everything below it: the index holds every prefix of an item's path.
        return f"array_contains_any({name}, {values})" if name == CATEGORY_PREFIXES else f"{name} in {values}"
    if condition.bounds is not None:
        low, high = condition.bounds
        terms = [f"{name} > {NO_NUMBER!r}"]
        terms += [f"{name} >= {low!r}"] if low is not None else []
        terms += [f"{name} <= {high!r}"] if high is not None else []
        return f"({' and '.join(terms)})"
    truth = str(condition.is_).lower() if condition.attribute == "available" else str(int(bool(condition.is_)))
    return f"{name} == {truth}"


def _quoted(values: Sequence[str]) -> str:
    """A list of string literals. Milvus knows these escapes; any other character stands for itself."""
    return "[" + ", ".join(f'"{value.translate(_ESCAPES)}"' for value in values) + "]"


def _field(attribute: str) -> str:
    """An attribute's name in the index. With the prefix it is never a word of the expression language, nor a key field; what
    may not stand in a field's name is written as its number, so no two attributes share a field."""
    if attribute in BUILT_IN_TYPES:
        return {"category": CATEGORY_PREFIXES}.get(attribute, attribute)
    return "attribute_" + re.sub(r"[^A-Za-z0-9_]|_(?=x)", lambda found: f"_x{ord(found[0]):x}_", attribute)
