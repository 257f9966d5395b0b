"""Which items of a history drove an item's place: how much its score falls when one of them is left out of the history.

Leaving out means: as if the user had never done anything with that item. Everything else stays, and the whole history is
summarised and encoded again. Effects of several items do not add up to the score.
"""

# H = histories with one item left out, I = items of the lists

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from baguni.domain.history import HistoryEvent

MAX_LEFT_OUT = 64  # items of a history, each of which is a history more to encode
SHOWN = 3
SMALLEST = 0.05  # what moves a score by less is not worth a line


@dataclass(frozen=True)
class Reason:
    """An item of the history, and by how much the score falls without it."""

    item_id: str
    effect: float


def left_out(events: Sequence[HistoryEvent], item_ids: Sequence[str]) -> list[tuple[HistoryEvent, ...]]:
    """One history for each item: without any event of it."""
    return [tuple(event for event in events if event.item_id != item_id) for item_id in item_ids]


def strongest(
    item_ids: Sequence[str], score_I: NDArray[np.float32], without_HI: NDArray[np.float32], count: int = SHOWN
) -> list[list[Reason]]:
    """For each item of a list, what lowers its score most when left out: the strongest first, none below SMALLEST."""
    effect_HI = score_I[np.newaxis] - without_HI
    reasons = []
    for effect_H in effect_HI.T:
        order = np.argsort(-effect_H, kind="stable")[:count]
        reasons.append([Reason(item_ids[h], float(effect_H[h])) for h in order.tolist() if effect_H[h] >= SMALLEST])
    return reasons
