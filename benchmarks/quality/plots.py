"""The report's pictures, as SVG for the inside of an HTML page: text and axes take the page's colour, so they are read on
light and on dark; nothing outside the page is referred to.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.quality.promises import WORDS, mean
from benchmarks.quality.published import METRICS as PUBLISHED_METRICS
from benchmarks.quality.published import PUBLISHED

INK = "#123456"  # stands for the page's own text colour, see _svg
COLOURS = {
    "peer": "#8a93a3",
    "A": "#d9902f",
    "B": "#2f9e8f",
    "C": "#3b7dd8",
    "served": "#1f4e96",
    "teacher": "#b0579e",
    "generative": "#8c4fc4",
}
FALLBACK = "#7a6fd0"
STYLE = {
    "font.size": 10,
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": INK,
    "grid.alpha": 0.15,
    "legend.frameon": False,
}


def pictures(summary: dict[str, Any]) -> dict[str, str]:
    """{name: SVG} of one data set; only those for which there is something to show."""
    drawings: dict[str, Callable[[dict[str, Any]], Figure | None]] = {
        "ndcg": draw_ndcg,
        "differences": draw_differences,
        "slices": draw_slices,
        "cold-users": draw_cold_users,
        "cold-items": draw_cold_items,
        "breadth": draw_breadth,
        "published": draw_published,
    }
    found = {}
    for name, draw in drawings.items():
        with mpl.rc_context(STYLE | {"svg.hashsalt": f"{summary['dataset']}/{name}"}):
            figure = draw(summary)
            if figure is not None:
                found[name] = _svg(figure)
    return found


def draw_ndcg(summary: dict[str, Any]) -> Figure:
    """NDCG@10 of every contender with its interval, both settings, best on top."""
    names = list(summary["metrics"])
    figure, axes = _panels(summary["settings"], 0.32 * len(names) + 1.1)
    for setting, axis in axes.items():
        ranked = sorted(names, key=lambda name: mean(summary, name, setting, "NDCG@10"))
        cells = [summary["metrics"][name]["rolling"][setting]["NDCG@10"] for name in ranked]
        _dots(axis, ranked, cells, [_colour(summary, name) for name in ranked])
        axis.set_xlabel("NDCG@10")
        axis.set_title(WORDS[setting], fontsize=11, loc="left")
    return figure


def draw_differences(summary: dict[str, Any]) -> Figure | None:
    """Paired differences in NDCG@10, in percent of the second contender."""
    rows = [row for row in summary["comparisons"] if row["metric"] == "NDCG@10" and row["mode"] == "rolling"]
    rows = [row for row in rows if row["base"]]
    if not rows:
        return None
    figure, axes = _panels(summary["settings"], 0.36 * len(rows) / len(summary["settings"]) + 1.2)
    for setting, axis in axes.items():
        shown = [row for row in rows if row["setting"] == setting][::-1]
        cells = [
            {
                "mean" if key == "difference" else key: 100 * row[key] / row["base"]
                for key in ("difference", "low", "high")
            }
            for row in shown
        ]
        _dots(axis, [f"{row['first']} − {row['second']}" for row in shown], cells, [COLOURS["C"]] * len(shown))
        axis.axvline(0, color=INK, linewidth=1)
        axis.set_xlabel("difference in NDCG@10, %")
        axis.set_title(WORDS[setting], fontsize=11, loc="left")
    return figure


def draw_slices(summary: dict[str, Any]) -> Figure | None:
    """NDCG@10 over buckets of history length and order size."""
    slices = {title: found for title, found in summary["slices"].items() if _num_buckets(found) > 1}
    if not slices:
        return None
    figure, axes = _panels(slices, 3.4)
    for title, axis in axes.items():
        found = slices[title]
        _lines(axis, summary, found)
        axis.set_xlabel(title)
        axis.set_ylabel(f"NDCG@10, {WORDS[summary['settings'][0]]}")
    figure.axes[0].legend(fontsize=8)
    return figure


def draw_cold_users(summary: dict[str, Any]) -> Figure | None:
    """NDCG@10 over the number of orders that are known of a user."""
    if not summary["cold_users"]:
        return None
    figure, axes = _panels(summary["settings"], 3.4)
    for setting, axis in axes.items():
        found = {
            name: {orders: cells[setting]["NDCG@10"] for orders, cells in known.items()}
            for name, known in summary["cold_users"].items()
        }
        _lines(axis, summary, found)
        axis.set_xlabel("orders known of the user")
        axis.set_ylabel("NDCG@10")
        axis.set_title("all items" if setting == "all" else "not among the known orders", fontsize=11, loc="left")
    figure.axes[0].legend(fontsize=8)
    return figure


def draw_cold_items(summary: dict[str, Any]) -> Figure | None:
    """Recall of items that were never ordered in training."""
    cold = summary["cold_items"]
    if cold is None:
        return None
    figure, axes = _panels(["all"], 2.1)
    chance = {"mean": cold["random"], "low": cold["random"], "high": cold["random"]}
    cells = {"chance": chance, "popularity of the category": cold["category"]}
    if "neighbours" in cold:  # not in the summaries of earlier versions
        cells["neighbours by text"] = cold["neighbours"]
    cells["C, by text alone"] = cold["model"]
    _dots(axes["all"], list(cells), list(cells.values()), [*[COLOURS["peer"]] * (len(cells) - 1), COLOURS["C"]])
    figure.axes[0].set_xlabel("recall@10 among held-out items")
    figure.axes[0].set_xlim(left=0)
    return figure


def draw_breadth(summary: dict[str, Any]) -> Figure:
    """The share of the catalogue that is shown to anybody."""
    figure, axes = _panels(summary["settings"], 0.32 * len(summary["breadth"]) + 1.1)
    for setting, axis in axes.items():
        coverage = {name: 100 * found[setting]["coverage"] for name, found in summary["breadth"].items()}
        ranked = sorted(coverage, key=lambda name: coverage[name])
        axis.barh(ranked, [coverage[name] for name in ranked], color=[_colour(summary, name) for name in ranked])
        axis.set_xlabel("coverage, % of the catalogue")
        axis.set_title(WORDS[setting], fontsize=11, loc="left")
        axis.grid(axis="x")
    return figure


def draw_published(summary: dict[str, Any]) -> Figure | None:
    """Ours beside what others print."""
    published = PUBLISHED.get(summary["dataset"])
    if published is None:
        return None
    figure, axes = _panels(("Recall@10", "NDCG@10"), 0.3 * (len(published) + len(summary["metrics"])) + 1.1)
    for metric, axis in axes.items():
        place = PUBLISHED_METRICS.index(metric)
        bars = [(row.label, row.values[place], COLOURS["peer"]) for row in published]
        bars += [
            (f"{name}, measured", mean(summary, name, "novel", metric), COLOURS["C"]) for name in summary["metrics"]
        ]
        there = sorted((value, name, colour) for name, value, colour in bars if value is not None)
        axis.barh([name for _, name, _ in there], [value for value, _, _ in there], color=[c for _, _, c in there])
        axis.set_xlabel(metric)
    return figure


def _panels(names: Iterable[str], height: float) -> tuple[Figure, dict[str, Axes]]:
    """One panel a name, side by side; alone, it is as wide as two."""
    names = list(names)
    figure = Figure(figsize=(10, height), layout="constrained")
    return figure, dict(zip(names, figure.subplots(1, len(names), squeeze=False)[0], strict=True))


def _dots(axis: Axes, names: Sequence[str], cells: Sequence[dict[str, float]], colours: Sequence[str]) -> None:
    for place, (cell, colour) in enumerate(zip(cells, colours, strict=True)):
        error = [[cell["mean"] - cell["low"]], [cell["high"] - cell["mean"]]]
        axis.errorbar(cell["mean"], place, xerr=error, fmt="o", color=colour, capsize=3)
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(-0.6, len(names) - 0.4)
    axis.grid(axis="x")


def _lines(axis: Axes, summary: dict[str, Any], found: dict[str, dict[str, dict[str, float]]]) -> None:
    places = list(dict.fromkeys(bucket for buckets in found.values() for bucket in buckets))
    peers = 0
    for number, (name, buckets) in enumerate(found.items()):
        peer = summary["contenders"][name]["family"] == "peer"
        peers += peer
        beside = 0.06 * (number - (len(found) - 1) / 2)  # so that intervals do not hide one another
        where = [places.index(bucket) + beside for bucket in buckets]
        line = "s--" if peer and peers > 1 else "o-"
        means = [cell["mean"] for cell in buckets.values()]
        error = [
            [cell["mean"] - cell["low"] for cell in buckets.values()],
            [cell["high"] - cell["mean"] for cell in buckets.values()],
        ]
        axis.errorbar(
            where, means, yerr=error, fmt=line, color=_colour(summary, name), capsize=2, markersize=4, label=name
        )
    axis.set_xticks(range(len(places)), places)
    axis.grid(axis="y")
    axis.set_ylim(bottom=0)


def _num_buckets(found: dict[str, Any]) -> int:
    return max((len(buckets) for buckets in found.values()), default=0)


def _colour(summary: dict[str, Any], name: str) -> str:
    family = summary["contenders"][name]["family"]
    return COLOURS.get(name, COLOURS["peer"] if family == "peer" else FALLBACK)


def _svg(figure: Figure) -> str:
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\sxmlns(:xlink)?="[^"]*"', "", text).replace("xlink:href", "href")
    return re.sub(r'\s(width|height)="[\d.]+pt"', "", text, count=2).replace(INK, "currentColor")
