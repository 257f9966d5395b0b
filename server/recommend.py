"""`Recommend`, top to bottom: history → embedding → candidates → rules → the generative head's opinion → page.

Candidates are the nearest items in the collaborative space and what the user already knows, under one scoring function:
score(user, item) = u · v + what the item gains because the user knows it. Where everything counts, a release may give the
generative head's log-likelihood a share in the order of the best of them. A part that does not answer makes the list worse
and marks it, and nothing else.
"""

# S = tokens of the history, I = items, V = vector dim, C = candidates of the generative head, L = code levels

from __future__ import annotations

import logging
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from baguni import filters
from baguni.errors import RefusedError
from baguni.history import History
from baguni.inference import summarise, triton_inputs
from baguni.signature import EVERYTHING, NOVEL, NUM_CANDIDATES
from server.active_release import Serving
from server.arrange import dealt, diverse
from server.deadline import Deadline
from server.exact import nearest
from server.experiments import MODEL
from server.explore import explored
from server.parts import FAILURES, Parts, in_time
from server.popular import popular_at, popular_items
from server.queries import RankedItem, Ranking, RecommendQuery, Rules, Source, Tier, worse
from server.rules import NOTHING, allowed, purchased_items
from server.settings import ServerSettings
from server.users import Float32, Int64, KnownUser

log = logging.getLogger(__name__)
T = TypeVar("T")
SOURCES = [tuple(source for source in Source if bits >> source & 1) for bits in range(2 << max(Source))]
POPULAR_SCORE = -1e6  # popular items stand below every personal score, in the order of popularity


@dataclass(frozen=True, eq=False)
class Scored:
    """Distinct items with their scores; source_I has a bit for each `Source` that proposed the item."""

    index_I: Int64
    score_I: Float32
    source_I: Int64

    def take(self, places: NDArray[np.integer] | NDArray[np.bool_] | slice) -> Scored:
        """Some of them."""
        return Scored(self.index_I[places], self.score_I[places], self.source_I[places])


async def recommend(
    serving: Serving, parts: Parts, settings: ServerSettings, query: RecommendQuery, deadline: Deadline
) -> Ranking:
    """One page of a list."""
    user, tier = await _known_user(serving, parts, settings, query, deadline)
    ranked = Scored(NOTHING, np.zeros(0, np.float32), NOTHING)
    if query.choices.listed != MODEL:
        ranked = _listed(serving, user, query)
    elif user is not None:
        scored, found_tier = await _candidates(serving, parts, user, settings, query, deadline)
        ranked, tier = _ranked(serving, user, scored, query.rules), worse(tier, found_tier)
        if tier in (Tier.FULL, Tier.CACHED_LIST) and len(ranked.index_I) and _may_be_rescored(query):
            ranked, order_tier = await _rescored(serving, parts, user, ranked, settings, query, deadline)
            tier = worse(tier, order_tier)
        ranked = _arranged(serving, ranked, query)
    longest = min(query.list_size, max(settings.max_list, len(query.candidate_item_ids)))
    purchased_I = user.purchased_I if user else NOTHING
    missing = longest - len(ranked.index_I)
    popular: list[RankedItem] = []
    if missing > 0:
        known = await popular_at(serving, parts, query.placement, query.now_ms, settings.history_timeout_s, deadline)
        chunks = known.among(query.candidate_item_ids) if query.candidate_item_ids else known.all()
        popular = popular_items(serving, query.rules, purchased_I, chunks, missing, ranked.index_I)
    below = [replace(item, score=item.score + POPULAR_SCORE) for item in popular]
    return _page(serving, query, ranked, below, tier, user)


def _page(
    serving: Serving,
    query: RecommendQuery,
    ranked: Scored,
    below: Sequence[RankedItem],
    tier: Tier,
    user: KnownUser | None,
) -> Ranking:
    """The page of what is ranked and what stands below it."""
    num_ranked = len(ranked.index_I)
    num_items, page = num_ranked + len(below), range(query.offset, query.offset + query.page_size)
    as_of_ms = user.as_of_ms if user else query.now_ms
    place_P, how = np.arange(page.start, min(page.stop, num_items)), None
    if query.choices.explore is not None:
        who = query.choices.assigned_id
        place_P, how = explored(query.choices.explore, who, as_of_ms, query.placement, num_items, page)
    is_below_P = place_P >= num_ranked
    of_ranked = iter(_items(serving, ranked.take(place_P[~is_below_P])))
    items = [
        below[place - num_ranked] if is_below else next(of_ranked)
        for place, is_below in zip(place_P.tolist(), is_below_P.tolist(), strict=True)
    ]
    return Ranking(
        items,
        tier,
        has_more=num_items > page.stop,
        history_version=user.history_version if user else 0,
        as_of_ms=as_of_ms,
        explored=how,
    )


async def _known_user(
    serving: Serving, parts: Parts, settings: ServerSettings, query: RecommendQuery, deadline: Deadline
) -> tuple[KnownUser | None, Tier]:
    """The user as of the query's now, or as last seen if that cannot be had; None for one of whom nothing is known."""
    remembered = parts.users.user(serving.release_id, query.user_id) if query.user_id else None
    current = remembered is not None and _is_current(remembered, query, settings)
    try:
        history = await _history(parts, settings, query, remembered if current else None, deadline)
        if history is None:
            return remembered, Tier.FULL
        user = await _embed(serving, parts, history.as_of(query.now_ms), settings, query, deadline)
    except FAILURES:
        return remembered, Tier.CACHED_EMBEDDING if remembered else Tier.POPULAR
    if query.user_id and not history.events:
        parts.users.forget(serving.release_id, query.user_id)  # a deletion, or a history that has expired
    elif user is not None and query.user_id and _is_settled(history, query):
        parts.users.remember_user(serving.release_id, query.user_id, user)
    return user, Tier.FULL


def _is_current(user: KnownUser, query: RecommendQuery, settings: ServerSettings) -> bool:
    """Whether an embedding is good for the query if the history is still the same. Later pages need that of the first."""
    if query.offset > 0:
        return user.as_of_ms == query.now_ms
    return 0 <= query.now_ms - user.as_of_ms <= settings.embedding_age_s * 1000


def _is_settled(history: History, query: RecommendQuery) -> bool:
    """Whether nothing in the history is later than the query: time alone does not change it then."""
    return not history.events or history.events[-1].time_ms <= query.now_ms


async def _history(
    parts: Parts, settings: ServerSettings, query: RecommendQuery, remembered: KnownUser | None, deadline: Deadline
) -> History | None:
    """The stored history of a user, or what an anonymous visitor brings; None if the remembered user's has not changed."""
    if query.user_id is None:
        return History(query.recent_events)
    user_id, version = query.user_id, remembered.history_version if remembered else None

    def read(timeout_s: float) -> Awaitable[History | None]:
        return in_time(parts.histories.read_newer(user_id, version), timeout_s)

    return await parts.ask("history", settings.history_timeout_s, deadline, read)


async def _embed(
    serving: Serving,
    parts: Parts,
    history: History,
    settings: ServerSettings,
    query: RecommendQuery,
    deadline: Deadline,
) -> KnownUser | None:
    """None for a user of whom nothing is known: there is nothing to embed."""
    signature = serving.release.signature
    inputs = summarise([history.events], query.now_ms, serving.items.index, signature)
    known_S = inputs.item_BS[0][inputs.item_BS[0] >= 0].astype(np.int64)
    if not len(known_S):
        return None
    arrays = triton_inputs(inputs, serving.items.codes_NL, signature)
    outputs = await parts.ask(
        "encode",
        settings.encode_timeout_s,
        deadline,
        lambda timeout_s: serving.inference.infer("user_encoder", arrays, timeout_s),
    )
    return KnownUser(
        history.version,
        query.now_ms,
        outputs["user_embedding"][0],
        known_S,
        outputs["repeat_score"][0, : len(known_S)],
        serving.items.indexes(purchased_items(history)),
        arrays if signature.rescored_share > 0 else None,
    )


async def _candidates(
    serving: Serving,
    parts: Parts,
    user: KnownUser,
    settings: ServerSettings,
    query: RecommendQuery,
    deadline: Deadline,
) -> tuple[Scored, Tier]:
    """Items worth ranking, with exact scores. A caller's own set is ranked as it is, without search."""
    if query.candidate_item_ids:
        asked = serving.items.indexes(query.candidate_item_ids)
        return _scored(serving, user, query.rules, {Source.CANDIDATE: asked}), Tier.FULL
    known_I = NOTHING if query.rules.exclude_purchased else user.known_S
    found_I, tier = await _found(serving, parts, user, len(known_I), settings, query, deadline)
    return _scored(serving, user, query.rules, {Source.HISTORY: known_I, Source.RETRIEVAL: found_I}), tier


async def _found(
    serving: Serving,
    parts: Parts,
    user: KnownUser,
    num_known: int,
    settings: ServerSettings,
    query: RecommendQuery,
    deadline: Deadline,
) -> tuple[Int64, Tier]:
    """The nearest items, or those that were found for the user before."""
    items, rules = serving.items, query.rules
    # Enough for the page to be exact wherever the repeat scores put what is known, and for the generative head to be asked of
    # the same items on every page.
    needed = min(query.list_size, settings.max_list)
    rescored = serving.release.signature.rescored_share > 0 and _may_be_rescored(query)
    pool = NUM_CANDIDATES if rescored or query.is_arranged else 0
    limit = max(query.choices.num_retrieved or settings.num_retrieved, pool, needed) + num_known
    embedding_V = user.embedding_qV[_query(rules)]
    few_I = _few(serving, rules, settings)
    found: Int64 | None = None
    if few_I is None:
        excluded = set(rules.exclude_item_ids)
        if rules.exclude_purchased:
            excluded.update(items.items[index].item_id for index in user.purchased_I.tolist())
        expression = filters.expression(rules.filters, sorted(excluded))
        if filters.is_searchable(rules.filters, expression):
            try:
                hits = await parts.ask(
                    "search",
                    settings.search_timeout_s,
                    deadline,
                    lambda timeout_s: serving.index.search_items(embedding_V, limit, expression, timeout_s),
                )
            except RefusedError as error:  # the request's doing, and no sign that Milvus is away
                log.warning("searching here what milvus refuses error=%s", error)
            except FAILURES:
                before = parts.users.found(serving.release_id, query.user_id) if query.user_id else None
                return (NOTHING, Tier.POPULAR) if before is None else (before, Tier.CACHED_LIST)
            else:
                found = items.indexes(hits.item_ids)
    if found is None:
        asked_I = np.flatnonzero(items.allowed(rules.filters)) if few_I is None else few_I
        left_I = asked_I[allowed(serving, asked_I, rules, user.purchased_I)]
        found, _ = await nearest(items.item_vectors, left_I, embedding_V, limit)
    if query.user_id:
        parts.users.remember_found(serving.release_id, query.user_id, found)
    return found, Tier.FULL


def _few(serving: Serving, rules: Rules, settings: ServerSettings) -> Int64 | None:
    """What the filters let through, if that is less than half of the catalogue and not too much to be ranked here: there the
    graph of the vector index misses items, every other one in the worst case (ADR 14)."""
    if not rules.filters:
        return None
    allowed_N = serving.items.allowed(rules.filters)
    count = int(np.count_nonzero(allowed_N))
    if count > settings.exact_items or 2 * count > len(allowed_N):
        return None
    return np.flatnonzero(allowed_N)


def _may_be_rescored(query: RecommendQuery) -> bool:
    return not query.rules.exclude_purchased and query.choices.rescored is not False


def _listed(serving: Serving, user: KnownUser | None, query: RecommendQuery) -> Scored:
    """An experiment's control in its order, as far as the rules allow it; nothing where that is popular items, which follow."""
    if isinstance(query.choices.listed, str):
        return Scored(NOTHING, np.zeros(0, np.float32), NOTHING)
    asked_I = serving.items.indexes(query.choices.listed)
    purchased_I = user.purchased_I if user else NOTHING
    index_I = asked_I[allowed(serving, asked_I, query.rules, purchased_I)]
    score_I = -np.arange(len(index_I), dtype=np.float32)
    return Scored(index_I, score_I, np.full(len(index_I), 1 << Source.CANDIDATE))


def _query(rules: Rules) -> int:
    return NOVEL if rules.exclude_purchased else EVERYTHING


def _scored(serving: Serving, user: KnownUser, rules: Rules, proposed: Mapping[Source, Int64]) -> Scored:
    """Every proposed item once, with its score and who proposed it."""
    everything = np.concatenate(list(proposed.values()))
    index_I, place = np.unique(everything, return_inverse=True)
    source_I = np.zeros(len(index_I), np.int64)
    np.bitwise_or.at(
        source_I, place, np.repeat([1 << source for source in proposed], [len(x) for x in proposed.values()])
    )
    score_I = serving.items.item_vectors(index_I) @ user.embedding_qV[_query(rules)]
    if not rules.exclude_purchased and len(index_I):
        slot_S = np.searchsorted(index_I, user.known_S).clip(max=len(index_I) - 1)
        scored_S = index_I[slot_S] == user.known_S
        score_I[slot_S[scored_S]] += user.repeat_S[scored_S]
    return Scored(index_I, score_I, source_I)


def _ranked(serving: Serving, user: KnownUser, scored: Scored, rules: Rules) -> Scored:
    """What the rules allow, best first."""
    return _best_first(serving, scored.take(allowed(serving, scored.index_I, rules, user.purchased_I)))


def _best_first(serving: Serving, scored: Scored) -> Scored:
    """Equal scores in an order that is the same on every page and favours no id."""
    return scored.take(np.lexsort((serving.items.tie_break(scored.index_I), -scored.score_I)))


async def _rescored(
    serving: Serving,
    parts: Parts,
    user: KnownUser,
    ranked: Scored,
    settings: ServerSettings,
    query: RecommendQuery,
    deadline: Deadline,
) -> tuple[Scored, Tier]:
    """The first NUM_CANDIDATES ordered anew with the release's share of the generative head; the others follow as they were.
    A list whose first page did without goes on without."""
    share = serving.release.signature.rescored_share
    if share == 0 or user.inputs is None:
        return ranked, Tier.FULL
    if not query.rescored:
        return ranked, Tier.RETRIEVAL_ORDER
    first, rest = ranked.take(slice(NUM_CANDIDATES)), ranked.take(slice(NUM_CANDIDATES, None))
    codes_NL = serving.items.codes_NL
    codes_CL = np.full((NUM_CANDIDATES, codes_NL.shape[1]), -1, np.int32)
    codes_CL[: len(first.index_I)] = codes_NL[first.index_I]
    asked = {**user.inputs, "candidate_codes": codes_CL[np.newaxis]}
    try:
        outputs = await parts.ask(
            "score",
            settings.score_timeout_s,
            deadline,
            lambda timeout_s: serving.inference.infer("scorer", asked, timeout_s),
        )
    except FAILURES:
        return ranked, Tier.RETRIEVAL_ORDER
    generative_I = outputs["candidate_log_likelihood"][0, : len(first.index_I)]
    mixed = replace(first, score_I=((1 - share) * first.score_I + share * generative_I).astype(np.float32))
    drop = first.score_I[-1] - mixed.score_I.min()
    best = _best_first(serving, mixed)
    return (
        Scored(
            np.r_[best.index_I, rest.index_I],
            np.r_[best.score_I, rest.score_I - drop],
            np.r_[best.source_I, rest.source_I],
        ),
        Tier.FULL,
    )


def _arranged(serving: Serving, ranked: Scored, query: RecommendQuery) -> Scored:
    """The first NUM_CANDIDATES ordered anew by diversity, then by caps; the others follow as they were."""
    if not query.is_arranged:
        return ranked
    items, first = serving.items, np.arange(min(NUM_CANDIDATES, len(ranked.index_I)))
    if query.diversity > 0:
        vectors_IC = items.content_vectors(ranked.index_I[first])
        first = first[diverse(ranked.score_I[first], vectors_IC, query.diversity)]
    if query.caps and len(first):
        asked = [items.items[index] for index in ranked.index_I[first].tolist()]
        values = [
            [item.category if cap.attribute == "category" else item.attributes.get(cap.attribute) for item in asked]
            for cap in query.caps
        ]
        first = first[dealt(values, [cap.max_items for cap in query.caps])]
    return ranked.take(np.r_[first, np.arange(len(first), len(ranked.index_I))])


def _items(serving: Serving, scored: Scored) -> list[RankedItem]:
    """As they are returned."""
    rows = zip(scored.index_I.tolist(), scored.score_I.tolist(), scored.source_I.tolist(), strict=True)
    return [RankedItem(serving.items.items[index].item_id, score, SOURCES[bits]) for index, score, bits in rows]
