"""Items are found by their keys, those of later items too."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baguni.domain.item_keys import LATER, ItemKeys, later_key
from server.release import key_index
from server.release.key_index import KeyIndex

IDS = st.lists(st.text(min_size=1, max_size=8), unique=True, min_size=1, max_size=40)


@given(IDS, st.data())
def test_every_item_is_found_by_the_key_under_which_it_was_stored(ids: list[str], data: st.DataObject) -> None:
    num_trained, *cuts = sorted(data.draw(st.lists(st.integers(1, len(ids)), min_size=1, max_size=3)))
    stored = ItemKeys({item_id: index for index, item_id in enumerate(ids[:num_trained])})
    keys = KeyIndex(num_trained)
    for low, high in pairwise([num_trained, *cuts, len(ids)]):
        keys.extend(ids[low:high])
    asked = data.draw(st.lists(st.sampled_from([*ids, "an item that is not there"]), max_size=60))
    place_I, index_I = keys.find(np.array(stored.of(asked), np.int64))
    assert [(asked[place], ids[index]) for place, index in zip(place_I, index_I, strict=True)] == [
        (item_id, item_id) for item_id in asked if item_id in ids
    ]
    assert keys.keys(np.arange(len(ids))).tolist() == stored.of(ids)


def test_keys_of_a_catalogue_that_is_larger_are_unknown() -> None:
    """The collection of another release would have them."""
    assert KeyIndex(3).find(np.array([2, 3, 4, LATER]))[0].tolist() == [0]


def test_of_later_items_that_share_a_key_the_first_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_index, "later_key", lambda item_id: LATER + len(item_id))
    keys = KeyIndex(10)
    keys.extend(["aa", "b"])
    keys.extend(["c", "dd", "eee"])
    place_I, index_I = keys.find(np.array([1, 2, 3, 4]) + LATER)
    assert (place_I.tolist(), index_I.tolist()) == ([0, 1, 2], [11, 10, 14])


@given(st.text())
def test_the_key_of_a_later_item_is_no_index(item_id: str) -> None:
    assert LATER <= later_key(item_id) < 2 * LATER <= 2**63
