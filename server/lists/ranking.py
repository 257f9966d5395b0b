"""Rank a list's candidates: merge, score, filter, order, mix with the generative head, arrange, cut the page.

Arrays in, arrays out: it knows no server, no settings and no clock, and every order is total, so the same candidates always
give the same list.
"""

# I = candidates, A = the same with repeats, S = items of a sequence, V = vector dim, C = first candidates, D = content dim,
# P = places of a page

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from baguni.domain.scoring import Float32, Int64, served_scores
from server.lists.arrange import dealt, diverse
from server.lists.queries import Source

Bool = NDArray[np.bool_]
NO_ITEMS = np.zeros(0, np.int64)


@dataclass(frozen=True, eq=False)
class Candidates:
    """Distinct items and their scores. source_I has a bit for each `Source` that proposed the item."""

    index_I: Int64
    score_I: Float32
    source_I: Int64

    def __len__(self) -> int:
        return len(self.index_I)

    def take(self, places: NDArray[np.integer] | Bool | slice) -> Candidates:
        """Return the candidates at these places, in this order."""
        return Candidates(self.index_I[places], self.score_I[places], self.source_I[places])


NO_SCORES = np.zeros(0, np.float32)
NO_CANDIDATES = Candidates(NO_ITEMS, NO_SCORES, NO_ITEMS)


def merged(proposed: Mapping[Source, Int64]) -> tuple[Int64, Int64]:
    """Return every proposed item once, ascending, and the bits of the sources that proposed it.

    >>> merged({Source.HISTORY: np.array([7, 3]), Source.RETRIEVAL: np.array([3])})
    (array([3, 7]), array([6, 4]))
    """
    every_A = np.concatenate(list(proposed.values()))
    if not len(every_A):
        return NO_ITEMS, NO_ITEMS
    bits_A = np.concatenate([np.full(len(items), 1 << source) for source, items in proposed.items()])
    order_A = np.argsort(every_A)
    every_A = every_A[order_A]
    is_first_A = np.ones(len(every_A), bool)
    np.not_equal(every_A[1:], every_A[:-1], out=is_first_A[1:])  # half of the time of np.unique
    first_I = np.flatnonzero(is_first_A)
    return every_A[first_I], np.bitwise_or.reduceat(bits_A[order_A], first_I)


def in_order(index_I: Int64, source: Source) -> Candidates:
    """Return candidates whose order is given: their scores are 0, -1, -2 and so on."""
    return Candidates(index_I, -np.arange(len(index_I), dtype=np.float32), np.full(len(index_I), 1 << source))


def best_first(candidates: Candidates, tie_I: Int64) -> Candidates:
    """Return the candidates by falling score. Equal scores are ordered by `tie_I`, which must not depend on the request."""
    return candidates.take(np.lexsort((tie_I, -candidates.score_I)))


def rescored(ranked: Candidates, log_likelihood_C: Float32, share: float, tie_C: Int64) -> Candidates:
    """Return the list with its first C items ordered by the mix of both heads. The others follow in their order: their scores
    are lowered until they are below."""
    num_first = len(log_likelihood_C)
    first, rest = ranked.take(slice(num_first)), ranked.take(slice(num_first, None))
    score_C = served_scores(first.score_I, log_likelihood_C, share).astype(np.float32)
    drop = first.score_I[-1] - score_C.min()
    best = best_first(replace(first, score_I=score_C), tie_C)
    return Candidates(
        np.r_[best.index_I, rest.index_I],
        np.r_[best.score_I, rest.score_I - drop],
        np.r_[best.source_I, rest.source_I],
    )


def arranged(
    ranked: Candidates,
    num_first: int,
    diversity: float,
    content_CD: Float32 | None,
    values: Sequence[Sequence[Hashable | None]],
    max_items: Sequence[int],
) -> Candidates:
    """Return the list with its first C = `num_first` items ordered by diversity and then dealt by caps. The others follow in
    their order.

    `content_CD`: unit vectors of the first items, needed where diversity > 0; `values`: for each cap, the value of each of the
    first items; `max_items`: of each cap.
    """
    order_C = np.arange(num_first)
    if diversity > 0 and content_CD is not None:
        order_C = diverse(ranked.score_I[order_C], content_CD, diversity)
    if values and len(order_C):
        order_C = order_C[dealt([[own[place] for place in order_C.tolist()] for own in values], max_items)]
    return ranked.take(np.r_[order_C, np.arange(len(order_C), len(ranked))])


def page_places(num_items: int, offset: int, page_size: int) -> Int64:
    """Return the [P] places (0-based) of a page in a list of `num_items`."""
    return np.arange(min(offset, num_items), min(offset + page_size, num_items))
