"""Filters over columns: item by item what `filters.mask` says, whatever was changed."""

from __future__ import annotations

import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from baguni.domain import filters
from baguni.domain.filters import Filter
from server.release.columns import Columns
from tests.strategies import ATTRIBUTE_TYPES, item_filters, random_item


@settings(max_examples=300)
@given(
    conditions=st.lists(item_filters(), max_size=3),
    seed=st.integers(0, 50),
    changed=st.sets(st.integers(0, 39), max_size=10),
    added=st.integers(0, 10),
)
def test_columns_let_through_what_the_mask_does(
    conditions: list[Filter], seed: int, changed: set[int], added: int
) -> None:
    rng = random.Random(seed)
    items = [random_item(str(n), rng) for n in range(40)]
    columns = Columns(items, ATTRIBUTE_TYPES)
    for index in changed:
        items[index] = random_item(str(index), rng)
        columns.replace(index, items[index])
    new = [random_item(f"new-{n}", rng) for n in range(added)]
    items += new
    columns.extend(new)
    expected = filters.mask(conditions, items)
    assert columns.mask(conditions).tolist() == expected.tolist()
    some = np.asarray(rng.sample(range(len(items)), 7))
    assert columns.mask(conditions, some).tolist() == expected[some].tolist()
