"""Pieces of a Markdown page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any


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
    shown = f"{found['mean']:.4f}"
    return f"{f'**{shown}**' if found['mean'] == best else shown} [{found['low']:.4f}, {found['high']:.4f}]"


def signed(row: dict[str, Any]) -> str:
    """A paired difference with its interval."""
    return f"{row['difference']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}]"


def spread(cells: dict[str, Any]) -> str:
    """How far the seeds lie apart, empty where there is one."""
    deviation = cells["NDCG@10"]["spread"]
    return "" if deviation is None else f"{deviation:.4f}"
