"""The items that can be returned: the release's catalogue with what has changed since, by index.

Indexes below `num_trained` are the release's; live items that training never saw come after. It knows no server: it is
told of changes.
"""

# N = items, live ones included, T = the release's, L = code levels or live items, V = vector dim or trie nodes, I = items asked
# for, U = users

from __future__ import annotations

import itertools
import logging
import time
from collections import deque
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from baguni.domain.catalog import Item
from baguni.domain.filters import Filter
from baguni.domain.release import Release
from baguni.domain.scoring import Float32, Int64
from baguni.stores.live_items import LiveItem
from server.release.columns import Columns
from server.release.key_index import KeyIndex

log = logging.getLogger(__name__)
_NUMBERS = itertools.count()
Space = Literal["items", "content"]
KEPT_CHANGES = 1_024  # batches: those of five minutes at one every 0.3 s
CHECKED_CHANGES = 2_000  # changed items: to compare more with a list costs more than to make the list again
REMEMBERED_FILTERS = 16  # a mask has a byte per item: 16 MB for a million of them


class ItemVectors(NamedTuple):
    """Vectors of all items at one moment: those of the release, with later ones in their place. Safe to read in a thread while
    the table changes."""

    base_TV: Float32
    live_index_L: Int64
    live_LV: Float32

    def scores(self, query_UV: Float32) -> Float32:
        """Return [U, N], the inner products with every item."""
        num_items = max(len(self.base_TV), int(self.live_index_L.max(initial=-1)) + 1)
        score_UN = np.empty((len(query_UV), num_items), np.float32)
        np.matmul(query_UV, self.base_TV.T, out=score_UN[:, : len(self.base_TV)])
        score_UN[:, self.live_index_L] = query_UV @ self.live_LV.T
        return score_UN


class _Change(NamedTuple):
    """Items that changed together, and when, by the monotonic clock."""

    index_I: Int64
    at_s: float


class ItemTable:
    """Item attributes, codes and vectors by index. Changed only from the event loop, between requests."""

    def __init__(self, release: Release) -> None:
        self.items: list[Item] = list(release.catalog.items)
        self.index: dict[str, int] = dict(release.catalog.index)
        self.codes_NL: NDArray[np.int32] = release.semantic_ids.codes_NL
        self.num_trained = len(self.items)
        # Another table of the same release may order live items differently.
        self.number = next(_NUMBERS)
        self._changes: deque[_Change] = deque(maxlen=KEPT_CHANGES)
        self.version = 0  # the number of batches of changes
        self._item_vectors, self._content_vectors = release.item_vectors, release.content_vectors
        self._live: dict[int, LiveItem] = {}
        self._at_once: dict[str, ItemVectors] = {}
        self.removed: set[str] = set()
        self._popularity = release.popularity
        self.total_popularity = float(release.popularity.sum())
        self.by_popularity: NDArray[np.int64] = np.argsort(-release.popularity, kind="stable")  # of the release's items
        self._removed_indexes = np.zeros(0, np.int64)
        self._is_live_N = np.zeros(len(self.items), bool)
        self._tie_N = _ties(self.items)
        self._keys = KeyIndex(self.num_trained)
        self._columns = Columns(self.items, release.catalog.attribute_types)
        self._trie = release.semantic_ids.trie
        self.allowed = lru_cache(maxsize=REMEMBERED_FILTERS)(self._allowed)
        self.node_mask = lru_cache(maxsize=REMEMBERED_FILTERS)(self._node_mask)

    def __len__(self) -> int:
        return len(self.items)

    def apply(self, changes: Sequence[LiveItem]) -> None:
        """Take over changed items; one that does not fit the release is logged and left out."""
        changes = [live for live in changes if self._fits(live)]
        known, new_codes = len(self.items), []
        for live in changes:
            item_id = live.item.item_id
            index = self.index.setdefault(item_id, len(self.items))
            if index == len(self.items):
                self.items.append(live.item)
                new_codes.append(live.codes)
            else:
                self.items[index] = live.item
                if index < known:
                    self._columns.replace(index, live.item)
            self._live[index] = live
            (self.removed.add if live.removed else self.removed.discard)(item_id)
        if new_codes:  # once for all: each time, the codes of the whole catalogue are copied
            self.codes_NL = np.vstack([self.codes_NL, np.asarray(new_codes, np.int32)])
        if changes:
            self.version += 1
            self._changes.append(_Change(self.indexes(live.item.item_id for live in changes), time.monotonic()))
            self._removed_indexes = self.indexes(self.removed)
            added = self.items[known:]
            self._columns.extend(added)
            self._keys.extend(item.item_id for item in added)
            self._tie_N = np.r_[self._tie_N, _ties(added)]
            self._is_live_N = np.isin(np.arange(len(self.items)), list(self._live))
            self._at_once.clear()
            self.allowed.cache_clear()
            self.node_mask.cache_clear()

    def changed_since(self, version: int) -> Int64 | None:
        """Return the indexes of the items that changed since a version, ascending; None if that is too long ago, or if they are
        many."""
        num_changes = self.version - version
        if num_changes > len(self._changes):
            return None
        newest = [change.index_I for change in itertools.islice(reversed(self._changes), num_changes)]
        if sum(map(len, newest)) > CHECKED_CHANGES:
            return None
        return np.unique(np.concatenate([np.zeros(0, np.int64), *newest]))

    def settled_version(self, age_s: float) -> int:
        """Return the version that was in force some seconds ago: what changed since then may not be everywhere yet."""
        until = time.monotonic() - age_s
        newer = itertools.takewhile(lambda change: change.at_s > until, reversed(self._changes))
        return self.version - sum(1 for _ in newer)

    def _fits(self, live: LiveItem) -> bool:
        vectors = ((live.item_vector, self._item_vectors), (live.content_vector, self._content_vectors))
        fits = len(live.codes) == self.codes_NL.shape[1] and all(
            own.shape == base.shape[1:] and bool(np.isfinite(own).all()) for own, base in vectors
        )
        if not fits:
            log.error("an item does not fit the release: left out item_id=%r", live.item.item_id)
        return fits

    def item_vectors(self, index_I: NDArray[np.int64]) -> NDArray[np.float32]:
        """[I, V] in the collaborative space."""
        return self._vectors(index_I, self._item_vectors, "item_vector")

    def content_vectors(self, index_I: NDArray[np.int64]) -> NDArray[np.float32]:
        """[I, content dim], unit length."""
        return self._vectors(index_I, self._content_vectors, "content_vector")

    def all_vectors(self, space: Space) -> ItemVectors:
        """Return the vectors of all items in the collaborative or the content space."""
        if space not in self._at_once:
            base = self._item_vectors if space == "items" else self._content_vectors
            live = [live.item_vector if space == "items" else live.content_vector for live in self._live.values()]
            live_LV = np.stack(live).astype(np.float32) if live else base[:0]
            self._at_once[space] = ItemVectors(base, np.fromiter(self._live, np.int64, len(self._live)), live_LV)
        return self._at_once[space]

    def indexes(self, item_ids: Iterable[str]) -> NDArray[np.int64]:
        """Indexes of the ids that are known, without repeats, in their order."""
        found = dict.fromkeys(map(self.index.get, item_ids))
        found.pop(None, None)
        return np.fromiter(found, np.int64, len(found))

    def keys(self, index_I: Int64) -> Int64:
        """Return the [I] keys of some items in the vector index."""
        return self._keys.keys(index_I)

    def indexes_of_keys(self, key_I: Int64) -> tuple[Int64, Int64]:
        """Return the places in `key_I` whose items are known, and these items' indexes."""
        return self._keys.find(key_I)

    def popularity(self, index_I: NDArray[np.int64]) -> NDArray[np.float64]:
        """[I] orders of an item in the last weeks before the release; 0 for an item that came since."""
        known_I = self._popularity[np.minimum(index_I, self.num_trained - 1)].astype(np.float64)
        return np.where(index_I < self.num_trained, known_I, 0.0)

    def are_allowed(self, index_I: NDArray[np.int64], conditions: Sequence[Filter]) -> NDArray[np.bool_]:
        """[I] whether each item is there and satisfies the conditions."""
        allowed = ~np.isin(index_I, self._removed_indexes) if self.removed else np.ones(len(index_I), bool)
        if conditions:
            allowed &= self._columns.mask(conditions, index_I)
        return allowed

    def tie_break(self, index_I: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return [I], a number that depends only on the item's id."""
        return self._tie_N[index_I]

    def _allowed(self, conditions: tuple[Filter, ...]) -> NDArray[np.bool_]:
        """[N] which items are there and satisfy the conditions; remembered until an item changes (as `allowed`)."""
        mask = self._columns.mask(conditions)
        mask[[self.index[item_id] for item_id in self.removed]] = False
        mask.flags.writeable = False
        return mask

    def _node_mask(self, conditions: tuple[Filter, ...]) -> NDArray[np.bool_]:
        """Return [V], the same for the trie's nodes; a single True if everything is allowed. Remembered as `node_mask`. Items
        that training never saw have no leaf until the next release."""
        allowed = self.allowed(conditions)[: self.num_trained]
        mask = np.ones(1, bool) if allowed.all() else self._trie.node_mask(allowed)
        mask.flags.writeable = False
        return mask

    def _vectors(self, index_I: NDArray[np.int64], base: NDArray[np.float32], name: str) -> NDArray[np.float32]:
        vectors = base[np.minimum(index_I, self.num_trained - 1)].astype(np.float32, copy=False)  # a copy already
        for row in np.flatnonzero(self._is_live_N[index_I]).tolist():
            vectors[row] = getattr(self._live[int(index_I[row])], name)
        return vectors


def _ties(items: Sequence[Item]) -> NDArray[np.int64]:
    return np.asarray([crc32(item.item_id.encode()) for item in items], np.int64)
