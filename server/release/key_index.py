"""Find items by their keys in the vector index."""

# N = items, I = items or keys of a search's hits

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from baguni.domain.item_keys import LATER, later_key
from baguni.domain.scoring import Int64


class KeyIndex:
    """Map keys to item indexes and back, many at a time. The keys of the release's items are their indexes; those of later
    items are looked up."""

    def __init__(self, num_trained: int) -> None:
        self._num_trained = num_trained
        self._later_keys: Int64 = np.zeros(0, np.int64)
        self._later_index: dict[int, int] = {}

    def extend(self, item_ids: Iterable[str]) -> None:
        """Add later items, whose indexes follow those of the items that are there."""
        added = [later_key(item_id) for item_id in item_ids]
        for place, key in enumerate(added, self._num_trained + len(self._later_keys)):
            self._later_index.setdefault(key, place)
        self._later_keys = np.r_[self._later_keys, np.asarray(added, np.int64)]

    def keys(self, index_I: Int64) -> Int64:
        """Return the [I] keys of items."""
        if not len(self._later_keys):
            return index_I
        later_I = self._later_keys[np.maximum(index_I - self._num_trained, 0)]
        return np.where(index_I < self._num_trained, index_I, later_I)

    def find(self, key_I: Int64) -> tuple[Int64, Int64]:
        """Return the places in `key_I` of known keys, and the indexes of their items. If later items share a key, the first is
        found.

        >>> keys = KeyIndex(num_trained=2)
        >>> keys.extend(["new"])
        >>> keys.find(np.array([1, 7, later_key("new")]))
        (array([0, 2]), array([1, 2]))
        """
        index_I = np.where(key_I < self._num_trained, key_I, -1)
        for place in np.flatnonzero(key_I >= LATER).tolist():
            index_I[place] = self._later_index.get(int(key_I[place]), -1)
        known = np.flatnonzero(index_I >= 0)
        return known, index_I[known]
