"""Find items by their keys in the vector index."""

# N = items, I = keys of a search's hits

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from baguni.domain.item_keys import item_keys
from baguni.domain.scoring import Int64


class KeyIndex:
    """Map keys to item indexes, many at a time: `key_N` contains the key of each item."""

    def __init__(self, item_ids: Iterable[str]) -> None:
        self.key_N: Int64 = item_keys(item_ids)
        self._index_N: Int64 = np.argsort(self.key_N, kind="stable")
        self._sorted_N = self.key_N[self._index_N]

    def extend(self, item_ids: Iterable[str]) -> None:
        """Add items after the last one. The sorted keys are copied, not sorted again: some milliseconds for a million."""
        added = item_keys(item_ids)
        order = np.argsort(added, kind="stable")
        place = np.searchsorted(self._sorted_N, added[order], side="right")
        self._sorted_N = np.insert(self._sorted_N, place, added[order])
        self._index_N = np.insert(self._index_N, place, len(self.key_N) + order)
        self.key_N = np.r_[self.key_N, added]

    def find(self, key_I: Int64) -> tuple[Int64, Int64]:
        """Return the places in `key_I` of known keys, and the indexes of their items. If items share a key, the first is found.

        >>> keys = KeyIndex(["rye", "milk"])
        >>> keys.find(np.array([keys.key_N[1], 5, keys.key_N[0]]))
        (array([0, 2]), array([1, 0]))
        """
        place_I = np.searchsorted(self._sorted_N, key_I).clip(max=len(self._sorted_N) - 1)
        known = np.flatnonzero(self._sorted_N[place_I] == key_I)
        return known, self._index_N[place_I[known]]
