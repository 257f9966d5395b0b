"""Arrange a list by the items' neighbours: caps deal it in rounds, diversity keeps similar items apart. Arrays only."""

# I = items in the list's order, C = content dim

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]


def dealt(values: Sequence[Sequence[Hashable | None]], max_items: Sequence[int]) -> Int64:
    """Return [I], the order of the list dealt in rounds. `values`: for each cap, the value of each item; None fits everywhere.
    A round takes at most `max_items` of one value, and an item goes to the first round with room for it.

    >>> dealt([["a", "a", "b", "a", "b"]], [1]).tolist()
    [0, 2, 1, 4, 3]
    """
    taken: Counter[tuple[int, Hashable, int]] = Counter()
    first_open: dict[tuple[int, Hashable], int] = {}
    round_I = []
    for item in zip(*values, strict=True):
        keys = [(cap, value) for cap, value in enumerate(item) if value is not None]
        number = max((first_open.get(key, 0) for key in keys), default=0)
        while any(taken[*key, number] >= max_items[key[0]] for key in keys):
            number += 1
        for key in keys:
            taken[*key, number] += 1
            while taken[*key, first_open.get(key, 0)] >= max_items[key[0]]:
                first_open[key] = first_open.get(key, 0) + 1
        round_I.append(number)
    return np.argsort(np.asarray(round_I, np.int64), kind="stable")


def diverse(score_I: NDArray[np.float32], vectors_IC: NDArray[np.float32], diversity: float) -> Int64:
    """Return [I], the order by maximal marginal relevance (Carbonell & Goldstein 1998, doi:10.1145/290941.291025): each item is
    the best of the rest by (1 − diversity) · score − diversity · greatest cosine to the items before it. Scores are scaled to
    0 to 1; vectors must have length 1.
    """
    lowest, spread = float(score_I.min(initial=0)), float(np.ptp(score_I)) if len(score_I) else 0.0
    worth_I = (1 - diversity) * (score_I.astype(np.float64) - lowest) / (spread or 1.0)
    likeness_I = np.zeros(len(score_I))
    left_I = np.ones(len(score_I), bool)
    chosen: list[int] = []
    for _ in range(len(score_I)):
        best = int(np.argmax(np.where(left_I, worth_I - diversity * likeness_I, -np.inf)))
        chosen.append(best)
        left_I[best] = False
        to_best_I = vectors_IC @ vectors_IC[best]
        likeness_I = to_best_I if len(chosen) == 1 else np.maximum(likeness_I, to_best_I)
    return np.asarray(chosen, np.int64)
