"""The retrieval head alone, exactly and over the whole release. The gateway finds the same items by approximate search."""

# U = users, N = items, V = vector dim, S = items that a user knows

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from baguni.domain.scoring import Float32, Int64, with_repeat_scores

USERS_AT_ONCE = 32  # rows of scores over the whole catalogue


@dataclass(frozen=True, eq=False)
class Encoded:
    """A user as the retrieval head reads them: an embedding, and the repeat scores of the items in their sequence."""

    embedding_V: Float32
    known_S: Int64
    repeat_S: Float32


@dataclass(frozen=True)
class Scored:
    """An item of a list; `known`: the user ordered, clicked or carted it before."""

    index: int
    score: float
    known: bool


def scores(users: Sequence[Encoded], item_vectors_IV: Float32, index_I: Int64 | None = None) -> Float32:
    """Return [U, I], the scores of the items `index_I` for each user; by default of all items."""
    index_I = np.arange(len(item_vectors_IV)) if index_I is None else index_I
    scores_UI = np.stack([user.embedding_V for user in users]) @ item_vectors_IV.T
    rows = zip(scores_UI, users, strict=True)
    return np.stack([with_repeat_scores(score_I, index_I, user.known_S, user.repeat_S) for score_I, user in rows])


def best(user: Encoded, item_vectors_NV: Float32, count: int) -> list[Scored]:
    """Return the first `count` items, best first."""
    score_N = scores([user], item_vectors_NV)[0]
    known = set(user.known_S.tolist())
    order = np.argsort(-score_N, kind="stable")[:count]
    return [Scored(index, float(score_N[index]), index in known) for index in order.tolist()]


@dataclass(frozen=True)
class Buyer:
    """A user to whom an item fits. `share`: the item's part of the sum of exp(score) over all items for this user, from 0 to 1;
    `rank`: its place in the user's own list, 1 for the first."""

    user_id: str
    score: float
    share: float
    rank: int
    knows: bool


def buyers(users: Sequence[tuple[str, Encoded]], item: int, item_vectors_NV: Float32, count: int) -> list[Buyer]:
    """Return the users for whom the item has the largest share. Users' scores have different levels; shares can be compared."""
    found = [_buyer(user_id, user, score_N, item) for user_id, user, score_N in _each(users, item_vectors_NV)]
    return sorted(found, key=lambda buyer: (-buyer.share, buyer.user_id))[:count]


def _buyer(user_id: str, user: Encoded, score_N: Float32, item: int) -> Buyer:
    highest = score_N.max()
    share = float(np.exp(score_N[item] - highest) / np.exp(score_N - highest).sum())
    rank = 1 + int((score_N > score_N[item]).sum())
    return Buyer(user_id, float(score_N[item]), share, rank, item in user.known_S)


def _each(users: Sequence[tuple[str, Encoded]], item_vectors_NV: Float32) -> Iterator[tuple[str, Encoded, Float32]]:
    for start in range(0, len(users), USERS_AT_ONCE):
        some = users[start : start + USERS_AT_ONCE]
        scores_UN = scores([user for _, user in some], item_vectors_NV)
        for (user_id, user), score_N in zip(some, scores_UN, strict=True):
            yield user_id, user, score_N
