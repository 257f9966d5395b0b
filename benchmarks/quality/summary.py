"""All that is derived from the lists of one data set, as plain values: the report is rendered from this alone.

settings     what is reported: both, or only "novel" where nobody has an item twice
facts        the data set and its test month
contenders   {name: {family, description, seeds, recipe, training_s, …}}
metrics      {name: {mode: {setting: {"NDCG@10": {mean, low, high, spread, seeds}}}}}
breadth      {name: {setting: {coverage, popularity lift, Gini}}}
best_peer    {setting: name}: the peer with the best NDCG@10, rolling; best_head: the same of our heads, in the first setting
comparisons  [{first, second, mode, setting, metric, difference, low, high, base, relative}], paired
slices       {"orders before" | "items in the order": {name: {bucket: {orders, mean, low, high}}}}: NDCG@10, first setting
baskets      what is served against the best peer: {first, second, setting, by_size: {bucket: {orders, difference, low, high,
             base, relative}}, by_items: the same of all orders, each counted as its number of items}; NDCG@10, rolling
discounts    [{discount, setting: {NDCG@10, coverage, popularity lift, Gini}}]: C with less of what is popular, one seed
cold_users   {name: {"0" | "1" | "3" | "whole": {setting: {metric: {mean, low, high}}}}}, each user's first order
cold_items   recall@10 of held-out items: {held_out, orders, model, category, neighbours, random, over_category,
             over_neighbours}
health       of the Semantic IDs
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from baguni.domain.semantic_ids import SemanticIdTable
from benchmarks.quality.measure import Truth
from benchmarks.quality.measured import OURS, Measured
from benchmarks.quality.shop import Shop
from benchmarks.quality.slices import semantic_id_health


def summarise(shop: Shop, ks: Sequence[int], table: SemanticIdTable | None) -> dict[str, Any]:
    """Everything, from the lists that are there."""
    measured = Measured(shop, shop.store.records(), ks)
    best_peer = {setting: measured.best(measured.family("peer"), setting) for setting in shop.settings}
    shown = [name for name in dict.fromkeys((*best_peer.values(), *OURS)) if name in measured.records]
    names = list(measured.records)
    return {
        "dataset": shop.name,
        "ks": list(ks),
        "settings": list(shop.settings),
        "facts": facts(shop, measured.truth),
        "contenders": measured.contenders(),
        "metrics": {name: measured.metrics(name) for name in names},
        "breadth": {name: measured.breadth(name) for name in names},
        "best_peer": best_peer,
        "best_head": measured.best(measured.family("ours"), shop.settings[0]),
        "comparisons": measured.comparisons(),
        "slices": measured.slices(shown),
        "baskets": measured.baskets(),
        "discounts": measured.discounts(),
        "cold_users": measured.cold_users(shown),
        "cold_items": measured.cold_items(),
        "health": semantic_id_health(table, shop.dataset.catalog) if table else None,
    }


def facts(shop: Shop, truth: Truth) -> dict[str, Any]:
    """Sizes of the data set and its test month."""
    orders, before = shop.dataset.orders(), shop.dataset.before(shop.queries.start_ms).orders()
    return {
        "items": len(shop.dataset.catalog),
        "users": len(shop.dataset.user_ids),
        "orders": len(orders.user_O),
        "order lines": len(orders.item_P),
        "orders before the test month": len(before.user_O),
        "orders to predict": len(truth),
        "of these each user's first": int(truth.queries.first_Q.sum()),
        "with an item never bought before": len(truth.kept("novel")),
        "items of an order to predict, mean": float(truth.size_Q.mean()),
        "share of these items that the user had bought before": float(1 - truth.queries.novel_P.mean()),
        "orders before each, median": float(np.median(truth.num_before_Q)),
    }
