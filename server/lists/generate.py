"""`GenerateTopItems`: histories, then beam search in one model. Rules act inside the search, as a mask over trie nodes. One
user that fails does not fail the batch.
"""

# B = users of a batch, V = trie nodes

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from baguni.clients.inference import summarise, triton_inputs
from baguni.domain.history import History
from baguni.domain.semantic_ids import Trie
from server.lists.calls import FAILURES, ListRequest, in_time
from server.lists.popular import Popular, popular_items
from server.lists.queries import GenerateQuery, RankedItem, Rules, Source, UserRanking
from server.lists.rules import purchased_items
from server.release.active_release import Serving
from server.release.items import ItemTable

Request = ListRequest[GenerateQuery]


async def generate_top_items(request: Request) -> list[UserRanking]:
    """Return one list for each user of the query, in its order."""
    query, calls = request.query, request.calls
    try:
        stored = await request.ask("history", lambda limit_s: in_time(calls.histories.read(query.user_ids), limit_s))
    except FAILURES as error:
        return [UserRanking(error=str(error)) for _ in query.user_ids]
    rankings: list[UserRanking] = []
    size = request.serving.release.signature.max_batch_size
    for start in range(0, len(stored), size):
        batch = [history.as_of(query.now_ms) for history in stored[start : start + size]]
        rankings += await _generate(request, batch)
    return rankings


async def _generate(request: Request, histories: Sequence[History]) -> list[UserRanking]:
    """Return the lists of one batch of the generator."""
    query, serving = request.query, request.serving
    signature = serving.release.signature
    events = [history.events for history in histories]
    inputs = summarise(events, query.now_ms, serving.items.index, signature)
    known_B = inputs.item_BS[:, 0] >= 0
    arrays = triton_inputs(inputs, serving.items.codes_NL, signature)
    arrays["node_mask"] = await _node_masks(serving, histories, query.rules)
    try:
        outputs = await request.ask("generate", lambda limit_s: serving.inference.infer("generator", arrays, limit_s))
    except FAILURES as error:
        return [UserRanking(error=str(error)) for _ in histories]
    rows = zip(known_B.tolist(), histories, outputs["generated_item"], outputs["log_likelihood"], strict=True)
    return [
        _ranking(serving.items, items, scores, query.k) if known else _cold_start(serving.items, history, query)
        for known, history, items, scores in rows
    ]


async def _node_masks(serving: Serving, histories: Sequence[History], rules: Rules) -> NDArray[np.bool_]:
    """Return [B, V], whether each trie node has a permitted item below it; [B, 1] of ones if every item is permitted. A mask of
    one request is made in a thread: a million items take milliseconds."""
    table = serving.items
    if not rules.exclude_item_ids and not rules.exclude_purchased:
        return np.tile(table.node_mask(rules.filters), (len(histories), 1))
    allowed = table.allowed(rules.filters)[: table.num_trained]
    if rules.exclude_purchased:
        excluded = [table.indexes(rules.exclude_item_ids | purchased_items(history)) for history in histories]
    else:
        excluded = [table.indexes(rules.exclude_item_ids)]
    masks = await asyncio.to_thread(_masks_without, serving.release.semantic_ids.trie, allowed, excluded)
    return masks if rules.exclude_purchased else np.tile(masks, (len(histories), 1))


def _masks_without(
    trie: Trie, allowed_N: NDArray[np.bool_], excluded: Sequence[NDArray[np.int64]]
) -> NDArray[np.bool_]:
    """Return [B, V], a node mask for each set of excluded items."""
    masks = []
    for item_I in excluded:
        own_N = allowed_N.copy()
        own_N[item_I[item_I < len(own_N)]] = False
        masks.append(trie.node_mask(own_N))
    return np.stack(masks)


def _ranking(table: ItemTable, items: NDArray[np.int32], scores: NDArray[np.float32], k: int) -> UserRanking:
    real = [(index, score) for index, score in zip(items.tolist(), scores.tolist(), strict=True) if index >= 0]
    return UserRanking([RankedItem(table.items[i].item_id, score, (Source.GENERATIVE,)) for i, score in real[:k]])


def _cold_start(table: ItemTable, history: History, query: GenerateQuery) -> UserRanking:
    purchased_I = table.indexes(purchased_items(history))
    return UserRanking(popular_items(table, query.rules, purchased_I, Popular(table).all(), query.k), cold=True)
