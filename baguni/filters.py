"""Conditions on catalogue attributes, in the three forms in which they are needed: checked, as an expression for the
vector index, and as a mask over items. The last two agree item by item.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from baguni.catalog import CATEGORY_SEPARATOR, AttributeValue, Item
from baguni.errors import InvalidInputError

BUILT_IN_TYPES = {"category": "string", "available": "bool"}
CATEGORY_PREFIXES = "category_prefixes"


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
        """Whether the item satisfies the condition; an item without the attribute does not."""
        value = _value(item, self.attribute)
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


def index_fields(item: Item) -> dict[str, str | float | bool | list[str]]:
    """The fields under which the vector index holds an item, for `expression`.

    >>> index_fields(Item("1", "Rye", ("BAKERY", "BREAD"), {"size": 2.0}))
    {'available': True, 'category_prefixes': ['BAKERY', 'BAKERY > BREAD'], 'attribute_size': 2.0}
    """
    levels = item.category.split(CATEGORY_SEPARATOR)
    prefixes = [CATEGORY_SEPARATOR.join(levels[: depth + 1]) for depth in range(len(levels))]
    attributes = {_field(name): value for name, value in item.attributes.items()}
    return {"available": item.available, CATEGORY_PREFIXES: prefixes, **attributes}


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
    """Which items satisfy every condition, [len(items)]."""
    return np.fromiter((all(f.holds_for(item) for f in filters) for item in items), bool, len(items))


def expression(filters: Sequence[Filter], exclude_item_ids: Sequence[str] = ()) -> str:
    """The conditions as a Milvus boolean expression; values are quoted as JSON strings, never pasted in."""
    terms = [_term(condition) for condition in filters]
    if exclude_item_ids:
        terms.append(f"item_id not in {json.dumps(list(exclude_item_ids), ensure_ascii=False)}")
    return " and ".join(terms)


def _term(condition: Filter) -> str:
    name = _field(condition.attribute)
    if condition.any_of is not None:
        values = json.dumps(list(condition.any_of), ensure_ascii=False)
        # A path and everything below it: the index holds every prefix of an item's path.
        return f"json_contains_any({name}, {values})" if name == CATEGORY_PREFIXES else f"{name} in {values}"
    if condition.bounds is not None:
        low, high = condition.bounds
        terms = [f"{name} >= {low!r}"] if low is not None else []
        terms += [f"{name} <= {high!r}"] if high is not None else []
        return "(" + (" and ".join(terms) or f"exists {name}") + ")"
    return f"{name} == {str(condition.is_).lower()}"


def _field(attribute: str) -> str:
    """An attribute's name in the index. With the prefix it is never a word of the expression language, nor a key field."""
    return {"category": CATEGORY_PREFIXES, "available": "available"}.get(attribute, f"attribute_{attribute}")


def _value(item: Item, attribute: str) -> AttributeValue | None:
    if attribute == "category":
        return item.category
    if attribute == "available":
        return item.available
    return item.attributes.get(attribute)
