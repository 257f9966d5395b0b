"""How long the test command takes, and whether it passes on a slow machine:

python -m benchmarks.suite [--full N] [--slow N]      writes benchmarks/results/tests.json

A slow run shares the cores with two busy processes for each core, which leaves it about a third of their time. Every run is in
an order of its own. Run it on an otherwise idle machine, after `make setup analysis tools`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import click

from benchmarks.result import REPOSITORY, RESULTS, Row, write_result

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


def suite_row(name: str, bar_min: float | None) -> Row:
    """One run of the whole suite, in minutes; it holds where every test passed within the bar."""
    seconds, outcomes = run("test")
    minutes = seconds / 60
    counted = ", ".join(f"{outcomes.get(kind, 0)} {kind}" for kind in ("passed", "failed", "error", "skipped"))
    holds = outcomes["exit"] == 0 and (bar_min is None or minutes <= bar_min)
    bar = "passes" if bar_min is None else f"passes, ≤ {bar_min:.0f} min"
    return Row(f"{name}: {counted}", minutes, "min", bar, holds)


@click.command()
@click.option("--full", default=3, show_default=True, help="Runs on an idle machine.")
@click.option("--slow", default=2, show_default=True, help="Runs beside two busy processes a core.")
def main(full: int, slow: int) -> None:
    """Run the suite again and again, and write what came of it."""
    seconds, outcomes = run("test-unit")
    name = f"make test-unit: {outcomes.get('passed', 0)} passed, {outcomes.get('failed', 0)} failed"
    holds = outcomes["exit"] == 0 and seconds <= UNIT_BAR_S
    rows = [Row(name, seconds, "s", f"passes, ≤ {UNIT_BAR_S:.0f} s", holds)]
    command = f"python -m benchmarks.suite --full {full} --slow {slow}"
    for number in range(full):
        rows.append(suite_row(f"make test, run {number + 1}", FULL_BAR_MIN))
        write_result(RESULTS / "tests.json", "tests", command, rows)  # a run that is cut short leaves what it has
    with busy(BUSY_PER_CORE * (os.cpu_count() or 1)):
        for number in range(slow):
            rows.append(suite_row(f"make test at a third of the speed, run {number + 1}", None))
            write_result(RESULTS / "tests.json", "tests", command, rows)


if __name__ == "__main__":
    main()
