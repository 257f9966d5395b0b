"""Compare what `baguni train` does without an option with the best simple peer, month by month:

python -m benchmarks.months [--months 5] [--seeds 0]      → benchmarks/results/months.json

Each month is predicted by the default recipe and by the peers that `baguni train` prints, all trained on what came before it.
Amazon data, if `baguni data prepare amazon` has written them to .baguni, have one month, their last, and lists without what the
user has. Trainings take minutes each; what is done is kept in .baguni/months, and the same command goes on.
"""

# Q = orders to predict

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import click
import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.measure import K, Lists, Setting, Truth, compare, order_values
from benchmarks.quality.ours import ranked_lists
from benchmarks.quality.peers import Tuned, peer_lists
from benchmarks.quality.shop import MIN_ORDERS, NO_REPEATS
from benchmarks.result import RESULTS, Row, write_result
from trainer.cli import progress_bars
from trainer.data.complete_journey import prepare
from trainer.data.dataset import Dataset
from trainer.data.queries import OrderQueries
from trainer.data.reading import load_dataset
from trainer.data.splits import last_month_start_ms
from trainer.evaluate import retrieval_ranker, simple_peers
from trainer.files import share, written_whole
from trainer.recipes import Recipe, recipe_named
from trainer.run import ITEM_FILES, Progress, Run

STATE, WORK = Path(".baguni"), Path(".baguni/months")
DEFAULT = "demo"  # the recipe of `baguni train`
METRIC = f"NDCG@{K}"
OURS = "ours"
Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Month:
    """A month of a data set that ends with it. start_ms: when the month begins, ms UTC"""

    data: str
    dataset: Dataset
    start_ms: int

    @property
    def setting(self) -> Setting:
        """Return what counts: what is new where nobody has an item twice."""
        return "novel" if self.data in NO_REPEATS else "all"

    @property
    def name(self) -> str:
        """Return the year and the month."""
        start = datetime.fromtimestamp(self.start_ms / 1000, UTC).astimezone(ZoneInfo(self.dataset.store_timezone))
        return f"{start:%Y-%m}"

    @property
    def queries(self) -> OrderQueries:
        """Return its orders, of users with enough orders before it."""
        return OrderQueries.of(self.dataset, self.start_ms, min_orders=MIN_ORDERS[self.data])


def months_of(data: str, number: int) -> Iterator[Month]:
    """Return the last months of a data set, the newest first."""
    dataset = load_dataset(STATE / data)
    for _ in range(1 if data in NO_REPEATS else number):
        start_ms = last_month_start_ms(dataset)
        yield Month(data, dataset, start_ms)
        dataset = dataset.before(start_ms)


def measured(month: Month, recipe: Recipe, progress: Progress) -> dict[str, Float64]:
    """Return [Q] values of the default recipe and of every simple peer; what is there is not made again."""
    path = WORK / month.data / f"{month.name}-seed{recipe.seed}.npz"
    if not path.is_file():
        run = Run(path.with_suffix(""), STATE / month.data, replace(recipe, until_ms=month.start_ms))
        run.dataset = month.dataset
        items = WORK / month.data / f"items-seed{recipe.seed}"  # texts and Semantic IDs know no order
        if items.is_dir():
            share(items, run.path, ITEM_FILES)
        run.embed_items(progress)
        run.fit_semantic_ids(progress)
        items.mkdir(parents=True, exist_ok=True)
        share(run.path, items, ITEM_FILES)
        run.train_all(progress)
        queries = month.queries
        lists: dict[str, Lists] = {OURS: ranked_lists(retrieval_ranker(run.model(), run), run, queries)}
        for name, peer in simple_peers(run).items():
            lists[name] = peer_lists(month.dataset, queries, Tuned(peer, peer))
        truth = Truth(queries)
        values = {name: order_values(each, truth)[month.setting][METRIC] for name, each in lists.items()}
        with written_whole(path) as file:
            np.savez(file, **values)  # type: ignore[arg-type]
    with np.load(path) as found:
        return dict(found)


def rows_of(month: Month, value_by_seed: list[dict[str, Float64]]) -> Iterator[Row]:
    """Return a row for all orders and, if they differ, one for the first of each user: ours less the best simple peer."""
    truth = Truth(month.queries)
    for mode in truth.modes:
        inside, users = truth.within(month.setting, mode), truth.users(month.setting)
        peers = {name: value[inside] for name, value in value_by_seed[0].items() if name != OURS}
        best = max(peers, key=lambda name: peers[name].mean())
        ours = [values[OURS][inside] for values in value_by_seed]
        paired = compare(ours, [peers[best]], users[inside])
        orders = "each user's first order" if mode == "first" else "all orders"
        interval = f"[{paired.low:+.4f}, {paired.high:+.4f}]"
        what = f"{month.data}, {month.name}, {orders}: {METRIC} less the best simple peer's {interval}"
        yield Row.at_least(what, paired.difference, "", 0, (best, paired.base))


@click.command()
@click.option("--months", default=5, show_default=True, help="Months of Complete Journey, from the last one back.")
@click.option("--seeds", default=1, show_default=True)
def main(months: int, seeds: int) -> None:
    """Train and measure what is missing, and write the result."""
    if not (STATE / "complete-journey").is_dir():
        prepare(STATE / "complete-journey")
    rows: list[Row] = []
    with progress_bars() as progress:
        for data in (name for name in MIN_ORDERS if (STATE / name).is_dir()):
            for month in months_of(data, months):
                recipes = (recipe_named(DEFAULT, seed=seed) for seed in range(seeds))
                rows += rows_of(month, [measured(month, recipe, progress) for recipe in recipes])
                write_result(RESULTS / "months.json", "months", "make bench-months", rows)
    for row in rows:
        click.echo(row)


if __name__ == "__main__":
    main()
