"""Remember users between requests. It is a cache: any entry may be missing at any time."""

# S = known items, V = vector dim, I = items

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
from cachetools import LRUCache
from numpy.typing import NDArray

from baguni.clients.inference import Arrays
from baguni.domain.scoring import Float32, Int64
from server.lists.remembered import ListKey, RememberedList


@dataclass(frozen=True, eq=False, slots=True)
class KnownUser:
    """A user as the retrieval head reads them at one moment.

    embedding_qV: one vector for each kind of query; known_S, repeat_S: items of the sequence and their repeat scores;
    purchased_I: ordered items; inputs: the arrays of the models, kept for the scorer if the release uses it
    lists: lists that were made with this embedding, the oldest first
    """

    history_version: int
    as_of_ms: int
    embedding_qV: Float32
    known_S: Int64
    repeat_S: Float32
    purchased_I: Int64
    inputs: Arrays | None
    lists: dict[ListKey, RememberedList] = field(default_factory=dict)

    def remember_list(self, key: ListKey, remembered: RememberedList, most: int) -> None:
        """Store a list as one of at most `most`."""
        self.lists.pop(key, None)
        while self.lists and len(self.lists) >= most:
            del self.lists[next(iter(self.lists))]
        if most > 0:
            self.lists[key] = remembered


class UserCache:
    """The newest embedding of each recent user, and the items that their last search found.

    Both contain indexes of items, so they belong to one item table; `table` is its `ItemTable.number`.
    """

    def __init__(self, size: int) -> None:
        self._users: LRUCache[tuple[int, str], KnownUser] = LRUCache(size)
        self._found: LRUCache[tuple[int, str], NDArray[np.int32]] = LRUCache(size)

    def user(self, table: int, user_id: str) -> KnownUser | None:
        """Return the user as last embedded."""
        return self._users.get((table, user_id))

    def remember_user(self, table: int, user_id: str, user: KnownUser) -> None:
        """Store the user's newest embedding."""
        self._users[table, user_id] = user

    def forget(self, table: int, user_id: str) -> None:
        """Remove the user of one table."""
        self._users.pop((table, user_id), None)
        self._found.pop((table, user_id), None)

    def forget_everywhere(self, user_ids: Collection[str]) -> int:
        """Remove users of every table, who asked for it. Returns the number of removed entries."""
        num_removed = 0
        for cache in (self._users, self._found):
            for key in [key for key in cache if key[1] in user_ids]:
                del cache[key]
                num_removed += 1
        return num_removed

    def found(self, table: int, user_id: str) -> Int64 | None:
        """Return the indexes of the items that the last search found, best first."""
        found = self._found.get((table, user_id))
        return None if found is None else found.astype(np.int64)

    def remember_found(self, table: int, user_id: str, item_I: Int64) -> None:
        """Store what the last search found."""
        self._found[table, user_id] = item_I.astype(np.int32)
