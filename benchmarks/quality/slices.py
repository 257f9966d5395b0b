"""Where the lists are good and where not: users with short histories, items nobody has bought, sizes of baskets; and whether
the Semantic IDs are healthy. Knows lists and tables, no models."""

# Q = queries, B = users of a slice, N = items, L = levels of a Semantic ID, H = held-out items, T = text dim

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baguni.domain.catalog import CATEGORY_SEPARATOR, Catalog
from baguni.domain.semantic_ids import SemanticIdTable
from benchmarks.quality.measure import Estimate, Float64, Int64, estimate
from trainer.data.queries import OrderQueries, Purchases
from trainer.metrics import top_k
from trainer.peers import decayed

Float32 = NDArray[np.float32]
HISTORY_BUCKETS = ((0, 4), (5, 9), (10, 19), (20, 49), (50, 99), (100, None))
BASKET_BUCKETS = ((1, 2), (3, 5), (6, 10), (11, 20), (21, None))
SMALLEST_BUCKET = 30
NEIGHBOUR_DAYS, NEIGHBOUR_SHARPNESS = 90.0, 15.0
COLD_SHARE = 0.05


def bucket_name(low: int, high: int | None) -> str:
    """ "5–9", "100+"."""
    return f"{low}+" if high is None else f"{low}–{high}"


def in_bucket(size_Q: Int64, low: int, high: int | None) -> NDArray[np.bool_]:
    """Return [Q], whether a size is in a bucket; `high` None = no upper end."""
    return (size_Q >= low) & (size_Q <= (size_Q.max(initial=0) if high is None else high))


def by_bucket(
    value_by_seed: Sequence[Float64],
    user_Q: Int64,
    size_Q: Int64,
    buckets: Sequence[tuple[int, int | None]],
) -> dict[str, tuple[int, Estimate]]:
    """Number of orders and mean of each bucket of sizes; buckets of fewer than 30 orders are left out."""
    found = {}
    for low, high in buckets:
        inside = in_bucket(size_Q, low, high)
        if inside.sum() >= SMALLEST_BUCKET:
            values = [value[inside] for value in value_by_seed]
            found[bucket_name(low, high)] = (int(inside.sum()), estimate(values, user_Q[inside]))
    return found


def cold_users(queries: OrderQueries, num_orders: int) -> OrderQueries:
    """Each user's first order of the window, after no more than their newest `num_orders` orders: the rest of the history
    is taken out of the data set, so that no model can read it. What was bought there counts as never bought."""
    dataset, orders = queries.dataset, queries.dataset.orders()
    first = queries.order_Q[queries.first_Q]
    user = orders.user_O[first]
    oldest_kept = np.maximum(first - num_orders, np.searchsorted(orders.user_O, user))
    since_U = np.full(len(dataset.user_ids), np.iinfo(np.int64).max)
    since_U[user] = orders.time_O[oldest_kept]
    keep = dataset.time_E >= since_U[dataset.user_E]
    columns = ("user_E", "item_E", "action_E", "order_E", "time_E")
    cold = replace(dataset, **{name: getattr(dataset, name)[keep] for name in columns})
    later = OrderQueries.of(cold, queries.start_ms, min_orders=0)
    return later.at(np.flatnonzero(np.isin(cold.orders().number_O[later.order_Q], orders.number_O[first])))


def held_out_items(num_items: int, frequency_N: Float64, seed: int) -> Int64:
    """A random 5 % of the items that were ordered before the test month, ascending."""
    ordered = np.flatnonzero(frequency_N > 0)
    count = max(1, round(COLD_SHARE * num_items))
    return np.sort(np.random.default_rng([seed, 5]).choice(ordered, min(count, len(ordered)), replace=False))


def cold_item_queries(queries: OrderQueries, held_out: Int64) -> Int64:
    """Each user's first query with a held-out item in it: no history of these has one from the same month."""
    with_cold = np.unique(queries.true_row_P[np.isin(queries.true_item_P, held_out)])
    return with_cold[np.unique(queries.user_Q[with_cold], return_index=True)[1]]


def cold_item_recall(top_Qk: Int64, queries: OrderQueries, query: Int64, held_out: Int64) -> Float64:
    """Of each query's true held-out items, the share that its list of held-out items names."""
    row, item = _cold_lines(queries, query, held_out)
    width = len(queries.dataset.catalog.items)
    listed = np.where(top_Qk >= 0, np.arange(len(query))[:, None] * width + top_Qk, -1)
    hit = np.isin(row * width + item, listed)
    return np.asarray(np.bincount(row, weights=hit, minlength=len(query)) / np.bincount(row, minlength=len(query)))


def category_popularity_lists(
    catalog: Catalog, held_out: Int64, frequency_N: Float64, num_queries: int, k: int
) -> Int64:
    """Held-out items by the orders of their category's other items, equal ones in random order, for every query alike."""
    category_N = np.unique(catalog.categories, return_inverse=True)[1]
    known = frequency_N.copy()
    known[held_out] = 0
    score_H = np.bincount(category_N, weights=known)[category_N[held_out]]
    rng = np.random.default_rng(0)
    rows = [held_out[np.lexsort((rng.random(len(held_out)), -score_H))[:k]] for _ in range(num_queries)]
    top = np.full((num_queries, k), -1, np.int64)
    top[:, : min(k, len(held_out))] = rows
    return top


def text_neighbour_lists(bought: Purchases, text_NT: Float32, held_out: Int64, k: int) -> Int64:
    """Held-out items by their texts' likeness to what each user bought: the sum over these items of their decayed log counts,
    times exp(NEIGHBOUR_SHARPNESS · cosine). Nothing is trained. `bought`: held-out items in it do not count; `text_NT`: text
    embeddings of any length."""
    known = np.where(np.isin(bought.item_P, held_out), 0.0, decayed(bought.age_days_P, NEIGHBOUR_DAYS))
    text_NT = text_NT / np.linalg.norm(text_NT, axis=1, keepdims=True).clip(min=1e-12)
    near_NH = np.exp(NEIGHBOUR_SHARPNESS * (text_NT @ text_NT[held_out].T))
    score_BH = np.asarray(bought.matrix(known).log1p() @ near_NH, np.float64)
    place_Bk = top_k(score_BH, min(k, len(held_out)), np.random.default_rng(0))
    top = np.full((len(bought), k), -1, np.int64)
    top[:, : place_Bk.shape[1]] = held_out[place_Bk]
    return top


def semantic_id_health(table: SemanticIdTable, catalog: Catalog) -> dict[str, Any]:
    """Use of each codebook, collisions of the codes without their suffix, and how well the first code tells categories."""
    codes = table.codes_NL[:, :-1]
    _, size = np.unique(codes, axis=0, return_counts=True)
    levels = zip(codes.T, table.codebook_sizes[:-1], strict=True)
    health = {
        "usage per level": [len(np.unique(column)) / codebook for column, codebook in levels],
        "items that share their codes": float(size[size > 1].sum() / len(table)),
        "items that need a suffix": float((size - 1).sum() / len(table)),
        "largest collision": int(size.max()),
    }
    for depth in (1, 2):
        names = np.asarray([CATEGORY_SEPARATOR.join(item.category_path[:depth]) for item in catalog.items])
        purity, largest = _purity(codes[:, 0], np.unique(names, return_inverse=True)[1])
        health[f"purity of the first code, {_ORDINAL[depth]} category level"] = purity
        health[f"largest category, {_ORDINAL[depth]} category level"] = largest
    return health


_ORDINAL = {1: "first", 2: "second"}


def _purity(code_N: NDArray[np.integer], category_N: Int64) -> tuple[float, float]:
    """Share of items in the commonest category of their code, and in the commonest category of all."""
    pairs, count = np.unique(np.c_[code_N, category_N], axis=0, return_counts=True)
    best = np.zeros(int(code_N.max()) + 1, np.int64)
    np.maximum.at(best, pairs[:, 0], count)
    return float(best.sum() / len(code_N)), float(np.bincount(category_N).max() / len(code_N))


def _cold_lines(queries: OrderQueries, query: Int64, held_out: Int64) -> tuple[Int64, Int64]:
    wanted = np.isin(queries.true_item_P, held_out) & np.isin(queries.true_row_P, query)
    return np.searchsorted(query, queries.true_row_P[wanted]), queries.true_item_P[wanted]
