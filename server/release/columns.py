"""Items' attributes by column, so that a filter over the whole catalogue is a few comparisons of arrays. Which items it lets
through is what `baguni.domain.filters.mask` says, a thousand times sooner.
"""

# N = items, I = items asked for

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baguni.domain.catalog import AttributeValue, Item
from baguni.domain.filters import BUILT_IN_TYPES, Filter, category_prefixes, value_of

Mask = NDArray[np.bool_]


class Columns:
    """One array an attribute: numbers as they are, NaN for none; texts and truths as numbers of their values, -1 for none."""

    def __init__(self, items: Sequence[Item], attribute_types: Mapping[str, str]) -> None:
        self._types = dict(attribute_types)
        self._codes: dict[str, dict[str, int]] = defaultdict(dict)
        self._below: dict[str, list[int]] = defaultdict(list)  # category or part of its path → codes of categories
        self._columns_N: dict[str, NDArray[Any]] = self._of(items)

    def extend(self, items: Sequence[Item]) -> None:
        """Add items at the end."""
        added = self._of(items)
        self._columns_N = {name: np.concatenate([column_N, added[name]]) for name, column_N in self._columns_N.items()}

    def replace(self, index: int, item: Item) -> None:
        """An item is another from now on."""
        for name, column in self._of([item]).items():
            self._columns_N[name][index] = column[0]

    def mask(self, conditions: Sequence[Filter], index_I: NDArray[np.int64] | None = None) -> Mask:
        """[I] which of these items satisfy every condition; [N] without index_I."""
        size = len(self._columns_N["available"]) if index_I is None else len(index_I)
        allowed = np.ones(size, bool)
        for condition in conditions:
            column = self._columns_N[condition.attribute]
            allowed &= self._holds(condition, column if index_I is None else column[index_I])
        return allowed

    def _holds(self, condition: Filter, column_I: NDArray[Any]) -> Mask:
        if condition.any_of is not None:
            return np.isin(column_I, self._codes_of(condition.attribute, condition.any_of))
        if condition.bounds is not None:
            low, high = condition.bounds
            holds = ~np.isnan(column_I)
            holds &= column_I >= low if low is not None else True
            return np.asarray(holds & (column_I <= high) if high is not None else holds)
        return np.asarray(column_I == int(bool(condition.is_)))

    def _codes_of(self, attribute: str, values: Sequence[str]) -> NDArray[np.int32]:
        if attribute == "category":
            codes = [code for value in values for code in self._below.get(value, ())]
        else:
            known = self._codes[attribute]
            codes = [known[value] for value in values if value in known]
        return np.asarray(codes, np.int32)

    def _of(self, items: Sequence[Item]) -> dict[str, NDArray[Any]]:
        return {
            name: self._column(name, kind, [value_of(item, name) for item in items])
            for name, kind in {**self._types, **BUILT_IN_TYPES}.items()
        }

    def _column(self, name: str, kind: str, values: Sequence[AttributeValue | None]) -> NDArray[Any]:
        if kind == "number":
            return np.asarray([np.nan if value is None else value for value in values], np.float64)
        if kind == "bool":
            return np.asarray([-1 if value is None else value for value in values], np.int8)
        return np.asarray([-1 if value is None else self._code(name, str(value)) for value in values], np.int32)

    def _code(self, name: str, value: str) -> int:
        codes = self._codes[name]
        if value not in codes:
            codes[value] = len(codes)
            if name == "category":
                for prefix in category_prefixes(value):
                    self._below[prefix].append(codes[value])
        return codes[value]
