"""`SimilarItems`: nearest items in the content space (substitutes) or in the collaborative space (complements)."""

from __future__ import annotations

import logging

import numpy as np

from baguni.domain import filters
from baguni.domain.errors import NotFoundError, RefusedError
from baguni.domain.scoring import Float32, Int64
from server.lists.calls import FAILURES, ListRequest
from server.lists.exact import FALLBACK_S, Found, Wanted
from server.lists.queries import RankedItem, Ranking, SimilarQuery, Source
from server.lists.rules import excluded, permitted, permitted_of_all
from server.release.items import Space

log = logging.getLogger(__name__)
SPARE = 20  # items that just left the catalogue may still be in the index
Request = ListRequest[SimilarQuery]


async def similar_items(request: Request) -> Ranking:
    """Return the closest items by cosine, best first. Raises NotFoundError for an unknown item, UnavailableError or
    DeadlineExceeded if Milvus does not answer and the catalogue is too large to be searched here."""
    query, items = request.query, request.serving.items
    index = items.index.get(query.item_id)
    if index is None or query.item_id in items.removed:
        raise NotFoundError(f"item_id {query.item_id!r} is not in release {request.serving.release_id}")
    own = np.asarray([index])
    nearest, source = (_complements, Source.RETRIEVAL) if query.collaborative else (_substitutes, Source.CONTENT)
    found_I, score_I = await nearest(request, own)
    kept = np.flatnonzero(permitted(items, found_I, query.rules))[: query.page_size]
    rows = zip(found_I[kept].tolist(), score_I[kept].tolist(), strict=True)
    return Ranking([RankedItem(items.items[index].item_id, score, (source,)) for index, score in rows])


async def _substitutes(request: Request, own: Int64) -> Found:
    """Return the nearest items in the content space."""
    vector_D = request.serving.items.content_vectors(own)[0]
    return await _search(request, own, vector_D, request.query.page_size + SPARE)


async def _complements(request: Request, own: Int64) -> Found:
    """Return the nearest items in the collaborative space. The index orders by inner product, which favours long vectors: fetch
    more, then order by cosine. The last component is the item's popularity and is left out."""
    items = request.serving.items
    vector_V = items.item_vectors(own)[0].copy()
    vector_V[-1] = 0.0
    found_I, _ = await _search(request, own, vector_V, (request.query.page_size + SPARE) * 5)
    vectors = items.item_vectors(found_I)[:, :-1]
    norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(vector_V)
    cosine_I = vectors @ vector_V[:-1] / np.maximum(norms, 1e-12)
    best = np.argsort(-cosine_I, kind="stable")
    return found_I[best], cosine_I[best]


async def _search(request: Request, own: Int64, vector: Float32, limit: int) -> Found:
    """Return the nearest items in the query's space: by Milvus, or by the gateway's own vectors if Milvus cannot evaluate the
    rules, or fails and the catalogue is small enough."""
    query, serving = request.query, request.serving
    rules, items = query.rules, serving.items
    excluded_I = np.r_[own, excluded(items, rules)]
    expression = filters.expression(rules.filters, items.keys(excluded_I).tolist())
    may_fall_back = len(items) <= request.settings.fallback_items
    if filters.is_searchable(rules.filters, expression):
        search = serving.index.search_items if query.collaborative else serving.index.search_content
        try:
            hits = await request.ask(
                "similar",
                lambda limit_s: search(vector, limit, expression, limit_s),
                FALLBACK_S if may_fall_back else 0.0,
            )
            place_I, found_I = items.indexes_of_keys(hits.key_I)
            return found_I, hits.score_I[place_I]
        except RefusedError as error:  # the request is at fault: Milvus is available
            log.warning("searching here what milvus refuses error=%s", error)
        except FAILURES:
            if not may_fall_back:
                raise
    allowed_N = permitted_of_all(items, rules)
    allowed_N[own] = False
    space: Space = "items" if query.collaborative else "content"
    wanted = Wanted(vector, allowed_N, limit)
    exact = request.calls.exact
    return await request.ask("exact", lambda limit_s: exact.nearest(items, space, wanted, limit_s))
