"""Popular items, for visitors without a history: the most clicked at the placement, smoothed by the most ordered."""

# I = items, P = items clicked at a placement

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from baguni.domain.scoring import Int64
from baguni.stores.placements import WINDOW_MS
from server.lists.calls import FAILURES, Clicks, ListRequest, in_time
from server.lists.queries import RankedItem, RecommendQuery, Rules, Source
from server.lists.ranking import NO_ITEMS
from server.lists.rules import permitted
from server.release.items import ItemTable

PRIOR_CLICKS = 100.0  # clicks that are added to the counted ones, spread like the release's orders
FIRST, CHUNK = 2_000, 256
NO_CLICKS: Clicks = (NO_ITEMS, np.zeros(0))

Chunk = tuple[Int64, NDArray[np.float64]]
"""Items, best first, and their scores."""


class Popular:
    """The items of the release, and newer ones that were clicked. An item's score is its number of orders in the last weeks
    before the release; at a placement with clicks, its clicks there and its part of PRIOR_CLICKS."""

    def __init__(self, items: ItemTable, clicks: Clicks = NO_CLICKS) -> None:
        self._items = items
        self._clicked_P, self._clicks_P = clicks

    def all(self) -> Iterator[Chunk]:
        """Yield all items, best first, a few at a time."""
        ordered_I = self._items.by_popularity
        first_I, rest_I = ordered_I[:FIRST], ordered_I[FIRST:]
        # Clicks so old that they do not lift an item above the rest do not count.
        lifted_P = self._clicked_P[self._score(self._clicked_P) >= self._score(first_I[-1:]).sum()]
        if len(lifted_P):
            first_I = self._best_first(np.r_[first_I, lifted_P[~np.isin(lifted_P, first_I)]])[0]
            rest_I = rest_I[~np.isin(rest_I, lifted_P)]
        for part_I in (first_I, rest_I):
            for start in range(0, len(part_I), CHUNK):
                chunk_I = part_I[start : start + CHUNK]
                yield chunk_I, self._score(chunk_I)

    def among(self, item_ids: Iterable[str]) -> Iterator[Chunk]:
        """Yield these items, best first."""
        yield self._best_first(self._items.indexes(item_ids))

    def _best_first(self, index_I: Int64) -> Chunk:
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


async def popular_at(request: ListRequest[RecommendQuery]) -> Popular:
    """Return the popular items of the query's placement as of its moment; without Redis, those of the whole shop."""
    query, serving, calls = request.query, request.serving, request.calls
    if not query.placement:
        return Popular(serving.items)
    key = (serving.release_id, query.placement, query.now_ms // WINDOW_MS)
    clicks = calls.clicks.get(key)
    if clicks is None:
        try:
            counted = await request.ask(
                "popular", lambda limit_s: in_time(calls.placements.clicks(query.placement, query.now_ms), limit_s)
            )
        except FAILURES:
            return Popular(serving.items)
        index_P = np.sort(serving.items.indexes(counted))
        counts = [counted[serving.items.items[index].item_id] for index in index_P.tolist()]
        clicks = calls.clicks[key] = (index_P, np.asarray(counts, np.float64))
    return Popular(serving.items, clicks)


def popular_items(
    items: ItemTable,
    rules: Rules,
    purchased_I: Int64,
    chunks: Iterable[Chunk],
    count: int,
    already_I: Int64 = NO_ITEMS,
) -> list[RankedItem]:
    """Return the first `count` items that the rules permit and that are not in the list already."""
    chosen: list[RankedItem] = []
    for index_I, score_I in chunks:
        kept_I = permitted(items, index_I, rules, purchased_I) & ~np.isin(index_I, already_I)
        rows = zip(index_I[kept_I].tolist(), score_I[kept_I].tolist(), strict=True)
        chosen += [RankedItem(items.items[index].item_id, score, (Source.POPULAR,)) for index, score in rows]
        if len(chosen) >= count:
            break
    return chosen[: max(count, 0)]
