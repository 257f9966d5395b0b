"""`Recommend`, top to bottom: history, embedding, candidates, order, popular items, page.

Candidates are the nearest items in the collaborative space and the items of the user's history, ordered by one score
(baguni/domain/scoring.py). A release may let the generative head order the best of them. Each stage returns its result with
the tier that it reached: a server that does not answer makes the list worse and marks it.
"""

# S = items of the sequence, I = items, C = first candidates

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from baguni.clients.inference import summarise, triton_inputs
from baguni.domain import filters
from baguni.domain.errors import RefusedError
from baguni.domain.filters import Filter
from baguni.domain.history import History
from baguni.domain.scoring import Float32, Int64, candidate_codes, retrieval_scores
from baguni.domain.signature import EVERYTHING, NOVEL, NUM_CANDIDATES
from server.experiments.choices import MODEL
from server.experiments.explore import explored
from server.lists import ranking
from server.lists.calls import FAILURES, ListRequest
from server.lists.exact import FALLBACK_S, Wanted, nearest
from server.lists.popular import popular_at, popular_items
from server.lists.queries import RankedItem, Ranking, RecommendQuery, Rules, Source, Tier, worst
from server.lists.ranking import NO_CANDIDATES, NO_ITEMS, NO_SCORES, Candidates
from server.lists.remembered import MOST_ITEMS, SETTLED_S, ListKey, RememberedList, horizon, is_current, is_small
from server.lists.rules import excluded, permitted, permitted_of_all, purchased_items
from server.lists.users import KnownUser
from server.release.items import ItemTable

log = logging.getLogger(__name__)
Request = ListRequest[RecommendQuery]
SOURCES = [tuple(source for source in Source if bits >> source & 1) for bits in range(2 << max(Source))]
POPULAR_SCORE = -1e6  # popular items follow every personal one, in the order of popularity


async def recommend(request: Request) -> Ranking:
    """Return one page of a list."""
    user, user_tier = await _known_user(request)
    if user is None or request.query.listed != MODEL:
        ranked, tier = _fixed_list(request, user), user_tier
    else:
        ranked, list_tier = await _personal_list(request, user, user_tier)
        tier = worst(user_tier, list_tier)
    popular = await _popular(request, user, ranked)
    return _page(request, user, ranked, popular, tier)


async def _known_user(request: Request) -> tuple[KnownUser | None, Tier]:
    """Return the user as of the query's moment, or as last remembered if a server fails; None without a known item."""
    query, users, table = request.query, request.calls.users, request.serving.items.number
    user_id = query.visitor.user_id
    remembered = users.user(table, user_id) if user_id else None
    is_current = remembered is not None and _is_current(remembered, request)
    try:
        history = await _history(request, remembered if is_current else None)
        if history is None:
            return remembered, Tier.FULL
        user = await _embed(request, history.as_of(query.now_ms))
    except FAILURES:
        return remembered, Tier.CACHED_EMBEDDING if remembered else Tier.POPULAR
    if user_id and not history.events:
        users.forget(table, user_id)  # a deletion, or a history that has expired
    elif user is not None and user_id and _is_settled(history, query):
        users.remember_user(table, user_id, user)
    return user, Tier.FULL


def _is_current(user: KnownUser, request: Request) -> bool:
    """Return whether a remembered embedding may answer the query if the history is unchanged. Later pages need the embedding of
    the first."""
    query = request.query
    if query.offset > 0:
        return user.as_of_ms == query.now_ms
    return 0 <= query.now_ms - user.as_of_ms <= request.settings.embedding_age_s * 1000


def _is_settled(history: History, query: RecommendQuery) -> bool:
    """Return whether the history has no event after the query's moment, so that time alone cannot change it."""
    return not history.events or history.events[-1].time_ms <= query.now_ms


async def _history(request: Request, remembered: KnownUser | None) -> History | None:
    """Return the stored history, or the events of an anonymous visitor; None if it is the remembered user's, unchanged."""
    visitor = request.query.visitor
    if visitor.user_id is None:
        return History(visitor.events)
    user_id, version = visitor.user_id, remembered.history_version if remembered else None

    histories = request.calls.histories
    return await request.ask("history", lambda limit_s: histories.read_newer(user_id, version, limit_s))


async def _embed(request: Request, history: History) -> KnownUser | None:
    """Return the embedded user, None if the release knows no item of the history."""
    serving, now_ms = request.serving, request.query.now_ms
    signature = serving.release.signature
    inputs = summarise([history.events], now_ms, serving.items.index, signature)
    known_S = inputs.item_BS[0][inputs.item_BS[0] >= 0].astype(np.int64)
    if not len(known_S):
        return None
    arrays = triton_inputs(inputs, serving.items.codes_NL, signature)
    outputs = await request.ask("encode", lambda limit_s: serving.inference.infer("user_encoder", arrays, limit_s))
    return KnownUser(
        history.version,
        now_ms,
        outputs["user_embedding"][0],
        known_S,
        outputs["repeat_score"][0, : len(known_S)],
        serving.items.indexes(purchased_items(history)),
        arrays if signature.rescored_share > 0 else None,
    )


def _fixed_list(request: Request, user: KnownUser | None) -> Candidates:
    """Return an experiment's fixed items that the rules permit, in their order; none if its list is of popular items."""
    listed = request.query.listed
    if isinstance(listed, str):
        return NO_CANDIDATES
    items = request.serving.items
    index_I = items.indexes(listed)
    kept_I = permitted(items, index_I, request.query.rules, user.purchased_I if user else NO_ITEMS)
    return ranking.in_order(index_I[kept_I], Source.CANDIDATE)


async def _personal_list(request: Request, user: KnownUser, user_tier: Tier) -> tuple[Candidates, Tier]:
    """Return the user's list, best first. A complete list is remembered with the embedding, and returned again until an item
    changes that could change it: later pages, and visits without a new event, need no search."""
    items, key = request.serving.items, _list_key(request)
    num_needed, settled = _num_needed(request), items.settled_version(SETTLED_S)
    newest: RememberedList | None = None
    if (remembered := _remembered(request, user, key, num_needed)) is not None:
        request.calls.metrics.searches.labels("remembered").inc()
        newest = remembered._replace(items_version=max(settled, remembered.items_version))
        ranked, tier = remembered.ranked, Tier.FULL
    else:
        candidates, least, found_tier = await _candidates(request, user)
        ranked = _ranked(request, user, candidates)
        ranked, order_tier = await _rescored(request, user, ranked, worst(user_tier, found_tier))
        ranked, tier = _arranged(request, ranked), worst(found_tier, order_tier)
        if least is not None:
            newest = RememberedList(ranked, num_needed, least, settled)
    if key and newest and worst(user_tier, tier) is Tier.FULL and len(ranked) <= MOST_ITEMS:
        user.remember_list(key, newest, request.settings.remembered_lists)
    return ranked, tier


def _list_key(request: Request) -> ListKey | None:
    """Return what the list depends on; None if it should not be remembered: it is of the caller's own candidates, its first
    page lacks the judgement of the generative head, or its rules are large."""
    query = request.query
    if query.candidate_item_ids or not query.rescored or not is_small(query.rules):
        return None
    return ListKey(query.rules, query.may_be_rescored, query.num_retrieved, query.caps, query.diversity)


def _remembered(request: Request, user: KnownUser, key: ListKey | None, num_needed: int) -> RememberedList | None:
    """Return a list that may answer the query."""
    found = user.lists.get(key) if key else None
    if found is None or found.num_needed < num_needed:
        return None
    rules, items = request.query.rules, request.serving.items
    embedding_V = user.embedding_qV[_query_number(rules)]
    return found if is_current(found, items, rules, embedding_V, user.known_S, user.purchased_I) else None


async def _candidates(request: Request, user: KnownUser) -> tuple[Candidates, float | None, Tier]:
    """Return scored candidates and the search's horizon, None if it has none: the caller's own candidates if there are any,
    else what a search finds and what the user knows."""
    query, items, tier = request.query, request.serving.items, Tier.FULL
    least: float | None = None
    is_novel = query.rules.exclude_purchased
    known_S, repeat_S = (NO_ITEMS, NO_SCORES) if is_novel else (user.known_S, user.repeat_S)
    embedding_V = user.embedding_qV[_query_number(query.rules)]
    if query.candidate_item_ids:
        proposed = {Source.CANDIDATE: items.indexes(query.candidate_item_ids)}
    else:
        limit = _num_needed(request) + len(known_S)
        found_I, tier = await _found(request, user, embedding_V, limit)
        is_permitted_I = permitted(items, found_I, query.rules, user.purchased_I)
        least = horizon(found_I, is_permitted_I, limit, items, embedding_V)
        proposed = {Source.HISTORY: known_S, Source.RETRIEVAL: found_I}
    index_I, source_I = ranking.merged(proposed)
    score_I = retrieval_scores(embedding_V, items.item_vectors(index_I), index_I, known_S, repeat_S)
    return Candidates(index_I, score_I, source_I), least, tier


async def _found(request: Request, user: KnownUser, embedding_V: Float32, limit: int) -> tuple[Int64, Tier]:
    """Return the `limit` nearest items, best first. If Milvus fails or cannot evaluate the rules, or if the settings want it,
    the gateway searches its own vectors; in catalogues too large for that, the items of the user's last search remain."""
    query, serving, calls = request.query, request.serving, request.calls
    items, rules, user_id = serving.items, query.rules, query.visitor.user_id
    few_I = _few(items, rules.filters, request.settings.exact_items)
    try:
        if few_I is not None:
            left_I = few_I[permitted(items, few_I, rules, user.purchased_I)]
            path, (found_I, _) = "filtered", await nearest(items.item_vectors, left_I, embedding_V, limit)
        elif _is_searched_here(request):
            path, found_I = "exact", await _search_here(request, user, embedding_V, limit)
        else:
            path, found_I = await _search_milvus(request, user, embedding_V, limit)
    except FAILURES:
        before_I = calls.users.found(items.number, user_id) if user_id else None
        calls.metrics.searches.labels("cached" if before_I is not None else "none").inc()
        return (NO_ITEMS, Tier.POPULAR) if before_I is None else (before_I, Tier.CACHED_LIST)
    calls.metrics.searches.labels(path).inc()
    if user_id:
        calls.users.remember_found(items.number, user_id, found_I)
    return found_I, Tier.FULL


async def _search_milvus(request: Request, user: KnownUser, embedding_V: Float32, limit: int) -> tuple[str, Int64]:
    """Return the path that answered, and the nearest items: by Milvus, or by the gateway if Milvus cannot evaluate the rules,
    or fails and the catalogue is small enough."""
    serving, rules = request.serving, request.query.rules
    items, index = serving.items, serving.index
    excluded_I = excluded(items, rules, user.purchased_I)
    expression = filters.expression(rules.filters, items.keys(excluded_I).tolist())
    if not filters.is_searchable(rules.filters, expression):
        return "refused", await _search_here(request, user, embedding_V, limit)
    may_fall_back = len(items) <= request.settings.fallback_items
    try:
        hits = await request.ask(
            "search",
            lambda limit_s: index.search_items(embedding_V, limit, expression, limit_s),
            FALLBACK_S if may_fall_back else 0.0,
        )
        _, found_I = items.indexes_of_keys(hits.key_I)
        return "milvus", found_I
    except RefusedError as error:  # the request is at fault: Milvus is available
        log.warning("searching here what milvus refuses error=%s", error)
        return "refused", await _search_here(request, user, embedding_V, limit)
    except FAILURES:
        if not may_fall_back:
            raise
        return "fallback", await _search_here(request, user, embedding_V, limit)


async def _search_here(request: Request, user: KnownUser, embedding_V: Float32, limit: int) -> Int64:
    """Return the nearest items that the rules permit, by the gateway's own vectors."""
    items = request.serving.items
    wanted = Wanted(embedding_V, permitted_of_all(items, request.query.rules, user.purchased_I), limit)
    found_I, _ = await request.ask(
        "exact", lambda limit_s: request.calls.exact.nearest(items, "items", wanted, limit_s)
    )
    return found_I


def _is_searched_here(request: Request) -> bool:
    """Return whether the settings want the gateway to search a catalogue of this size."""
    settings = request.settings
    return settings.search == "exact" or (
        settings.search == "auto" and len(request.serving.items) <= settings.auto_items
    )


def _num_needed(request: Request) -> int:
    """Return how many items a search must find, besides those that the user knows: enough for the page to be exact wherever
    repeat scores put known items, and for the generative head and the arrangement to get the same items on every page."""
    query, settings = request.query, request.settings
    first = NUM_CANDIDATES if query.is_arranged or _is_rescorable(request) else 0
    return max(query.num_retrieved or settings.num_retrieved, first, min(query.list_size, settings.max_list))


def _few(items: ItemTable, conditions: Sequence[Filter], most: int) -> Int64 | None:
    """Return the items that satisfy the filters, if they are at most `most` and less than half of the catalogue. There the
    graph of the vector index misses items, every other one in the worst case (ADR 14)."""
    if not conditions:
        return None
    allowed_N = items.allowed(conditions)
    count = int(np.count_nonzero(allowed_N))
    return None if count > most or 2 * count > len(allowed_N) else np.flatnonzero(allowed_N)


def _query_number(rules: Rules) -> int:
    """Return the number of the user embedding that fits the rules."""
    return NOVEL if rules.exclude_purchased else EVERYTHING


def _ranked(request: Request, user: KnownUser, candidates: Candidates) -> Candidates:
    """Return the candidates that the rules permit, best first."""
    items, rules = request.serving.items, request.query.rules
    kept = candidates.take(permitted(items, candidates.index_I, rules, user.purchased_I))
    return ranking.best_first(kept, items.tie_break(kept.index_I))


def _is_rescorable(request: Request) -> bool:
    """Return whether the release, the rules and the experiments let the generative head order the list."""
    query, signature = request.query, request.serving.release.signature
    return signature.rescored_share > 0 and query.may_be_rescored and not query.rules.exclude_purchased


async def _rescored(request: Request, user: KnownUser, ranked: Candidates, tier: Tier) -> tuple[Candidates, Tier]:
    """Return the list with its first NUM_CANDIDATES ordered by both heads. A list whose first
    page was not reordered stays as it is."""
    is_personal = tier in (Tier.FULL, Tier.CACHED_LIST)
    if not is_personal or not len(ranked) or not _is_rescorable(request) or user.inputs is None:
        return ranked, Tier.FULL
    if not request.query.rescored:
        return ranked, Tier.RETRIEVAL_ORDER
    serving = request.serving
    first_C = ranked.index_I[:NUM_CANDIDATES]
    arrays = {**user.inputs, "candidate_codes": candidate_codes(serving.items.codes_NL, first_C)[np.newaxis]}
    try:
        outputs = await request.ask("score", lambda limit_s: serving.inference.infer("scorer", arrays, limit_s))
    except FAILURES:
        return ranked, Tier.RETRIEVAL_ORDER
    log_likelihood_C = outputs["candidate_log_likelihood"][0, : len(first_C)]
    share = serving.release.signature.rescored_share
    return ranking.rescored(ranked, log_likelihood_C, share, serving.items.tie_break(first_C)), Tier.FULL


def _arranged(request: Request, ranked: Candidates) -> Candidates:
    """Return the list with its first NUM_CANDIDATES arranged by diversity and caps."""
    query, items = request.query, request.serving.items
    if not query.is_arranged:
        return ranked
    first_C = ranked.index_I[:NUM_CANDIDATES]
    first = [items.items[index] for index in first_C.tolist()]
    values = [
        [item.category if cap.attribute == "category" else item.attributes.get(cap.attribute) for item in first]
        for cap in query.caps
    ]
    content_CD = items.content_vectors(first_C) if query.diversity > 0 else None
    max_items = [cap.max_items for cap in query.caps]
    return ranking.arranged(ranked, len(first_C), query.diversity, content_CD, values, max_items)


async def _popular(request: Request, user: KnownUser | None, ranked: Candidates) -> list[RankedItem]:
    """Return the popular items that follow the personal ones, as many as the page needs."""
    query, items = request.query, request.serving.items
    longest = min(query.list_size, max(request.settings.max_list, len(query.candidate_item_ids)))
    if len(ranked) >= longest:
        return []
    popular = await popular_at(request)
    chunks = popular.among(query.candidate_item_ids) if query.candidate_item_ids else popular.all()
    purchased_I = user.purchased_I if user else NO_ITEMS
    found = popular_items(items, query.rules, purchased_I, chunks, longest - len(ranked), ranked.index_I)
    return [item._replace(score=item.score + POPULAR_SCORE) for item in found]


def _page(
    request: Request, user: KnownUser | None, ranked: Candidates, popular: Sequence[RankedItem], tier: Tier
) -> Ranking:
    """Return the page of the list that has the ranked items and then the popular ones."""
    query, num_items = request.query, len(ranked) + len(popular)
    as_of_ms = user.as_of_ms if user else query.now_ms
    place_P, how = ranking.page_places(num_items, query.offset, query.page_size), None
    if query.explore is not None:
        page = range(query.offset, query.offset + query.page_size)
        place_P, how = explored(query.explore, query.visitor.id, as_of_ms, query.placement, num_items, page)
    is_ranked_P = place_P < len(ranked)
    personal = iter(_items(request.serving.items, ranked.take(place_P[is_ranked_P])))
    rows = zip(place_P.tolist(), is_ranked_P.tolist(), strict=True)
    items = [next(personal) if is_ranked else popular[place - len(ranked)] for place, is_ranked in rows]
    return Ranking(
        items,
        tier,
        has_more=num_items > query.offset + query.page_size,
        history_version=user.history_version if user else 0,
        as_of_ms=as_of_ms,
        explored=how,
    )


def _items(items: ItemTable, candidates: Candidates) -> list[RankedItem]:
    """Return the candidates as items of an answer."""
    rows = zip(candidates.index_I.tolist(), candidates.score_I.tolist(), candidates.source_I.tolist(), strict=True)
    return [RankedItem(items.items[index].item_id, score, SOURCES[bits]) for index, score, bits in rows]
