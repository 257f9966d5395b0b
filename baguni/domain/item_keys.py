"""Number items by their ids, for the vector index. A number is cheaper than text there, and no id enters an expression
(ADR 27)."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

import numpy as np

from baguni.domain.scoring import Int64

LARGEST_KEY = 2**63 - 1


def item_key(item_id: str) -> int:
    """Return the item's primary key in the vector index, 0 to LARGEST_KEY: 63 bits of the id's BLAKE2b hash. Every process
    computes the same number without asking another. In a million items, two share a key with a probability of 5e-8.

    >>> item_key("rye-bread")
    7500265502621397896
    """
    return int.from_bytes(blake2b(item_id.encode(), digest_size=8).digest(), "big") & LARGEST_KEY


def item_keys(item_ids: Iterable[str]) -> Int64:
    """Return the keys of some items, in their order."""
    return np.fromiter(map(item_key, item_ids), np.int64)
