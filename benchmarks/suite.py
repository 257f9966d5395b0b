"""How long the test command takes, and whether it passes on a slow machine:

python -m benchmarks.suite [--unit N] [--full N] [--slow N]      adds runs to benchmarks/results/tests.json

Every run of the suite is in an order of its own. A slow one shares the cores with two busy processes for each core, which
leaves it about a third of their time; `--busy` changes their number where other work makes the machine busy. Machines differ,
so each row has the time of a fixed computation beside it, made after the run and beside the same processes. Rows are added and
none is removed: a series of runs takes hours, and may be made in parts. Use an otherwise idle machine for the others, after
`make setup analysis tools`.
"""

from __future__ import annotations

import json
import math
import os
import re
import statistics
import subprocess
import sys
import time
import timeit
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from datetime import UTC, datetime
from functools import cache

import click

from benchmarks.result import REPOSITORY, RESULTS, Row, commit, write_result

RESULT = RESULTS / "tests.json"
LOGS = REPOSITORY / ".baguni" / "suite"  # what each run printed
BUSY_PER_CORE = 2
LAST_LINE = re.compile(r"(\d+) (passed|failed|errors?|skipped)")
FULL_BAR_MIN, UNIT_BAR_S = 12.0, 90.0


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """Keep this many processes computing."""
    started = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def fixed_s() -> float:
    """Return the seconds that a fixed computation takes, the median of fifteen: what is left of this machine for a process now.
    The least would be of a moment in which nothing else ran."""
    return statistics.median(timeit.repeat("sum(range(10_000_000))", number=1, repeat=15))


@cache
def measured_commit() -> str:
    """Return the short commit of the series, and whether the tree had changes; asked once, because the result is part of it."""
    name, plus, changes = commit().partition("+")
    return name[:7] + plus + changes


def earlier_rows() -> list[Row]:
    """Return the rows that the file has already."""
    if not RESULT.is_file():
        return []
    names = {field.name for field in fields(Row)}
    rows = json.loads(RESULT.read_text())["rows"]
    return [Row(**{name: value for name, value in row.items() if name in names}) for row in rows]


def run(target: str) -> tuple[float, dict[str, int]]:
    """Run a make target; return its seconds and how many tests had each outcome."""
    started = time.monotonic()
    LOGS.mkdir(parents=True, exist_ok=True)
    log = LOGS / f"{target}-{len(list(LOGS.iterdir())):03}.log"
    with log.open("w") as output:
        done = subprocess.run(["make", target], cwd=REPOSITORY, stdout=output, stderr=output, check=False)
    seconds = time.monotonic() - started
    lines = log.read_text().rstrip().splitlines()
    last = next((line for line in reversed(lines) if LAST_LINE.search(line)), "")
    print(f"{target}: {seconds:.0f} s, {last}, see {log}", flush=True)
    outcomes = {kind.rstrip("s"): int(count) for count, kind in LAST_LINE.findall(last)}
    return seconds, {"exit": done.returncode, **outcomes}


def unit_row() -> Row:
    """Return one run of the fast lane, in seconds."""
    return _row("make test-unit", *run("test-unit"), bar=UNIT_BAR_S, unit="s")


def suite_row(name: str, bar_min: float) -> Row:
    """Return one run of the whole suite, in minutes; it holds if every test passed within the bar."""
    seconds, outcomes = run("test")
    return _row(name, seconds / 60, outcomes, bar_min, "min")


def _row(name: str, took: float, outcomes: dict[str, int], bar: float, unit: str) -> Row:
    counted = ", ".join(f"{outcomes.get(kind, 0)} {kind}" for kind in ("passed", "failed", "error", "skipped"))
    holds = outcomes["exit"] == 0 and took <= bar
    expected = "passes" if math.isinf(bar) else f"passes, ≤ {bar:.0f} {unit}"
    made = f"{datetime.now(UTC):%d %b %Y %H:%M} UTC, {measured_commit()}"
    return Row(f"{name}: {counted} ({made})", took, unit, expected, holds, "a fixed computation, s", fixed_s())


@click.command()
@click.option("--unit", default=1, show_default=True, help="Runs of the fast lane.")
@click.option("--full", default=3, show_default=True, help="Runs on an idle machine.")
@click.option("--slow", default=2, show_default=True, help="Runs beside two busy processes a core.")
@click.option("--busy", "num_busy", type=int, default=None, help="Busy processes beside the slow runs. [two a core]")
def main(unit: int, full: int, slow: int, num_busy: int | None) -> None:
    """Run the suite again and again, and write what came of it."""
    rows = earlier_rows()

    def add(row: Row) -> None:
        rows.append(row)
        write_result(RESULT, "tests", "make bench-tests", rows)  # a series that is cut short leaves what it has

    for _ in range(unit):
        add(unit_row())
    for _ in range(full):
        add(suite_row("make test", FULL_BAR_MIN))
    with busy(BUSY_PER_CORE * (os.cpu_count() or 1) if num_busy is None else num_busy):
        for _ in range(slow):
            add(suite_row("make test at a third of the speed", math.inf))


if __name__ == "__main__":
    main()
