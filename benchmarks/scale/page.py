"""docs/scale.md and its picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.result import in_words
from benchmarks.scale.items import AT_A_TIME, DIM, CatalogueCost, K
from benchmarks.scale.sizing import CORE_HOUR, GB_HOUR, SPARE, UTILISATION, Unit, exponent, need
from benchmarks.scale.users import EVENTS, UsersCost

ON_PAPER = 10_000_000
CATALOGUE = {
    "index, s to build": "build_s",
    "search, ms": "search_ms",
    "Milvus' CPU a search, ms": "milvus_cpu_ms",
    "Milvus, MB": "milvus_mb",
    "trie, MB": "trie_mb",
    "a gateway process, MB": "gateway_mb",
}
COSTS = ("Redis, GB", "Milvus, GB", "$ a million recommendations")
SHOPS = ((100, 100_000), (1_000, 1_000_000), (10_000, 10_000_000))  # requests a second, users
ABOUT_CATALOGUE = (
    f"Synthetic items in clusters, {DIM} dimensions, the nearest {K} of a query, one standalone Milvus on the same machine. "
    "The exponent b is that of a·size^b, by least squares: 1 grows as the catalogue does, 0 does not grow. "
    f"{ON_PAPER:,} items are on paper: from the last size, as cost grew between the last two. They will lie in "
    "several segments, each of which is searched: their latency and Milvus' CPU are lower bounds."
)
ABOUT_INDEX = (
    "Up to 20,000 items the index is exact, beyond it is a graph ([ADR 16](adr/0016-items-of-one-length.md)): the first "
    "column is of another kind than the others. What a generated list costs does not depend on the catalogue "
    "([inference](inference.md))."
)
ABOUT_SIZES = (
    "A Recommend costs {unit.gateway_ms:.2g} ms of CPU in the gateway, {unit.encoder_ms:.2g} ms in the user encoder when the "
    "history is new, and a search; a history of 200 events takes {unit.history_bytes:,.0f} bytes. From {read_from}. A release "
    "that lets the generative head reorder what is served costs its scorer beside that, some five encoders. "
    f"Every processor is busy {UTILISATION:.0%} of the time, there are {SPARE} of everything at least, and memory is held "
    f"twice. A core is taken to cost ${CORE_HOUR} an hour and a GB ${GB_HOUR}: put your own prices into "
    "`benchmarks/scale/sizing.py`. No GPU was at hand, so the encoder is counted on processors."
)
USERS = {
    "Redis, bytes a user": "bytes_a_user",
    "events loaded a second": "events_a_second",
    "a history read, ms": "read_ms",
}


def page(
    where: dict[str, object],
    items: Sequence[CatalogueCost],
    users: Sequence[UsersCost],
    unit: Unit,
    read_from: Sequence[str],
) -> str:
    """Markdown. `unit`: a Recommend's cost but for what depends on the catalogue; `read_from`: where its numbers stand."""
    sizes = [cost.items for cost in items]
    lines = [
        "# How cost grows",
        "",
        f"Rendered by `make bench-scale` from what it measured on {in_words(where)}; nothing here is typed by hand.",
        "",
        "## The catalogue",
        "",
        ABOUT_CATALOGUE,
        "",
        _row("what", *(f"{size:,}" for size in sizes), "b", f"{ON_PAPER:,}"),
        _row(*["---"] * (len(sizes) + 3)),
    ]
    for title, name in CATALOGUE.items():
        costs = [getattr(cost, name) for cost in items]
        b = exponent(sizes, costs)
        paper = costs[-1] * (ON_PAPER / sizes[-1]) ** exponent(sizes[-2:], costs[-2:])
        lines.append(_row(title, *map(_number, costs), f"{b:.2f}", _number(paper)))
    rates = (f"{cost.searches_a_second:,.0f}" for cost in items)
    lines += [
        _row(f"recall@{K}", *(f"{cost.recall:.3f}" for cost in items), "", ""),
        _row(f"searches a second, {AT_A_TIME} in flight", *rates, "", ""),
        "",
        ABOUT_INDEX,
        "",
        "![Cost against the catalogue](scale.png)",
        "",
        "## Users",
        "",
        f"Histories of {EVENTS} events in one Redis, beside everything else.",
        "",
        _row("what", *(f"{cost.users:,}" for cost in users)),
        _row(*["---"] * (len(users) + 1)),
        *(_row(title, *(_number(getattr(cost, name)) for cost in users)) for title, name in USERS.items()),
        "",
        "## What a shop needs",
        "",
        ABOUT_SIZES.format(unit=unit, read_from=", ".join(read_from)),
        "",
        _row("requests / s", "items", "users", "gateway processes", "cores for Triton", "cores for Milvus", *COSTS),
        _row(*["---"] * 9),
    ]
    for cost in items:
        known = replace(unit, search_ms=cost.milvus_cpu_ms, gateway_mb=cost.gateway_mb, milvus_mb=cost.milvus_mb)
        for requests, count in SHOPS:
            n = need(known, requests, count, cost.items)
            counts = (n.requests, n.items, n.users, n.gateways, n.triton_cores, n.milvus_cores)
            sizes_gb = (f"{n.redis_gb:,.2g}", f"{n.milvus_gb:,.2g}")
            lines.append(_row(*(f"{number:,}" for number in counts), *sizes_gb, f"{n.dollars_a_million:.2f}"))
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def plot(items: Sequence[CatalogueCost], path: Path) -> None:
    """One panel a cost, both axes logarithmic, as PNG."""
    sizes = [cost.items for cost in items]
    figure, axes = plt.subplots(2, 3, figsize=(10, 5.4), layout="constrained")
    for axis, (title, name) in zip(axes.flat, CATALOGUE.items(), strict=True):
        costs = [getattr(cost, name) for cost in items]
        b = exponent(sizes, costs)
        axis.loglog(sizes, costs, "o", color="#3b7dd8")
        middle = sum(cost / size**b for cost, size in zip(costs, sizes, strict=True)) / len(sizes)
        axis.loglog(sizes, [middle * size**b for size in sizes], "-", color="#8aa9d6", label=f"b = {b:.2f}")
        axis.set_title(title, fontsize=10)
        axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axis.minorticks_off()
        axis.set_ylim(min(costs) / 3, max(costs) * 3)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)
