"""`GenerateTopItems`: histories → beam search in one engine. Filters and exclusions act inside the search, as a mask over
trie nodes; one user that fails does not fail the batch.
"""

# B = users of a batch, V = trie nodes

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from baguni.history import History
from baguni.inference import summarise, triton_inputs
from baguni.semantic_ids import Trie
from server.active_release import Serving
from server.deadline import Deadline
from server.parts import FAILURES, Parts, in_time
from server.popular import Popular, popular_items
from server.queries import GenerateQuery, RankedItem, Rules, Source, UserRanking
from server.rules import purchased_items


async def generate_top_items(
    serving: Serving, parts: Parts, query: GenerateQuery, deadline: Deadline
) -> list[UserRanking]:
    """One list per user of the query, in its order."""
    try:
        stored = await parts.ask(
            "history",
            deadline.remaining_s(),
            deadline,
            lambda timeout_s: in_time(parts.histories.read(query.user_ids), timeout_s),
        )
    except FAILURES as error:
        return [UserRanking(error=str(error)) for _ in query.user_ids]
    rankings: list[UserRanking] = []
    size = serving.release.signature.max_batch_size
    for start in range(0, len(stored), size):
        batch = [history.as_of(query.now_ms) for history in stored[start : start + size]]
        rankings += await _generate(serving, parts, batch, query, deadline)
    return rankings


async def _generate(
    serving: Serving, parts: Parts, histories: Sequence[History], query: GenerateQuery, deadline: Deadline
) -> list[UserRanking]:
    signature = serving.release.signature
    events = [history.events for history in histories]
    inputs = summarise(events, query.now_ms, serving.items.index, signature)
    known_B = inputs.item_BS[:, 0] >= 0
    arrays = triton_inputs(inputs, serving.items.codes_NL, signature)
    arrays["node_mask"] = await _node_masks(serving, histories, query.rules)
    try:
        outputs = await parts.ask(
            "generate",
            deadline.remaining_s(),
            deadline,
            lambda timeout_s: serving.inference.infer("generator", arrays, timeout_s),
        )
    except FAILURES as error:
        return [UserRanking(error=str(error)) for _ in histories]
    rows = zip(known_B.tolist(), histories, outputs["generated_item"], outputs["log_likelihood"], strict=True)
    return [
        _ranking(serving, items, scores, query.k) if known else _cold_start(serving, history, query)
        for known, history, items, scores in rows
    ]


async def _node_masks(serving: Serving, histories: Sequence[History], rules: Rules) -> NDArray[np.bool_]:
    """[B, V] which nodes have an item below them that the user may be given; one column of ones where that is every item.
    Masks of a request's own are made beside the event loop: a million items take milliseconds each."""
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
    """A node mask for each set of excluded items."""
    masks = []
    for item_I in excluded:
        own_N = allowed_N.copy()
        own_N[item_I[item_I < len(own_N)]] = False
        masks.append(trie.node_mask(own_N))
    return np.stack(masks)


def _ranking(serving: Serving, items: NDArray[np.int32], scores: NDArray[np.float32], k: int) -> UserRanking:
    real = [(index, score) for index, score in zip(items.tolist(), scores.tolist(), strict=True) if index >= 0]
    table = serving.items.items
    return UserRanking([RankedItem(table[i].item_id, score, (Source.GENERATIVE,)) for i, score in real[:k]])


def _cold_start(serving: Serving, history: History, query: GenerateQuery) -> UserRanking:
    items, purchased_I = serving.items, serving.items.indexes(purchased_items(history))
    return UserRanking(popular_items(serving, query.rules, purchased_I, Popular(items).all(), query.k), cold=True)
