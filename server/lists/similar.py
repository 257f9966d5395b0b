"""`SimilarItems`: nearest items in the content space (substitutes) or in the collaborative space (complements)."""

from __future__ import annotations

import logging

import numpy as np

from baguni.clients.item_search import Hits
from baguni.domain import filters
from baguni.domain.errors import NotFoundError, RefusedError, UnavailableError
from baguni.domain.scoring import Float32, Int64
from server.lists.calls import ListRequest
from server.lists.exact import Wanted
from server.lists.queries import RankedItem, Ranking, SimilarQuery, Source
from server.lists.rules import permitted, permitted_of_all
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
    scored = await (_complements(request, own) if query.collaborative else _substitutes(request, own))
    present = [hit for hit in scored if hit[0] in items.index]
    index_I = np.asarray([items.index[item_id] for item_id, *_ in present], np.int64)
    kept_I = permitted(items, index_I, query.rules)
    ranked = [
        RankedItem(item_id, score, (source,))
        for (item_id, score, source), is_kept in zip(present, kept_I.tolist(), strict=True)
        if is_kept
    ]
    return Ranking(ranked[: query.page_size])


async def _substitutes(request: Request, own: Int64) -> list[tuple[str, float, Source]]:
    """Return the nearest items in the content space."""
    vector_D = request.serving.items.content_vectors(own)[0]
    hits = await _search(request, vector_D, request.query.page_size + SPARE)
    return [(item_id, score, Source.CONTENT) for item_id, score in zip(hits.item_ids, hits.scores, strict=True)]


async def _complements(request: Request, own: Int64) -> list[tuple[str, float, Source]]:
    """Return the nearest items in the collaborative space. The index orders by inner product, which favours long vectors: fetch
    more, then order by cosine. The last component is the item's popularity and is left out."""
    items = request.serving.items
    vector_V = items.item_vectors(own)[0].copy()
    vector_V[-1] = 0.0
    hits = await _search(request, vector_V, (request.query.page_size + SPARE) * 5)
    found = items.indexes(hits.item_ids)
    if not len(found):
        return []
    vectors = items.item_vectors(found)[:, :-1]
    norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(vector_V)
    cosine = vectors @ vector_V[:-1] / np.maximum(norms, 1e-12)
    best = np.argsort(-cosine, kind="stable")
    return [(items.items[found[i]].item_id, float(cosine[i]), Source.RETRIEVAL) for i in best.tolist()]


async def _search(request: Request, vector: Float32, limit: int) -> Hits:
    """Return the nearest items in the query's space: by Milvus, or by the gateway's own vectors if Milvus cannot evaluate the
    rules, or fails and the catalogue is small enough."""
    query, serving = request.query, request.serving
    rules, items = query.rules, serving.items
    excluded = [query.item_id, *sorted(rules.exclude_item_ids)]
    expression = filters.expression(rules.filters, excluded)
    if filters.is_searchable(rules.filters, expression):
        search = serving.index.search_items if query.collaborative else serving.index.search_content
        try:
            return await request.ask("similar", lambda limit_s: search(vector, limit, expression, limit_s))
        except RefusedError as error:  # the request is at fault: Milvus is available
            log.warning("searching here what milvus refuses error=%s", error)
        except UnavailableError:
            if len(items) > request.settings.fallback_items:
                raise
    allowed_N = permitted_of_all(items, rules)
    allowed_N[items.indexes([query.item_id])] = False
    space: Space = "items" if query.collaborative else "content"
    wanted = Wanted(vector, allowed_N, limit)
    exact = request.calls.exact
    found_I, score_I = await request.ask("exact", lambda limit_s: exact.nearest(items, space, wanted, limit_s))
    return Hits([items.items[index].item_id for index in found_I.tolist()], score_I.tolist())
