"""Items are found by their keys, those of later items too."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baguni.domain.item_keys import item_key, item_keys
from server.release import key_index
from server.release.key_index import KeyIndex

IDS = st.lists(st.text(min_size=1, max_size=8), unique=True, min_size=1, max_size=40)


@given(IDS, st.data())
def test_every_item_is_found_by_its_key_whenever_it_came(ids: list[str], data: st.DataObject) -> None:
    first, *cuts = sorted(data.draw(st.lists(st.integers(1, len(ids)), min_size=1, max_size=3)))
    keys = KeyIndex(ids[:first])
    for low, high in pairwise([first, *cuts, len(ids)]):
        keys.extend(ids[low:high])
    asked = data.draw(st.lists(st.sampled_from([*ids, "an item that is not there"]), max_size=60))
    place_I, index_I = keys.find(item_keys(asked))
    assert [(asked[place], ids[index]) for place, index in zip(place_I, index_I, strict=True)] == [
        (item_id, item_id) for item_id in asked if item_id in ids
    ]
    assert keys.key_N.tolist() == list(map(item_key, ids))


def test_of_items_that_share_a_key_the_first_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_index, "item_keys", lambda ids: np.array([len(item_id) for item_id in ids], np.int64))
    keys = KeyIndex(["aa", "b"])
    keys.extend(["c", "dd", "eee"])
    place_I, index_I = keys.find(np.array([1, 2, 3, 4]))
    assert (place_I.tolist(), index_I.tolist()) == ([0, 1, 2], [1, 0, 4])
