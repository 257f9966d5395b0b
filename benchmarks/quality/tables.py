"""Pieces of a Markdown page."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

NO_BREAK = "\u00a0"


def picture(summary: dict[str, Any], name: str) -> Iterator[str]:
    """The place of a picture."""
    yield from (f"<!-- picture: {summary['dataset']}/{name} -->", "")


def table(titles: Sequence[object], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    """A Markdown table, and an empty line."""
    yield "| " + " | ".join(map(str, titles)) + " |"
    yield "| " + " | ".join("---" for _ in titles) + " |"
    for row in rows:
        yield "| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |"
    yield ""


def cell(found: dict[str, Any], best: float | None = None) -> str:
    """A mean with its interval, bold where it is the best of its column."""
    shown = number(found["mean"])
    interval = f"[{number(found['low'])}, {number(found['high'])}]"
    return f"{f'**{shown}**' if found['mean'] == best else shown} {interval}".replace(" ", NO_BREAK)


def signed(row: dict[str, Any]) -> str:
    """A paired difference with its interval."""
    found = [number(row[key], "+") for key in ("difference", "low", "high")]
    return f"{found[0]} [{found[1]}, {found[2]}]".replace(" ", NO_BREAK)


def percent(row: dict[str, Any]) -> str:
    """Return a paired difference in percent of its base, empty for a base of 0."""
    return "" if row["relative"] is None else f"{100 * row['relative']:+.1f}\u00a0%".replace("-", "−")


def spread(cells: dict[str, Any]) -> str:
    """How far the seeds lie apart, empty where there is one."""
    deviation = cells["NDCG@10"]["spread"]
    return "" if deviation is None else number(deviation)


def number(value: float, sign: str = "") -> str:
    """Four digits; a share needs no zero before its point, and a minus is as wide as a plus.

    >>> number(0.22041), number(-0.012, "+")
    ('.2204', '−.0120')
    """
    return re.sub(r"^([+-]?)0\.", r"\1.", f"{value:{sign}.4f}").replace("-", "−")
