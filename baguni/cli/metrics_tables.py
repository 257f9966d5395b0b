"""A release's metrics as tables for a terminal of 80 columns. Knows nothing of how they were measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table

QUESTIONS = {"all": "all items", "novel": "items never bought before"}


def metrics_tables(metrics: Mapping[str, Any]) -> Iterator[Table]:
    """Yield a table for each question, a row for each model. `metrics` is what the trainer's evaluation writes: `k`, `mode`,
    `orders`, and `models`, which maps a model's name to its metrics on all and on novel items; `base` if the orders are those
    since an earlier release, which the new model has learned from."""
    k, names = metrics["k"], ("HR", "Recall", "NDCG")
    which = "first orders" if metrics["mode"] == "first" else "orders"
    for setting, question in QUESTIONS.items():
        month = f"since {metrics['base']}, which has not seen them" if "base" in metrics else "of the unseen test month"
        table = Table(title=f"{metrics['orders']:,} {which} {month}: {question}")
        table.add_column("model", overflow="fold")
        for name in names:
            table.add_column(f"{name}@{k}", justify="right", no_wrap=True)
        for model, settings in metrics["models"].items():
            table.add_row(model, *(f"{settings[setting][f'{name}@{k}']:.4f}" for name in names))
        yield table
