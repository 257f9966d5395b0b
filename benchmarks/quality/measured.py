"""The lists of one data set's contenders, and what is asked of them; see summary.py for what becomes of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import cache
from typing import Any

import numpy as np

from benchmarks.quality.measure import (
    METRICS,
    Estimate,
    Float64,
    Int64,
    K,
    Paired,
    Setting,
    Truth,
    Values,
    breadth,
    compare,
    estimate,
    order_values,
)
from benchmarks.quality.shop import COLD_ORDERS, DISCOUNTS, Shop, discount_part
from benchmarks.quality.slices import (
    BASKET_BUCKETS,
    HISTORY_BUCKETS,
    SMALLEST_BUCKET,
    bucket_name,
    by_bucket,
    category_popularity_lists,
    cold_item_recall,
    cold_users,
    in_bucket,
    text_neighbour_lists,
)
from benchmarks.quality.store import Record

OURS = ("A", "B", "C", "served", "teacher", "generative")
COMPARED = ("HR", "Recall", "NDCG")
SCORE = f"NDCG@{K}"


class Measured:
    """The lists of one data set's contenders, and what is asked of them."""

    def __init__(self, shop: Shop, records: Sequence[Record], ks: Sequence[int]) -> None:
        self.shop, self.ks = shop, ks
        self.truth = Truth(shop.queries)
        self.records: dict[str, list[Record]] = {}
        for record in records:
            self.records.setdefault(record.contender, []).append(record)
        self.values = {name: self._values(name, self.truth) for name in self.records}
        self.records = {name: self.records[name] for name in sorted(self.records, key=self._place)}

    def series(self, name: str, setting: Setting, metric: str, mode: str) -> list[Float64]:
        """One array per seed: the metric of each order of a mode."""
        inside = self.truth.within(setting, mode)
        return [values[setting][metric][inside] for values in self.values[name]]

    def users(self, setting: Setting, mode: str) -> Int64:
        """The users of these orders."""
        return self.truth.users(setting)[self.truth.within(setting, mode)]

    def best(self, names: Iterable[str], setting: Setting) -> str | None:
        """The name with the best rolling NDCG@10."""
        means = {name: np.mean(self.series(name, setting, SCORE, "rolling")) for name in names}
        return max(means, key=lambda name: means[name], default=None)

    def family(self, family: str) -> list[str]:
        """Names of one family."""
        return [name for name, records in self.records.items() if records[0].family == family]

    def metrics(self, name: str) -> dict[str, Any]:
        """Every metric, by mode and setting."""
        names = [f"{metric}@{k}" for k in self.ks for metric in METRICS]
        return {
            mode: {
                setting: {
                    metric: asdict(estimate(self.series(name, setting, metric, mode), self.users(setting, mode)))
                    for metric in names
                }
                for setting in self.shop.settings
            }
            for mode in self.truth.modes
        }

    def breadth(self, name: str) -> dict[str, Any]:
        """Means over the seeds."""
        frequency = self.shop.frequency_N
        found: dict[str, Any] = {}
        for setting in self.shop.settings:
            seeds = [breadth(self._lists(name, seed), self.truth, frequency, setting) for seed in self.seeds(name)]
            found[setting] = {key: float(np.mean([seed[key] for seed in seeds])) for key in seeds[0]}
        return found

    def seeds(self, name: str, part: str = "") -> list[int]:
        """The seeds whose lists are there."""
        return [record.seed for record in self.records[name] if self.shop.store.has(name, record.seed, part)]

    def comparisons(self) -> list[dict[str, Any]]:
        """Every pair that the report shows."""
        rows = []
        for first, second in self.pairs():
            for mode in self.truth.modes:
                for setting in self.shop.settings:
                    users = self.users(setting, mode)
                    for metric in (f"{metric}@{K}" for metric in COMPARED):
                        ours, theirs = (self.series(name, setting, metric, mode) for name in (first, second))
                        paired = compare(ours, theirs, users)
                        where = {"first": first, "second": second, "mode": mode, "setting": setting, "metric": metric}
                        rows.append(where | _paired(paired))
        return rows

    def pairs(self) -> list[tuple[str, str]]:
        """What each technique adds; distilled, and the best head, against the best peers."""
        peers = [self.best(self.family("peer"), setting) for setting in self.shop.settings]
        head = self.best(self.family("ours"), self.shop.settings[0])
        wanted: list[tuple[str | None, str | None]] = [
            ("C", "A"),
            ("B", "A"),
            ("C", "B"),
            ("C", "teacher"),
            ("served", "C"),
            ("generative", "teacher"),
            *((ours, peer) for ours in ("C", "served") for peer in peers),
        ]
        wanted += [(head, peer) for peer in (*peers, "SASRec")]
        there = [(a, b) for a, b in wanted if a in self.records and b in self.records]
        return list(dict.fromkeys((str(a), str(b)) for a, b in there))

    def slices(self, names: Iterable[str]) -> dict[str, Any]:
        """NDCG@10 of rolling orders, in the first setting, by length of the history and size of the order."""
        sizes = {
            "orders before": (self.truth.num_before_Q, HISTORY_BUCKETS),
            "items in the order": (self.truth.size_Q, BASKET_BUCKETS),
        }
        setting = self.shop.settings[0]
        kept, found = self.truth.kept(setting), {title: dict[str, Any]() for title in sizes}
        for name in names:
            values, users = self.series(name, setting, SCORE, "rolling"), self.users(setting, "rolling")
            for title, (size_Q, buckets) in sizes.items():
                buckets_found = by_bucket(values, users, size_Q[kept], buckets)
                found[title][name] = {key: {"orders": n} | _interval(e) for key, (n, e) in buckets_found.items()}
        return found

    def baskets(self) -> dict[str, Any] | None:
        """Return what is served minus the best peer in NDCG@10 of rolling orders, in the first setting: by size of the order,
        and over all orders, each counted as its number of items. None without both."""
        setting = self.shop.settings[0]
        served = next((name for name in ("served", "C") if name in self.records), None)
        peer = self.best(self.family("peer"), setting)
        if served is None or peer is None:
            return None
        ours, theirs = (self.series(name, setting, SCORE, "rolling") for name in (served, peer))
        users, size_Q = self.users(setting, "rolling"), self.truth.size_Q[self.truth.kept(setting)]
        sizes = {}
        for low, high in BASKET_BUCKETS:
            inside = in_bucket(size_Q, low, high)
            if inside.sum() >= SMALLEST_BUCKET:
                first, second = ([value[inside] for value in values] for values in (ours, theirs))
                paired = compare(first, second, users[inside])
                sizes[bucket_name(low, high)] = {"orders": int(inside.sum())} | _paired(paired)
        names = {"first": served, "second": peer, "setting": setting}
        return names | {"by_size": sizes, "by_items": _paired(compare(ours, theirs, users, size_Q))}

    def discounts(self) -> list[dict[str, Any]]:
        """Return NDCG@10 and breadth of C at each discount of what is popular, rolling, of one seed."""
        seeds = self.seeds("C", discount_part(DISCOUNTS[0])) if "C" in self.records else []
        found = []
        for discount in DISCOUNTS if seeds else ():
            lists = self.shop.store.load("C", seeds[0], discount_part(discount))
            values = order_values(lists, self.truth)
            settings = {
                setting: {"NDCG@10": float(values[setting][SCORE].mean())}
                | breadth(lists, self.truth, self.shop.frequency_N, setting)
                for setting in self.shop.settings
            }
            found.append({"discount": discount} | settings)
        return found

    def cold_users(self, names: Iterable[str]) -> dict[str, Any]:
        """Each user's first order, by what is known of the user."""
        found: dict[str, Any] = {}
        for name in names:
            for number in COLD_ORDERS:
                if self.seeds(name, f"orders{number}"):
                    truth = self._cold_truth(number)
                    values = self._values(name, truth, f"orders{number}")
                    found.setdefault(name, {})[str(number)] = self._first_orders(values, truth)
            if name in found:
                found[name]["whole"] = self._first_orders(self.values[name], self.truth)
        return found

    def _first_orders(self, values: Sequence[Values], truth: Truth) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for setting in self.shop.settings:
            first, users = truth.within(setting, "first"), truth.users(setting)
            found[setting] = {
                metric: _interval(estimate([value[setting][metric][first] for value in values], users[first]))
                for metric in (f"HR@{K}", SCORE)
            }
        return found

    def cold_items(self) -> dict[str, Any] | None:
        """Recall of items that the model never saw ordered, against chance, their categories' popularity and neighbours by
        text."""
        seeds = self.seeds("C", "cold") if "C" in self.records else []
        if not seeds:
            return None
        cold, queries = self.shop.store.load_cold("C", seeds[0]), self.shop.queries
        model = cold_item_recall(cold.top_Qk, queries, cold.query, cold.held_out)
        lists = category_popularity_lists(
            queries.dataset.catalog, cold.held_out, self.shop.frequency_N, len(cold.query), K
        )
        category = cold_item_recall(lists, queries, cold.query, cold.held_out)
        text_NT = np.load(self.shop.folder / "runs" / f"seed{seeds[0]}" / "embeddings.npy")
        lists = text_neighbour_lists(queries.at(cold.query).purchases(), text_NT, cold.held_out, K)
        neighbours = cold_item_recall(lists, queries, cold.query, cold.held_out)
        users = queries.user_Q[cold.query]
        return {
            "held_out": len(cold.held_out),
            "orders": len(cold.query),
            "model": _interval(estimate([model], users)),
            "category": _interval(estimate([category], users)),
            "neighbours": _interval(estimate([neighbours], users)),
            "random": min(1.0, K / len(cold.held_out)),
            "over_category": asdict(compare([model], [category], users)),
            "over_neighbours": asdict(compare([model], [neighbours], users)),
        }

    def contenders(self) -> dict[str, Any]:
        """Who they are."""
        return {name: _contender(records) for name, records in self.records.items()}

    def _values(self, name: str, truth: Truth, part: str = "") -> list[Values]:
        return [order_values(self._lists(name, seed, part), truth, self.ks) for seed in self.seeds(name, part)]

    def _lists(self, name: str, seed: int, part: str = "") -> dict[Setting, Int64]:
        return self.shop.store.load(name, seed, part)

    def _place(self, name: str) -> tuple[int, float]:
        """Peers by their score, then our own as the method has them."""
        score = float(np.mean(self.series(name, self.shop.settings[0], SCORE, "rolling")))
        return (1 + OURS.index(name) if name in OURS else 0), score

    @cache  # noqa: B019 - one object a data set, as long as the program runs
    def _cold_truth(self, number: int) -> Truth:
        return Truth(cold_users(self.shop.queries, number))


def _contender(records: Sequence[Record]) -> dict[str, Any]:
    newest = max(records, key=lambda record: record.date)
    return {
        "family": newest.family,
        "description": newest.description,
        "seeds": [record.seed for record in records],
        "recipe": newest.recipe,
        "training_s": [record.training_s for record in records],
        "samples_per_s": float(np.mean([record.samples_per_s for record in records])),
        "ranking_ms": float(np.mean([record.ranking_ms for record in records])),
        "notes": newest.notes,
        "commit": newest.commit,
        "date": newest.date,
        "machine": newest.machine,
    }


def _paired(paired: Paired) -> dict[str, Any]:
    return asdict(paired) | {"relative": paired.relative}


def _interval(estimated: Estimate) -> dict[str, float]:
    return {"mean": estimated.mean, "low": estimated.low, "high": estimated.high}
