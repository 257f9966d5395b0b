"""Four weeks of nightly releases on Complete Journey, each asked for the orders of the day after it:

python -m benchmarks.nights [--days 28] [--seed 0]      → benchmarks/results/nights.json

monthly     one release, trained until the last month begins
statistics  the weights of that release; statistics and factors of items are of the day
nightly     each night starts from the weights of the night before, and takes a fifth of the steps
anew        on the first night and every week: trained anew until that day, for its time and its quality

All of them read the same histories, up to the moment of each order. The nights take hours; what is done is kept in
.baguni/nights, and the same command goes on.
"""

# Q = orders to predict

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import click
import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.measure import Paired, Truth, compare, order_values
from benchmarks.quality.ours import ranked_lists
from benchmarks.result import RESULTS, Row, write_result
from trainer.cli import progress_bars
from trainer.data.complete_journey import prepare
from trainer.data.queries import OrderQueries
from trainer.data.splits import local_ms
from trainer.evaluate import retrieval_ranker
from trainer.files import share, written_whole
from trainer.model import DualHeadModel
from trainer.recipes import Recipe, recipe_named
from trainer.run import ITEM_FILES, Progress, Run

DATA, WORK = Path(".baguni/complete-journey"), Path(".baguni/nights")
METRIC = "NDCG@10"
MAX_SHARE = 0.2
WEEK = 7
MIN_ORDERS = 5
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class Day:
    """The orders of a day. user_Q: their users; values: of each model, [Q]; seconds: of the trainings before that day; moved:
    items whose Semantic ID differs from that of the night before."""

    user_Q: Int64
    values: dict[str, Float64]
    seconds: dict[str, float]
    moved: int

    def save(self, path: Path) -> None:
        """Write one .npz file."""
        seconds = {f"seconds {name}": np.float64(value) for name, value in self.seconds.items()}
        values = {f"value {name}": value_Q for name, value_Q in self.values.items()}
        with written_whole(path) as file:
            np.savez(file, user_Q=self.user_Q, moved=np.int64(self.moved), **values, **seconds)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path) -> Day:
        """Read what `save` wrote."""
        with np.load(path) as file:
            found = dict(file)
        values = {name.removeprefix("value "): found[name] for name in found if name.startswith("value ")}
        seconds = {name.removeprefix("seconds "): float(found[name]) for name in found if name.startswith("seconds ")}
        return cls(found["user_Q"], values, seconds, int(found["moved"]))


class Nights:
    """The runs of one seed, and what each model is worth on each day."""

    def __init__(self, data: Path, work: Path, recipe: Recipe, progress: Progress) -> None:
        self.data, self.work, self.recipe, self._progress = data, work, recipe, progress
        self.first = Run(work / "first", data, recipe)
        self.first.train_all(progress)
        self._seconds: dict[str, float] = {}
        self._moved = 0

    def day(self, number: int) -> Day:
        """Return a day of the month, 0 for the first."""
        path = self.work / f"day-{number:02}.npz"
        start_ms, end_ms = self.midnight(number), self.midnight(number + 1)
        if not path.is_file():
            self._seconds, self._moved = {}, 0
            queries = OrderQueries.of(self.first.dataset, start_ms, end_ms, MIN_ORDERS)
            values = {name: _values(*models, queries) for name, models in self._models(number, start_ms).items()}
            Day(queries.user_Q, values, self._seconds, self._moved).save(path)
        return Day.load(path)

    def midnight(self, number: int) -> int:
        """Return when a day begins by the store's clock, ms UTC."""
        zone = self.first.dataset.store_timezone
        month = datetime.fromtimestamp(self.first.test_start_ms / 1000, UTC).astimezone(ZoneInfo(zone))
        return local_ms(month.replace(tzinfo=None) + timedelta(days=number), zone)

    def _models(self, number: int, until_ms: int) -> dict[str, tuple[Run, DualHeadModel]]:
        models = {"monthly": (self.first, self.first.model())}
        if number == 0:
            return models | dict.fromkeys(("statistics", "nightly", "anew"), models["monthly"])
        fresh = self._based_on(self.first, f"statistics-{number:02}", until_ms)
        models["statistics"] = (fresh, fresh.starting_model().eval())
        before = self.first if number == 1 else self._night(number - 1, self.midnight(number - 1))
        night = self._night(number, until_ms, before)
        models["nightly"] = (night, night.model())
        if number % WEEK == 0:
            anew = Run(self.work / f"anew-{number:02}", self.data, replace(self.recipe, until_ms=until_ms))
            share(self.first.path, anew.path, ITEM_FILES)
            self._timed("anew", anew)
            models["anew"] = (anew, anew.model())
        return models

    def _night(self, number: int, until_ms: int, before: Run | None = None) -> Run:
        """Return the night's run; it is trained if `before` is given."""
        name = f"night-{number:02}"
        if before is None:
            return Run(self.work / name, self.data, self.recipe.warm(until_ms))
        run = self._based_on(before, name, until_ms)
        self._timed("nightly", run)
        own, theirs = run.published_ids, before.published_ids
        self._moved = sum(own[item_id] != codes for item_id, codes in theirs.items())
        return run

    def _based_on(self, before: Run, name: str, until_ms: int) -> Run:
        path = self.work / name
        before.become_base_of(path)
        run = Run(path, self.data, self.recipe.warm(until_ms))
        run.dataset = self.first.dataset
        run.fit_semantic_ids(self._progress)
        return run

    def _timed(self, kind: str, run: Run) -> None:
        is_begun = (run.path / "dual_head.pt").is_file()
        _ = run.statistics  # both kinds need them
        started = time.monotonic()
        run.train_all(self._progress)
        if not is_begun:
            self._seconds[kind] = time.monotonic() - started


def _values(run: Run, model: DualHeadModel, queries: OrderQueries) -> Float64:
    """Return the [Q] values of one model on the orders of a day."""
    lists = ranked_lists(retrieval_ranker(model, run), run, queries)
    return order_values(lists, Truth(queries))["all"][METRIC]


def rows_of(days: Sequence[Day]) -> list[Row]:
    """Return the rows of the days: quality, time and Semantic IDs."""
    where = f"Complete Journey, {len(days)} days, {METRIC} of the day after each release"
    rows = []
    for name, other in (("nightly", "monthly"), ("nightly", "statistics"), ("statistics", "monthly")):
        found = _compared(days, name, other)
        said = f"{where}: {name} less {other} [{found.low:+.4f}, {found.high:+.4f}]"
        if (name, other) == ("nightly", "monthly"):
            rows.append(Row(said, found.difference, "", "> 0, interval above 0", found.low > 0, other, found.base))
        else:
            rows.append(Row.reported(said, found.difference, "", (other, found.base)))
    weekly = [day for day in days if "anew" in day.values]
    found = _compared(weekly, "nightly", "anew")
    said = f"{len(weekly)} of these days: nightly less a training anew [{found.low:+.4f}, {found.high:+.4f}]"
    rows.append(Row.reported(said, found.difference, "", ("anew", found.base)))
    warm_s, anew_s = ([day.seconds[kind] for day in days if kind in day.seconds] for kind in ("nightly", "anew"))
    if warm_s and anew_s:
        beside = ("anew", float(np.median(anew_s)))
        rows.append(
            Row.at_most_times("median time of a night's training", float(np.median(warm_s)), "s", MAX_SHARE, beside)
        )
    rows.append(Row.at_most("items whose Semantic ID moved in these nights", sum(day.moved for day in days), "", 0))
    return rows


def _compared(days: Sequence[Day], name: str, other: str) -> Paired:
    mine, theirs = (np.concatenate([day.values[each] for day in days]) for each in (name, other))
    return compare([mine], [theirs], np.concatenate([day.user_Q for day in days]))


@click.command()
@click.option("--days", default=28, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(days: int, seed: int) -> None:
    """Train and measure what is missing, and write the result."""
    if not DATA.is_dir():
        prepare(DATA)
    with progress_bars() as progress:
        nights = Nights(DATA, WORK / f"seed{seed}", recipe_named("demo", seed=seed), progress)
        found = [nights.day(number) for number in range(days)]
    for row in (rows := rows_of(found)):
        click.echo(row)
    write_result(RESULTS / "nights.json", "nights", "make bench-nights", rows)


if __name__ == "__main__":
    main()
