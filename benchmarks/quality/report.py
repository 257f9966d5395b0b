"""docs/quality.md and docs/quality.html, rendered from the summaries of the data sets and nothing else.

Where a picture belongs the Markdown has a comment, `<!-- picture: DATASET/NAME -->`; the HTML page has the picture.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from benchmarks.quality.promises import DATASETS, SOURCE_OF_TEACHER, SOURCE_OVER_ALONE, WORDS, comparison
from benchmarks.quality.published import METRICS as PUBLISHED_METRICS
from benchmarks.quality.published import PUBLISHED
from benchmarks.quality.report_slices import breadth, cold_items, cold_users, discounts, health, slices
from benchmarks.quality.tables import cell, number, percent, picture, signed, spread, table
from benchmarks.result import Row, in_words

MODES = {
    "rolling": "Every order of the month (rolling)",
    "first": "Each user's first order of the month",
}
PROTOCOL = (
    "What happened before the last calendar month is trained on; every order of that month is then predicted, with all "
    "that its user did before it.",
    "Users with too few orders before the month are left out; models and settings are frozen at its start and were "
    "chosen on the month before.",
    "Every list ranks the whole catalogue, with no sampled negatives; equal scores are ordered at random.",
    "All items: the whole order is the truth. Never bought: only items the user had never ordered count, none of those "
    "may be listed, and orders without one drop out.",
    "Intervals are 95 %, by resampling users; differences are paired, order by order, after averaging over seeds.",
    "Complete Journey is simulated after the patterns of real shopping, as its package says: a place to compare methods, not "
    "evidence about real shoppers.",
)


AMAZON = (
    "Amazon reviews 2014, 5-core (McAuley et al. 2015; the sequences of S3-Rec, arXiv:2008.07873), leave-one-out: a user's "
    "last item is the test month's order. The files are not part of this project; `baguni data prepare amazon` reads yours. "
)
ON_ALL_BEFORE = "Everybody is trained on all that comes before it, as a shop would."
AS_IN_LITERATURE = (
    "Everybody is trained without each user's last two items, as in the literature; the last but one chooses epochs, if any, "
    "and is in the history of the last."
)
ORIGINS = {
    "complete-journey": "A year of grocery orders (84.51° / dunnhumby, 2017), by `baguni data prepare complete-journey`.",
    "amazon-beauty": AMAZON + ON_ALL_BEFORE,
    "amazon-beauty-literature": AMAZON + AS_IN_LITERATURE,
    "amazon-sports": AMAZON + ON_ALL_BEFORE,
    "amazon-sports-literature": AMAZON + AS_IN_LITERATURE,
}


def render(summaries: Sequence[dict[str, Any]], rows: Sequence[Row]) -> str:
    """The whole report as Markdown."""
    lines = [
        "# Recommendation quality",
        "",
        "Rendered by `make bench-quality` from what it measured; nothing here is typed by hand.",
        "",
        "**Protocol**",
        "",
        *(f"{number}. {line}" for number, line in enumerate(PROTOCOL, 1)),
        "",
        *promises(rows),
    ]
    for summary in summaries:
        lines += dataset_section(summary)
    return "\n".join(lines).rstrip() + "\n"


def promises(rows: Sequence[Row]) -> Iterator[str]:
    """The promised numbers; then, in words, those that were missed."""
    yield from ("## What was promised", "")
    cells = [
        (
            row.what,
            f"{row.value:.4g} {row.unit}".strip(),
            f"{row.reference}: {row.reference_value:.4g}" if row.reference_value is not None else "",
            row.bar,
            "yes" if row.holds else "**no**",
        )
        for row in rows
    ]
    yield from table(("what", "measured", "beside it", "bar", "holds"), cells)
    judged = [row for row in rows if row.bar != "reported"]
    missed = [row for row in judged if not row.holds]
    yield f"{len(missed)} of {len(judged)} bars are missed{':' if missed else '.'}"
    yield ""
    yield from (f"- {row.what} is {row.value:.4g} {row.unit}".rstrip() + f", the bar is {row.bar}." for row in missed)
    yield ""


def dataset_section(summary: dict[str, Any]) -> list[str]:
    """All of one data set."""
    parts: list[Iterable[str]] = [
        heading(summary),
        contenders(summary),
        *(results(summary, mode, title) for mode, title in MODES.items()),
        differences(summary),
        published(summary),
        cold_users(summary),
        cold_items(summary),
        slices(summary),
        breadth(summary),
        discounts(summary),
        health(summary),
    ]
    return [line for part in parts for line in part]


def heading(summary: dict[str, Any]) -> Iterator[str]:
    """Name, origin and facts."""
    yield from (f"## {DATASETS[summary['dataset']]}", "", ORIGINS[summary["dataset"]], "")
    facts = [
        (name, f"{value:,}" if isinstance(value, int) else f"{value:.3g}") for name, value in summary["facts"].items()
    ]
    yield from table(("data set", ""), facts)


def contenders(summary: dict[str, Any]) -> Iterator[str]:
    """Who they are, what they cost, and on what."""
    yield from ("### Contenders", "")
    rows: list[tuple[object, ...]] = []
    machines: dict[str, list[str]] = {}
    for name, about in summary["contenders"].items():
        machines.setdefault(in_words(about["machine"]), []).append(name)
        minutes = max(about["training_s"]) / 60
        rows.append(
            (
                name,
                about["description"] + (f" {about['notes']}" if about["notes"] else ""),
                len(about["seeds"]),
                f"{minutes:.1f}" if minutes else "",
                f"{about['samples_per_s']:,.0f}" if about["samples_per_s"] else "",
                f"{about['ranking_ms']:.1f}",
            )
        )
    titles = ("contender", "what it is", "seeds", "training, min", "orders trained on / s", "ranking, ms an order")
    yield from table(titles, rows)
    for where, names in machines.items():
        yield from (f"Measured on {where}: {', '.join(names)}.", "")
    yield from _recipes(summary)


def _recipes(summary: dict[str, Any]) -> Iterator[str]:
    """The settings of all contenders, folded away; seeds left out."""
    yield from ("<details><summary>Recipes</summary>", "")
    for name, about in summary["contenders"].items():
        recipe = {key: value for key, value in about["recipe"].items() if key != "seed"}
        yield from (f"{name}:", "", "```json", json.dumps(recipe, indent=1, ensure_ascii=False), "```", "")
    yield from ("</details>", "")


def _shown(summary: dict[str, Any], metric: str) -> bool:
    """Of an order of one item, hit rate and both recalls are one number."""
    one_item = summary["facts"]["items of an order to predict, mean"] == 1
    return not (one_item and metric.startswith(("HR", "Recall_min")))


def results(summary: dict[str, Any], mode: str, title: str) -> Iterator[str]:
    """Every contender's metrics, one table a setting."""
    if not any(mode in modes for modes in summary["metrics"].values()):
        return
    yield from (f"### {title}", "")
    if mode == "rolling":
        yield from ("Means with 95 % intervals over users, best in bold.", "")
        yield from picture(summary, "ndcg")
    for setting in summary["settings"]:
        names = [metric for metric in next(iter(summary["metrics"].values()))[mode][setting] if _shown(summary, metric)]
        best = {
            metric: max(cells[mode][setting][metric]["mean"] for cells in summary["metrics"].values())
            for metric in names
        }
        rows = [
            (
                name,
                *(cell(cells[mode][setting][metric], best[metric]) for metric in names),
                spread(cells[mode][setting]),
            )
            for name, cells in summary["metrics"].items()
        ]
        yield from (f"**{WORDS[setting]}**", "")
        yield from table(("contender", *names, "NDCG@10, spread of seeds"), rows)


def differences(summary: dict[str, Any]) -> Iterator[str]:
    """Paired comparisons, and the source's ratios beside ours."""
    if not summary["comparisons"]:
        return
    yield from (
        "### What each technique contributes",
        "",
        "First minus second on the same orders, rolling; the picture",
    )
    yield from ("shows NDCG@10 in percent of the second, with paired intervals.", "")
    rows = [
        (
            f"{row['first']} − {row['second']}",
            WORDS[row["setting"]],
            row["metric"],
            signed(row),
            percent(row),
            "yes" if row["low"] > 0 or row["high"] < 0 else "no",
        )
        for row in summary["comparisons"]
        if row["mode"] == "rolling" and row["metric"] != "Recall@10"
    ]
    yield from picture(summary, "differences")
    yield from table(("pair", "setting", "metric", "difference", "relative", "interval without 0"), rows)
    yield from _source(summary)


def _source(summary: dict[str, Any]) -> Iterator[str]:
    rows = []
    for setting in summary["settings"]:
        for second, ratio in (("A", SOURCE_OVER_ALONE), ("teacher", SOURCE_OF_TEACHER)):
            found = comparison(summary, "C", second, setting, "HR@10")
            if found is not None and found["base"]:
                rows.append((f"C / {second}", WORDS[setting], f"{1 + found['relative']:.2f}", f"{ratio:.2f}"))
    if rows:
        yield from ("The ratios that the source of the method reports for its own shop, beside ours:", "")
        yield from table(("HR@10", "setting", "ours", "the source's"), rows)


def published(summary: dict[str, Any]) -> Iterator[str]:
    """What others print, beside what was measured."""
    others = PUBLISHED.get(summary["dataset"])
    if others is None:
        return
    yield from ("### Beside published results", "")
    yield "Published rows are their authors' own numbers, not measured here; whether they list what a user has already is"
    yield from ("theirs to say, ours do not. Ours are means over the seeds; in the picture they are blue.", "")
    rows: list[tuple[Any, ...]] = [
        (row.model, f"published: {row.source}", *("" if v is None else number(v) for v in row.values)) for row in others
    ]
    rows += [
        (name, "measured here", *(number(cells["rolling"]["novel"][metric]["mean"]) for metric in PUBLISHED_METRICS))
        for name, cells in summary["metrics"].items()
    ]
    yield from picture(summary, "published")
    yield from table(("model", "source", *PUBLISHED_METRICS), rows)
