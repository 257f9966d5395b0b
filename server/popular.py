"""Lists for those of whom nothing is known: what is clicked at the placement asked for, smoothed by what is ordered most."""

# I = items, P = items clicked at a placement

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from baguni.placements import WINDOW_MS
from server.active_release import Serving
from server.deadline import Deadline
from server.items import ItemTable
from server.parts import FAILURES, Clicks, Parts, in_time
from server.queries import RankedItem, Rules, Source
from server.rules import NOTHING, allowed
from server.users import Int64

PRIOR_CLICKS = 100.0  # as many clicks, spread as the release's orders are, weigh as much as those that were counted
FIRST, CHUNK = 2_000, 256
NO_CLICKS: Clicks = (NOTHING, np.zeros(0))

Scored = tuple[Int64, NDArray[np.float64]]
"""Items and their scores."""


class Popular:
    """Every item of the release, and those that came since where they were clicked. Scores are the release's orders of the last
    weeks; where a placement has had clicks, these and PRIOR_CLICKS more."""

    def __init__(self, items: ItemTable, clicks: Clicks = NO_CLICKS) -> None:
        self._items = items
        self._clicked_P, self._clicks_P = clicks

    def all(self) -> Iterator[Scored]:
        """Best first, a few at a time."""
        ordered_I = self._items.by_popularity
        first_I, rest_I = ordered_I[:FIRST], ordered_I[FIRST:]
        # A click so long ago that it does not lift an item above the rest is none.
        lifted_P = self._clicked_P[self._score(self._clicked_P) >= self._score(first_I[-1:]).sum()]
        if len(lifted_P):
            first_I = self._best_first(np.r_[first_I, lifted_P[~np.isin(lifted_P, first_I)]])[0]
            rest_I = rest_I[~np.isin(rest_I, lifted_P)]
        for part_I in (first_I, rest_I):
            for start in range(0, len(part_I), CHUNK):
                chunk_I = part_I[start : start + CHUNK]
                yield chunk_I, self._score(chunk_I)

    def among(self, item_ids: Iterable[str]) -> Iterator[Scored]:
        """These items, best first."""
        yield self._best_first(self._items.indexes(item_ids))

    def _best_first(self, index_I: Int64) -> Scored:
        score_I = self._score(index_I)
        order_I = np.argsort(-score_I, kind="stable")
        return index_I[order_I], score_I[order_I]

    def _score(self, index_I: Int64) -> NDArray[np.float64]:
        popularity_I = self._items.popularity(index_I)
        if not len(self._clicked_P):
            return popularity_I
        place_I = np.searchsorted(self._clicked_P, index_I).clip(max=len(self._clicked_P) - 1)
        clicks_I = np.where(self._clicked_P[place_I] == index_I, self._clicks_P[place_I], 0.0)
        return np.asarray(clicks_I + PRIOR_CLICKS * popularity_I / max(self._items.total_popularity, 1.0))


async def popular_at(
    serving: Serving, parts: Parts, placement: str, now_ms: int, timeout_s: float, deadline: Deadline
) -> Popular:
    """The placement's list as of a moment; that of the whole shop while Redis is away."""
    if not placement:
        return Popular(serving.items)
    key = (serving.release_id, placement, now_ms // WINDOW_MS)
    clicks = parts.clicks.get(key)
    if clicks is None:
        try:
            counted = await parts.ask(
                "popular",
                timeout_s,
                deadline,
                lambda limit_s: in_time(parts.placements.clicks(placement, now_ms), limit_s),
            )
        except FAILURES:
            return Popular(serving.items)
        index_P = np.sort(serving.items.indexes(counted))
        counts = [counted[serving.items.items[index].item_id] for index in index_P.tolist()]
        clicks = parts.clicks[key] = (index_P, np.asarray(counts, np.float64))
    return Popular(serving.items, clicks)


def popular_items(
    serving: Serving, rules: Rules, purchased_I: Int64, chunks: Iterable[Scored], count: int, already_I: Int64 = NOTHING
) -> list[RankedItem]:
    """The first `count` that the rules let through and the list has not already."""
    items = serving.items
    chosen: list[RankedItem] = []
    for index_I, score_I in chunks:
        kept_I = allowed(serving, index_I, rules, purchased_I) & ~np.isin(index_I, already_I)
        rows = zip(index_I[kept_I].tolist(), score_I[kept_I].tolist(), strict=True)
        chosen += [RankedItem(items.items[index].item_id, score, (Source.POPULAR,)) for index, score in rows]
        if len(chosen) >= count:
            break
    return chosen[: max(count, 0)]
