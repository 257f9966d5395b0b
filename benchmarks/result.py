"""The form of a benchmark's result, and the page made of all results:

python -m benchmarks.result        writes docs/benchmarks.md
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "benchmarks" / "results"
PAGE = REPOSITORY / "docs" / "benchmarks.md"
WRITTEN = ("benchmarks/results", "docs/benchmarks.md")  # by benchmarks, from the root

Beside = tuple[str, float]
"""The name and the value of something else that was measured in the same run."""
NOTHING: tuple[str, None] = ("", None)


@dataclass(frozen=True)
class Row:
    """One number. `bar`: the promise in words, "reported" if there is none; `reference`: something else that was measured in
    the same run. The constructors below state a bar once and derive words and verdict."""

    what: str
    value: float
    unit: str
    bar: str
    holds: bool
    reference: str = ""
    reference_value: float | None = None

    @classmethod
    def reported(cls, what: str, value: float, unit: str, beside: Beside | tuple[str, None] = NOTHING) -> Row:
        """Return a row without a bar."""
        return cls(what, value, unit, "reported", True, *beside)

    @classmethod
    def at_most(
        cls, what: str, value: float, unit: str, limit: float, beside: Beside | tuple[str, None] = NOTHING
    ) -> Row:
        """Return a row that holds up to a limit."""
        bar = f"≤ {_in_digits(limit)} {unit}".strip() if limit else "0"
        return cls(what, value, unit, bar, value <= limit, *beside)

    @classmethod
    def at_most_times(cls, what: str, value: float, unit: str, factor: float, beside: Beside) -> Row:
        """Return a row that holds up to a multiple of the value beside it."""
        return cls(what, value, unit, f"≤ {factor:g} ×", value <= factor * beside[1], *beside)

    @classmethod
    def at_least(
        cls, what: str, value: float, unit: str, limit: float, beside: Beside | tuple[str, None] = NOTHING
    ) -> Row:
        """Return a row that holds from a limit on."""
        return cls(what, value, unit, f"≥ {_in_digits(limit)} {unit}".strip(), value >= limit, *beside)

    @classmethod
    def at_least_times(cls, what: str, value: float, unit: str, factor: float, beside: Beside) -> Row:
        """Return a row that holds from a multiple of the value beside it on."""
        return cls(what, value, unit, f"≥ {factor:g} ×", value >= factor * beside[1], *beside)

    @property
    def ratio(self) -> float | None:
        """The value over its reference."""
        return self.value / self.reference_value if self.reference_value else None

    def __str__(self) -> str:
        """As it is printed while a benchmark runs."""
        beside = f"   {self.reference}: {self.reference_value:.4g}" if self.reference_value is not None else ""
        return f"{self.what}: {self.value:.4g} {self.unit}{beside}   {self.bar}: {'' if self.holds else 'MISSED'}"


def _in_digits(limit: float) -> str:
    """Return a limit with commas between thousands, never in scientific notation."""
    return f"{limit:,}" if isinstance(limit, int) else f"{limit:,.10g}"


def write_result(path: Path, name: str, command: str, rows: Sequence[Row]) -> None:
    """Write one benchmark's rows with where and on what they were measured, and the page of all results."""
    result = {
        "name": name,
        "commit": commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "machine": machine(),
        "rows": [{**asdict(row), "ratio": row.ratio} for row in rows],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    if path.parent == RESULTS:
        write_page()


def write_page() -> None:
    """Write docs/benchmarks.md from the results."""
    PAGE.write_text(render([json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]))


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    cpuinfo = Path("/proc/cpuinfo").read_text().splitlines()
    model = next(
        (line.split(":")[1].strip() for line in cpuinfo if line.startswith("model name")), platform.processor()
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"cpu": model, "cores": os.cpu_count(), "memory_gb": round(memory), "gpu": None}


def in_words(where: dict[str, Any]) -> str:
    """A machine as the pages name it."""
    return f"{where['cores']} cores of {where['cpu']}, {where['memory_gb']} GB, {where['gpu'] or 'no GPU'}"


def render(results: Sequence[dict[str, Any]]) -> str:
    """All results as one Markdown page."""
    lines = [
        "# Benchmarks",
        "",
        "Rendered from `benchmarks/results/` by `make bench-page`; nothing here is typed by hand.",
        "",
    ]
    for result in results:
        lines += [
            f"## {result['name']}",
            "",
            f"`{result['command']}`, {result['date'][:10]}, commit {result['commit'][:12]}, "
            f"{in_words(result['machine'])}.",
            "",
            "| what | measured | beside it | bar | holds |",
            "| --- | --- | --- | --- | --- |",
        ]
        for row in result["rows"]:
            beside = f"{row['reference']}: {row['reference_value']:.4g}" if row["reference"] else ""
            holds = "yes" if row["holds"] else "**no**"
            lines.append(f"| {row['what']} | {row['value']:.4g} {row['unit']} | {beside} | {row['bar']} | {holds} |")
        lines.append("")
    return "\n".join(lines)


def commit() -> str:
    """Return what the numbers were measured on: the commit, and whether the tree had changes beyond it. Results are none: a
    benchmark writes them."""
    changes = _git("status", "--porcelain", "--", ".", *(f":!{path}" for path in WRITTEN))
    return _git("rev-parse", "HEAD") + ("+changes" if changes else "")


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    return done.stdout.strip()


if __name__ == "__main__":
    write_page()
