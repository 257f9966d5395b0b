"""Number the items of a release's collections in the vector index. A number is cheaper than text there, and no id enters an
expression (ADR 27)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import blake2b

LATER = 2**62
"""The least key of an item that is not in the release's catalogue."""


class ItemKeys:
    """Primary keys of items: the index of an item in the release's catalogue; 62 bits of its id's BLAKE2b hash, plus LATER,
    for an item that came after the release. Every process computes the same keys without asking another. In a million later
    items, two share a key with a probability of 1e-7.

    >>> keys = ItemKeys({"rye": 0, "milk": 1})
    >>> keys.of(["milk", "a new bread"])
    [1, 9050942953697994746]
    """

    def __init__(self, catalog_index: Mapping[str, int]) -> None:
        self._index = catalog_index

    def of(self, item_ids: Iterable[str]) -> list[int]:
        """Return the keys of some items, in their order."""
        return [self._index[item_id] if item_id in self._index else later_key(item_id) for item_id in item_ids]


def later_key(item_id: str) -> int:
    """Return the key of an item that is not in the release's catalogue, LATER to 2 LATER - 1."""
    return LATER | int.from_bytes(blake2b(item_id.encode(), digest_size=8).digest(), "big") % LATER
