"""The report's parts beyond the main tables: cold users, cold items, slices, breadth, Semantic IDs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.quality.promises import WORDS
from benchmarks.quality.tables import cell, number, percent, picture, signed, table


def cold_users(summary: dict[str, Any]) -> Iterator[str]:
    """How well users of whom little is known are served."""
    if not summary["cold_users"]:
        return
    yield from ("### Users of whom little is known", "")
    yield "Each user's first order of the month, when only the newest orders before it are known; never bought then means"
    yield from ("not among these.", "")
    yield from picture(summary, "cold-users")
    rows = [
        (name, orders, *(cell(cells[s][metric]) for s in summary["settings"] for metric in ("HR@10", "NDCG@10")))
        for name, known in summary["cold_users"].items()
        for orders, cells in known.items()
    ]
    titles = (f"{metric}, {WORDS[s]}" for s in summary["settings"] for metric in ("HR@10", "NDCG@10"))
    yield from table(("contender", "orders known", *titles), rows)


def cold_items(summary: dict[str, Any]) -> Iterator[str]:
    """How well items are found by their text alone."""
    cold = summary["cold_items"]
    if cold is None:
        return
    yield from ("### Items nobody has ordered", "")
    yield f"{cold['held_out']:,} random items were held out of training entirely and ranked among themselves for"
    yield f"{cold['orders']:,} orders that have one (each user's first such order of the month)."
    yield ""
    yield from picture(summary, "cold-items")
    rows = [
        ("C, by text alone", cell(cold["model"])),
        ("popularity of the category", cell(cold["category"])),
        ("chance", number(cold["random"])),
        ("C − popularity of the category, paired", signed(cold["over_category"])),
    ]
    if "neighbours" in cold:  # not in the summaries of earlier versions
        rows.insert(1, ("neighbours by text, untrained", cell(cold["neighbours"])))
        rows.append(("C − neighbours by text, paired", signed(cold["over_neighbours"])))
    yield from table(("", "recall@10"), rows)


def slices(summary: dict[str, Any]) -> Iterator[str]:
    """By length of the history and size of the order."""
    yield from ("### By length of the history and size of the order", "")
    yield from (f"NDCG@10, rolling, {WORDS[summary['settings'][0]]}.", "")
    yield from picture(summary, "slices")
    for title, found in summary["slices"].items():
        buckets: dict[str, Any] = next(iter(found.values()), {})
        if len(buckets) < 2:
            continue
        rows = [("orders", *(f"{bucket['orders']:,}" for bucket in buckets.values()))]
        rows += [(name, *(cell(bucket) for bucket in cells.values())) for name, cells in found.items()]
        yield from table((title, *buckets), rows)
    yield from _baskets(summary)


def _baskets(summary: dict[str, Any]) -> Iterator[str]:
    """Compare what is served with the best peer, by size of the order."""
    found = summary.get("baskets")  # not in the summaries of earlier versions
    if found is None or len(found["by_size"]) < 2:
        return
    yield from (f"{found['first']} − {found['second']}, paired, NDCG@10:", "")
    rows = [(name, f"{row['orders']:,}", signed(row), percent(row)) for name, row in found["by_size"].items()]
    whole = found["by_items"]
    rows.append(("all, each counted as its number of items", "", signed(whole), percent(whole)))
    yield from table(("items in the order", "orders", "difference", "relative"), rows)


def breadth(summary: dict[str, Any]) -> Iterator[str]:
    """How much of the catalogue the lists show."""
    yield from ("### Breadth", "")
    yield "Coverage: share of the catalogue in at least one list. Popularity lift: mean popularity of what is listed over that"
    yield from ("of what is ordered. Gini: 0 = all items listed alike, 1 = one item only. Rolling.", "")
    yield from picture(summary, "breadth")
    names = ("coverage", "popularity lift", "Gini")
    rows = [
        (contender, *(f"{cells[setting][name]:.3f}" for setting in summary["settings"] for name in names))
        for contender, cells in summary["breadth"].items()
    ]
    titles = (f"{name}, {WORDS[setting]}" for setting in summary["settings"] for name in names)
    yield from table(("contender", *titles), rows)


def discounts(summary: dict[str, Any]) -> Iterator[str]:
    """Report what it costs to list fewer bestsellers."""
    found = summary.get("discounts")  # not in the summaries of earlier versions
    if not found:
        return
    yield from ("### Fewer bestsellers", "")
    yield "C with the recipe's `popularity_discount`, which takes so much from an item's bias for each 1 of the logarithm of"
    yield from ("its share of orders. It changes what is exported, not what is trained. One seed, rolling.", "")
    names = ("NDCG@10", "popularity lift", "coverage")
    rows = [
        (
            f"{row['discount']:.1f}",
            *(number(row[setting][name]) for setting in summary["settings"] for name in names),
        )
        for row in found
    ]
    titles = (f"{name}, {WORDS[setting]}" for setting in summary["settings"] for name in names)
    yield from table(("discount", *titles), rows)


def health(summary: dict[str, Any]) -> Iterator[str]:
    """Whether the codes are used, tell items apart and follow the categories."""
    if summary["health"] is None:
        return
    yield from ("### Semantic IDs", "")
    rows = []
    for name, value in summary["health"].items():
        if isinstance(value, list):
            rows.append((name, ", ".join(f"{share:.3f}" for share in value)))
        else:
            rows.append((name, str(value) if isinstance(value, int) else f"{value:.3f}"))
    yield from table(("share, unless said", ""), rows)
