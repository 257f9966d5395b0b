"""`Recommend`, top to bottom: history → embedding → candidates → rules → the generative head's opinion → page.

Candidates are the nearest items in the collaborative space and what the user already knows, under one scoring function:
score(user, item) = u · v + what the item gains because the user knows it. Where everything counts, a release may give the
generative head's log-likelihood a share in the order of the best of them.
"""

# S = tokens of the history, I = items scored, V = vector dim

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from baguni import filters
from baguni.errors import UnavailableError
from baguni.history import Action, History
from baguni.history_store import HistoryReader
from baguni.inference import Arrays, triton_inputs
from baguni.sequences import ModelInputs, event_batch, model_inputs
from baguni.signature import EVERYTHING, NOVEL, NUM_CANDIDATES
from server.active_release import Serving
from server.deadline import Deadline, DeadlineExceeded
from server.queries import RankedItem, Ranking, RecommendQuery, Rules, Source, Tier
from server.settings import ServerSettings


@dataclass(frozen=True)
class Embedded:
    """The user as the retrieval head sees them: embedding_V, and the repeat score of each item they know, by index; and the
    models' inputs it was made of."""

    embedding_V: NDArray[np.float32]
    repeat_score: Mapping[int, float]
    inputs: Arrays


Scored = dict[int, tuple[float, set[Source]]]
"""Item index → score and sources."""


async def recommend(
    serving: Serving, histories: HistoryReader, settings: ServerSettings, query: RecommendQuery, deadline: Deadline
) -> Ranking:
    """One page of a list. A part that does not answer makes the list worse and marks it, and nothing else."""
    tier = Tier.FULL
    scored: Scored = {}
    history, embedded = History(), None
    purchased: frozenset[str] = frozenset()
    try:
        history = await _history(histories, settings, query, deadline)
        purchased = purchased_items(history) if query.rules.exclude_purchased else frozenset()
        embedded = await _embed(serving, history, settings, query, deadline)
        if embedded is not None:
            scored, tier = await _candidates(serving, embedded, purchased, settings, query, deadline)
    except (UnavailableError, DeadlineExceeded):
        tier = Tier.POPULAR
    ranked = _ranked(serving, scored, query, purchased)
    if tier is Tier.FULL and embedded is not None and ranked and not query.rules.exclude_purchased:
        ranked, tier = await _rescored(serving, embedded, ranked, settings, query, deadline)
    longest = max(settings.max_list, len(query.candidate_item_ids))
    ranked += _popular(serving, query, purchased, {item.item_id for item in ranked}, longest - len(ranked))
    page = ranked[query.offset : query.offset + query.page_size]
    has_more = len(ranked) > query.offset + query.page_size
    return Ranking(page, tier, has_more, history.version)


async def _history(
    histories: HistoryReader, settings: ServerSettings, query: RecommendQuery, deadline: Deadline
) -> History:
    """The stored history of a user, or what an anonymous visitor brings; only what had happened by the query's now."""
    if query.user_id is None:
        history = History(query.recent_events)
    else:
        history = (await read_histories(histories, [query.user_id], deadline.limit(settings.history_timeout_s)))[0]
    return as_of(history, query.now_ms)


async def read_histories(histories: HistoryReader, user_ids: Sequence[str], timeout_s: float) -> list[History]:
    """Stored histories, or UnavailableError when they do not come in time."""
    try:
        async with asyncio.timeout(timeout_s):
            return await histories.read(user_ids)
    except TimeoutError as error:
        raise UnavailableError("redis", f"no history within {timeout_s:.3f} s") from error


def as_of(history: History, now_ms: int) -> History:
    """The history up to a moment: what keeps the pages of one list on one history."""
    if not history.events or history.events[-1].time_ms <= now_ms:
        return history
    return History(tuple(event for event in history.events if event.time_ms <= now_ms), history.version)


def summarise(serving: Serving, histories: Sequence[History], now_ms: int) -> ModelInputs:
    """Model inputs of some histories, one row each."""
    signature = serving.release.signature
    events = event_batch([history.events for history in histories], serving.items.index)
    now = np.full(len(histories), now_ms, np.int64)
    return model_inputs(events, now, signature.max_tokens, signature.store_timezone)


async def _embed(
    serving: Serving, history: History, settings: ServerSettings, query: RecommendQuery, deadline: Deadline
) -> Embedded | None:
    """None for a user of whom nothing is known: there is nothing to embed."""
    inputs = summarise(serving, [history], query.now_ms)
    item_S = inputs.item_BS[0]
    if item_S[0] < 0:
        return None
    arrays = triton_inputs(inputs, serving.items.codes_NL, serving.release.signature)
    outputs = await serving.inference.infer("user_encoder", arrays, deadline.limit(settings.encode_timeout_s))
    if query.rules.exclude_purchased:
        return Embedded(outputs["user_embedding"][0, NOVEL], {}, arrays)
    known_S = item_S[item_S >= 0]  # tokens come first, padding after them
    repeat = dict(zip(known_S.tolist(), outputs["repeat_score"][0, : len(known_S)].tolist(), strict=True))
    return Embedded(outputs["user_embedding"][0, EVERYTHING], repeat, arrays)


async def _candidates(
    serving: Serving,
    embedded: Embedded,
    purchased: frozenset[str],
    settings: ServerSettings,
    query: RecommendQuery,
    deadline: Deadline,
) -> tuple[Scored, Tier]:
    """Items worth ranking, with exact scores. A caller's own set is ranked as it is, without search."""
    if query.candidate_item_ids:
        asked = serving.items.indexes(query.candidate_item_ids)
        return _score(serving, embedded, asked, Source.CANDIDATE), Tier.FULL
    scored = _score(serving, embedded, np.fromiter(embedded.repeat_score, np.int64), Source.HISTORY)
    excluded = sorted(query.rules.exclude_item_ids | purchased)
    expression = filters.expression(query.rules.filters, excluded)
    # Enough for the first NUM_CANDIDATES to be the same on every page, wherever the repeat scores put what is known.
    first = NUM_CANDIDATES + len(embedded.repeat_score)
    limit = max(settings.num_retrieved, first, min(query.offset + query.page_size + 1, settings.max_list))
    try:
        timeout_s = deadline.limit(settings.search_timeout_s)
        hits = await serving.index.search_items(embedded.embedding_V, limit, expression, timeout_s)
    except (UnavailableError, DeadlineExceeded):
        return scored, Tier.POPULAR
    found = serving.items.indexes(hit.item_id for hit in hits)
    for index, (score, sources) in _score(serving, embedded, found, Source.RETRIEVAL).items():
        scored[index] = (score, sources | scored[index][1] if index in scored else sources)
    return scored, Tier.FULL


def _score(serving: Serving, embedded: Embedded, index_I: NDArray[np.int64], source: Source) -> Scored:
    if not len(index_I):
        return {}
    scores = serving.items.item_vectors(index_I) @ embedded.embedding_V
    return {
        index: (score + embedded.repeat_score.get(index, 0.0), {source})
        for index, score in zip(index_I.tolist(), scores.tolist(), strict=True)
    }


def _ranked(serving: Serving, scored: Scored, query: RecommendQuery, purchased: frozenset[str]) -> list[RankedItem]:
    """What the rules allow, best first; equal scores in an order that is the same on every page and favours no id."""
    items = serving.items
    allowed = [
        RankedItem(items.items[index].item_id, score, tuple(sorted(sources)))
        for index, (score, sources) in scored.items()
        if may_return(serving, index, query.rules, purchased)
    ]
    return _best_first(allowed)


def _best_first(items: list[RankedItem]) -> list[RankedItem]:
    return sorted(items, key=lambda item: (-item.score, crc32(item.item_id.encode())))


async def _rescored(
    serving: Serving,
    embedded: Embedded,
    ranked: list[RankedItem],
    settings: ServerSettings,
    query: RecommendQuery,
    deadline: Deadline,
) -> tuple[list[RankedItem], Tier]:
    """The first NUM_CANDIDATES ordered anew with the release's share of the generative head; the others follow as they were.
    A list whose first page did without goes on without."""
    share = serving.release.signature.rescored_share
    if share == 0:
        return ranked, Tier.FULL
    if not query.rescored:
        return ranked, Tier.RETRIEVAL_ORDER
    first, rest = ranked[:NUM_CANDIDATES], ranked[NUM_CANDIDATES:]
    codes_NL = serving.items.codes_NL
    codes_CL = np.full((NUM_CANDIDATES, codes_NL.shape[1]), -1, np.int32)
    codes_CL[: len(first)] = codes_NL[serving.items.indexes(item.item_id for item in first)]
    try:
        timeout_s = deadline.limit(settings.score_timeout_s)
        outputs = await serving.inference.infer(
            "scorer", {**embedded.inputs, "candidate_codes": codes_CL[np.newaxis]}, timeout_s
        )
    except (UnavailableError, DeadlineExceeded):
        return ranked, Tier.RETRIEVAL_ORDER
    generative_C = outputs["candidate_log_likelihood"][0, : len(first)].tolist()
    mixed = [
        replace(item, score=(1 - share) * item.score + share * generative)
        for item, generative in zip(first, generative_C, strict=True)
    ]
    drop = first[-1].score - min(item.score for item in mixed)
    return _best_first(mixed) + [replace(item, score=item.score - drop) for item in rest], Tier.FULL


def _popular(
    serving: Serving, query: RecommendQuery, purchased: frozenset[str], already: set[str], limit: int
) -> list[RankedItem]:
    """Popular items for the places that nothing personal fills: all of them, for a user without history. Of a caller's own
    set, these only."""
    lists: list[RankedItem] = []
    by_popularity = (
        serving.items.popular(query.candidate_item_ids) if query.candidate_item_ids else serving.items.popular()
    )
    for index in by_popularity.tolist():
        if len(lists) >= min(limit, query.offset + query.page_size + 1):
            break
        item_id = serving.items.items[index].item_id
        if item_id not in already and may_return(serving, index, query.rules, purchased):
            # Below every personal score, in the order of popularity.
            lists.append(RankedItem(item_id, -1e6 + serving.items.popularity(index), (Source.POPULAR,)))
    return lists


def may_return(serving: Serving, index: int, rules: Rules, purchased: frozenset[str]) -> bool:
    """Whether the rules let an item through."""
    item_id = serving.items.items[index].item_id
    return (
        item_id not in rules.exclude_item_ids
        and item_id not in purchased
        and serving.items.is_allowed(index, rules.filters)
    )


def purchased_items(history: History) -> frozenset[str]:
    """Ids of everything the user ordered."""
    return frozenset(event.item_id for event in history.events if event.action is Action.ORDERED)
