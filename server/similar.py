"""`SimilarItems`: nearest items in the content space (substitutes) or in the collaborative space (complements)."""

from __future__ import annotations

import logging

import numpy as np

from baguni import filters
from baguni.errors import NotFoundError, RefusedError
from baguni.item_search import Hits
from server.active_release import Serving
from server.deadline import Deadline
from server.exact import nearest
from server.queries import RankedItem, Ranking, SimilarQuery, Source
from server.rules import allowed
from server.settings import ServerSettings
from server.users import Float32

log = logging.getLogger(__name__)
SPARE = 20  # items that left the catalogue a moment ago may still be in the index


async def similar_items(serving: Serving, settings: ServerSettings, query: SimilarQuery, deadline: Deadline) -> Ranking:
    """Closest first, by cosine. Raises NotFoundError for an unknown item, UnavailableError if Milvus is away."""
    table = serving.items
    index = table.index.get(query.item_id)
    if index is None or query.item_id in table.removed:
        raise NotFoundError(f"item_id {query.item_id!r} is not in release {serving.release_id}")
    own = np.asarray([index])
    timeout_s = deadline.limit(settings.search_timeout_s)
    limit = query.page_size + SPARE
    if not query.collaborative:
        hits = await _search(serving, table.content_vectors(own)[0], limit, query, timeout_s)
        scored = [(item_id, score, Source.CONTENT) for item_id, score in zip(hits.item_ids, hits.scores, strict=True)]
    else:
        scored = await _collaborative(serving, own, limit, query, timeout_s)
    present = [hit for hit in scored if hit[0] in table.index]
    allowed_I = allowed(serving, np.asarray([table.index[item_id] for item_id, *_ in present], np.int64), query.rules)
    ranked = [
        RankedItem(item_id, score, (source,))
        for (item_id, score, source), is_allowed in zip(present, allowed_I.tolist(), strict=True)
        if is_allowed
    ]
    return Ranking(ranked[: query.page_size])


async def _search(serving: Serving, vector_V: Float32, limit: int, query: SimilarQuery, timeout_s: float) -> Hits:
    """Nearest items in the query's space; here where Milvus cannot evaluate the rules."""
    rules, table = query.rules, serving.items
    excluded = [query.item_id, *sorted(rules.exclude_item_ids)]
    expression = filters.expression(rules.filters, excluded)
    if filters.is_searchable(rules.filters, expression):
        search = serving.index.search_items if query.collaborative else serving.index.search_content
        try:
            return await search(vector_V, limit, expression, timeout_s)
        except RefusedError as error:  # the request's doing, and no sign that Milvus is away
            log.warning("searching here what milvus refuses error=%s", error)
    left_I = np.flatnonzero(table.allowed(rules.filters))
    left_I = left_I[~np.isin(left_I, table.indexes(excluded))]
    vectors = table.item_vectors if query.collaborative else table.content_vectors
    found_I, score_I = await nearest(vectors, left_I, vector_V, limit)
    return Hits([table.items[index].item_id for index in found_I.tolist()], score_I.tolist())


async def _collaborative(
    serving: Serving, own: np.typing.NDArray[np.int64], limit: int, query: SimilarQuery, timeout_s: float
) -> list[tuple[str, float, Source]]:
    """The index orders by inner product, which favours long vectors: fetch more, then order by cosine. The bias component
    is popularity, not place: it is left out."""
    table = serving.items
    vector_V = table.item_vectors(own)[0].copy()
    vector_V[-1] = 0.0
    hits = await _search(serving, vector_V, limit * 5, query, timeout_s)
    found = table.indexes(hits.item_ids)
    if not len(found):
        return []
    vectors = table.item_vectors(found)[:, :-1]
    norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(vector_V)
    cosine = vectors @ vector_V[:-1] / np.maximum(norms, 1e-12)
    best = np.argsort(-cosine, kind="stable")
    return [(table.items[found[i]].item_id, float(cosine[i]), Source.RETRIEVAL) for i in best.tolist()]
