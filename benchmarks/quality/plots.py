"""The report's pictures, as SVG for the inside of an HTML page: text and axes take the page's colour, so they are read on
light and on dark; nothing outside the page is referred to.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.quality.promises import WORDS, mean
from benchmarks.quality.published import PUBLISHED

INK = "#123456"  # stands for the page's own text colour, see _svg
COLOURS = {"peer": "#8a93a3", "A": "#d9902f", "B": "#2f9e8f", "C": "#3b7dd8", "teacher": "#b0579e"}
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
    figure = Figure(figsize=(10, 0.32 * len(names) + 1.1), layout="constrained")
    for axis, setting in zip(figure.subplots(1, 2), WORDS, strict=True):
        ranked = sorted(names, key=lambda name: mean(summary, name, setting, "NDCG@10"))
        cells = [summary["metrics"][name]["rolling"][setting]["NDCG@10"] for name in ranked]
        _dots(axis, ranked, cells, [_colour(summary, name) for name in ranked])
        axis.set_xlabel("NDCG@10, mean and 95 % interval over users")
        axis.set_title(WORDS[setting], fontsize=11, loc="left")
    return figure


def draw_differences(summary: dict[str, Any]) -> Figure | None:
    """Paired differences in NDCG@10, in percent of the second contender."""
    rows = [row for row in summary["comparisons"] if row["metric"] == "NDCG@10" and row["mode"] == "rolling"]
    rows = [row for row in rows if row["base"]]
    if not rows:
        return None
    figure = Figure(figsize=(10, 0.22 * len(rows) + 1.2), layout="constrained")
    for axis, setting in zip(figure.subplots(1, 2), WORDS, strict=True):
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
        axis.set_xlabel("difference in NDCG@10, % of the second, paired 95 % interval")
        axis.set_title(WORDS[setting], fontsize=11, loc="left")
    return figure


def draw_slices(summary: dict[str, Any]) -> Figure | None:
    """NDCG@10 over buckets of history length and order size."""
    slices = {title: found for title, found in summary["slices"].items() if _num_buckets(found) > 1}
    if not slices:
        return None
    figure = Figure(figsize=(10 if len(slices) > 1 else 6, 3.4), layout="constrained")
    for axis, (title, found) in zip(figure.subplots(1, len(slices), squeeze=False)[0], slices.items(), strict=True):
        _lines(axis, summary, found)
        axis.set_xlabel(title)
        axis.set_ylabel("NDCG@10, all items")
    figure.axes[0].legend(fontsize=8)
    return figure


def draw_cold_users(summary: dict[str, Any]) -> Figure | None:
    """NDCG@10 over the number of orders that are known of a user."""
    if not summary["cold_users"]:
        return None
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    for axis, setting in zip(figure.subplots(1, 2), WORDS, strict=True):
        found = {
            name: {orders: cells[setting]["NDCG@10"] for orders, cells in known.items()}
            for name, known in summary["cold_users"].items()
        }
        _lines(axis, summary, found)
        axis.set_xlabel("orders known of the user")
        axis.set_ylabel("NDCG@10, first order of the month")
        axis.set_title("all items" if setting == "all" else "not among the known orders", fontsize=11, loc="left")
    figure.axes[0].legend(fontsize=8)
    return figure


def draw_cold_items(summary: dict[str, Any]) -> Figure | None:
    """Recall of items that were never ordered in training."""
    cold = summary["cold_items"]
    if cold is None:
        return None
    figure = Figure(figsize=(7, 1.9), layout="constrained")
    chance = {"mean": cold["random"], "low": cold["random"], "high": cold["random"]}
    names = ["chance", "popularity of the category", "C, by text alone"]
    _dots(figure.subplots(), names, [chance, cold["category"], cold["model"]], [*[COLOURS["peer"]] * 2, COLOURS["C"]])
    figure.axes[0].set_xlabel("recall@10 among held-out items, mean and 95 % interval over users")
    figure.axes[0].set_xlim(left=0)
    return figure


def draw_breadth(summary: dict[str, Any]) -> Figure:
    """Accuracy against the share of the catalogue that is shown."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    for axis, setting in zip(figure.subplots(1, 2), WORDS, strict=True):
        for name in summary["breadth"]:
            x, y = 100 * summary["breadth"][name][setting]["coverage"], mean(summary, name, setting, "NDCG@10")
            axis.plot(x, y, "o", color=_colour(summary, name))
            axis.annotate(name, (x, y), xytext=(5, 3), textcoords="offset points", fontsize=8)
        axis.set_xlabel("items in at least one list, % of the catalogue")
        axis.set_ylabel("NDCG@10")
        axis.set_title(WORDS[setting], fontsize=11, loc="left")
        axis.margins(x=0.2, y=0.1)
        axis.grid()
    return figure


def draw_published(summary: dict[str, Any]) -> Figure | None:
    """Ours beside what others print."""
    published = PUBLISHED.get(summary["dataset"])
    if published is None:
        return None
    figure = Figure(figsize=(10, 0.3 * (len(published) + len(summary["metrics"])) + 1.1), layout="constrained")
    for axis, (place, metric) in zip(figure.subplots(1, 2), ((2, "Recall@10"), (3, "NDCG@10")), strict=True):
        bars = [(f"{row.model} ({row.source})", row.values[place], COLOURS["peer"]) for row in published]
        bars += [
            (f"{name}, measured", mean(summary, name, "novel", metric), COLOURS["C"]) for name in summary["metrics"]
        ]
        there = sorted((value, name, colour) for name, value, colour in bars if value is not None)
        axis.barh([name for _, name, _ in there], [value for value, _, _ in there], color=[c for _, _, c in there])
        axis.set_xlabel(f"{metric}; grey: as published, blue: measured here")
        axis.tick_params(axis="y", labelsize=8)
    return figure


def _dots(axis: Axes, names: Sequence[str], cells: Sequence[dict[str, float]], colours: Sequence[str]) -> None:
    for place, (cell, colour) in enumerate(zip(cells, colours, strict=True)):
        error = [[cell["mean"] - cell["low"]], [cell["high"] - cell["mean"]]]
        axis.errorbar(cell["mean"], place, xerr=error, fmt="o", color=colour, capsize=3)
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(-0.6, len(names) - 0.4)
    axis.grid(axis="x")


def _lines(axis: Axes, summary: dict[str, Any], found: dict[str, dict[str, dict[str, float]]]) -> None:
    for name, buckets in found.items():
        means = [cell["mean"] for cell in buckets.values()]
        error = [
            [cell["mean"] - cell["low"] for cell in buckets.values()],
            [cell["high"] - cell["mean"] for cell in buckets.values()],
        ]
        axis.errorbar(list(buckets), means, yerr=error, fmt="o-", color=_colour(summary, name), capsize=2, label=name)
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
