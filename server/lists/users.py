"""Remember users between requests. It is a cache: any entry may be missing at any time."""

# S = known items, V = vector dim, I = items

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from cachetools import LRUCache
from numpy.typing import NDArray

from baguni.clients.inference import Arrays
from baguni.domain.scoring import Float32, Int64


@dataclass(frozen=True, eq=False, slots=True)
class KnownUser:
    """A user as the retrieval head reads them at one moment.

    embedding_qV: one vector for each kind of query; known_S, repeat_S: items of the sequence and their repeat scores;
    purchased_I: ordered items; inputs: the arrays of the models, kept for the scorer if the release uses it
    """

    history_version: int
    as_of_ms: int
    embedding_qV: Float32
    known_S: Int64
    repeat_S: Float32
    purchased_I: Int64
    inputs: Arrays | None


class UserCache:
    """The most recent users, by release: the newest embedding of each, and the items that their last search found."""

    def __init__(self, size: int) -> None:
        self._users: LRUCache[tuple[str, str], KnownUser] = LRUCache(size)
        self._found: LRUCache[tuple[str, str], NDArray[np.int32]] = LRUCache(size)

    def user(self, release_id: str, user_id: str) -> KnownUser | None:
        """Return the user as last embedded."""
        return self._users.get((release_id, user_id))

    def remember_user(self, release_id: str, user_id: str, user: KnownUser) -> None:
        """Store the user's newest embedding."""
        self._users[release_id, user_id] = user

    def forget(self, release_id: str, user_id: str) -> None:
        """Remove the user from one release."""
        self._users.pop((release_id, user_id), None)
        self._found.pop((release_id, user_id), None)

    def forget_everywhere(self, user_ids: Collection[str]) -> int:
        """Remove users of every release, who asked for it. Returns the number of removed entries."""
        num_removed = 0
        for cache in (self._users, self._found):
            for key in [key for key in cache if key[1] in user_ids]:
                del cache[key]
                num_removed += 1
        return num_removed

    def found(self, release_id: str, user_id: str) -> Int64 | None:
        """Return the indexes of the items that the last search found, best first."""
        found = self._found.get((release_id, user_id))
        return None if found is None else found.astype(np.int64)

    def remember_found(self, release_id: str, user_id: str, item_I: Int64) -> None:
        """Store what the last search found."""
        self._found[release_id, user_id] = item_I.astype(np.int32)
