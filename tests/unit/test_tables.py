"""The tables of `demo`, `train`, `evaluate` and `benchmark quality` fit a terminal of 80 columns without a cut word."""

from __future__ import annotations

import json
from collections.abc import Iterable
from types import SimpleNamespace

import pytest
from rich.console import Console
from rich.table import Table

from baguni.cli.metrics_tables import metrics_tables
from baguni.domain.catalog import Catalog, Item
from benchmarks.quality.cli import promises_table
from benchmarks.result import RESULTS, Row
from deploy.local.demo.freshness import Freshness
from deploy.local.demo.households import NextOrder, Shown
from deploy.local.demo.tables import household_tables, timing_table

TITLES = ("FROZEN ORANGE JUICE CONCENTRATES 12 OZ", "REFRIGERATED COFFEE CREAMERS", "UNSWEETENED", "라면 사리 멀티팩")
MODELS = ("global popularity", "personal frequency × recency", "retrieval before distillation", "retrieval, distilled")


def metrics() -> Iterable[Table]:
    values = {f"{name}@10": 0.123456 for name in ("HR", "Recall", "NDCG")}
    models = {model: {"all": values, "novel": values} for model in MODELS}
    return metrics_tables({"k": 10, "mode": "rolling", "orders": 1_234_567, "models": models})


def household() -> Iterable[Table]:
    items = [Item(str(number), TITLES[number % len(TITLES)], (), {}) for number in range(10)]
    ids = [item.item_id for item in items]
    shown = Shown(NextOrder("user-12345", "order", 1_700_000_000_000, tuple(ids[:3])), ids, ids, ids, ids)
    return household_tables(shown, SimpleNamespace(catalog=Catalog(items, {})))


def promises() -> Iterable[Table]:
    rows = json.loads((RESULTS / "quality.json").read_text())["rows"]
    return [promises_table([Row(*(row[name] for name in ("what", "value", "unit", "bar", "holds"))) for row in rows])]


def timing() -> Iterable[Table]:
    return [timing_table(Freshness([0.1234], [12.5], 1.25, 2.5))]


@pytest.mark.parametrize("tables", [metrics, household, promises, timing])
def test_no_word_is_cut_at_80_columns(tables) -> None:
    console = Console(width=80)
    with console.capture() as capture:
        console.print(*tables())
    lines = capture.get().splitlines()
    assert len(lines) > 4
    assert max(map(len, lines)) <= 80
    assert "…" not in capture.get(), capture.get()
