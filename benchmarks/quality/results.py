"""The files that a measurement leaves in the repository.

benchmarks/results/quality.json                  the promised numbers of all data sets, for docs/benchmarks.md
benchmarks/results/quality/DATASET/summary.json  everything derived, see summary.py
benchmarks/results/quality/DATASET/C-seed0.json  one run
docs/quality.md, docs/quality.html               the report
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.quality.page import html_page
from benchmarks.quality.plots import pictures
from benchmarks.quality.promises import WORDS, promised_rows
from benchmarks.quality.report import render
from benchmarks.quality.store import Record, slug
from benchmarks.result import Row, write_result


def write_runs(folder: Path, summary: dict[str, Any], records: list[Record], command: str) -> None:
    """One file a run: who, how, on what, and its metrics."""
    folder.mkdir(parents=True, exist_ok=True)
    for record in records:
        about = asdict(record)
        name = f"{slug(record.contender)}-seed{record.seed}"
        result = {
            "name": f"quality/{summary['dataset']}/{name}",
            **{key: about.pop(key) for key in ("commit", "date")},
            "command": command,
            "machine": about.pop("machine"),
            **about,
            "rows": [asdict(row) for row in _run_rows(summary, record)],
        }
        (folder / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """Everything derived of one data set."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")


def write_report(results: Path, docs: Path, command: str) -> list[Row]:
    """The promised numbers and the report, from the summaries of all data sets; returns the promised numbers."""
    paths = sorted((results / "quality").glob("*/summary.json"), key=lambda path: (path.parent.name != FIRST, path))
    summaries = [json.loads(path.read_text()) for path in paths]
    rows = [row for summary in summaries for row in promised_rows(summary)]
    write_result(results / "quality.json", "quality", command, rows)
    markdown = render(summaries, rows)
    drawn = {f"{summary['dataset']}/{name}": svg for summary in summaries for name, svg in pictures(summary).items()}
    docs.mkdir(parents=True, exist_ok=True)
    (docs / "quality.md").write_text(markdown)
    (docs / "quality.html").write_text(html_page(markdown, drawn))
    return rows


FIRST = "complete-journey"


def _run_rows(summary: dict[str, Any], record: Record) -> list[Row]:
    place = summary["contenders"][record.contender]["seeds"].index(record.seed)
    return [
        Row.reported(f"{mode}, {WORDS[setting]}: {metric}", cell["seeds"][place], "")
        for mode, settings in summary["metrics"][record.contender].items()
        for setting, metrics in settings.items()
        for metric, cell in metrics.items()
    ]
