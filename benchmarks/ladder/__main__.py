"""Measure the ladder: `python -m benchmarks.ladder [--data complete-journey|planted] [--rungs NAMES] [--seeds 0,1,2]`.

benchmarks/results/ladder/ has a value for each order and model, so that a ladder may be measured in parts and on several
machines; benchmarks/results/ladder.json is made from all of them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click
import numpy as np

from benchmarks.ladder.models import IN_SHORT, VARIANTS, RungModels
from benchmarks.ladder.planted import write_planted_shop
from benchmarks.ladder.report import write_ladder
from benchmarks.ladder.rungs import recipe_of_rung, rungs_of
from benchmarks.quality.shop import Shop
from benchmarks.result import RESULTS
from trainer.cli import progress_bars
from trainer.data.complete_journey import prepare

VALUES = RESULTS / "ladder"
WORK = Path(".baguni/ladder")
MIN_ORDERS = {"complete-journey": 5, "planted": 1}
MAX_QUERIES = 12_000  # orders to predict: more are a random part of them


def shop_of(name: str) -> Shop:
    """Return a data set, made if it is not there."""
    path = Path(".baguni") / name
    if not path.is_dir():
        write_planted_shop(path) if name == "planted" else prepare(path)
    shop = Shop.open(name, path, WORK, MIN_ORDERS[name])
    if len(shop.queries) > MAX_QUERIES:
        chosen = np.random.default_rng(0).choice(len(shop.queries), MAX_QUERIES, replace=False)
        shop = replace(shop, queries=shop.queries.at(np.sort(chosen)))
    return shop


@click.command()
@click.option("--data", type=click.Choice(list(MIN_ORDERS)), default="complete-journey", show_default=True)
@click.option("--rungs", default="", help="Names, with commas. [all]")
@click.option("--seeds", default="0,1,2", show_default=True)
@click.option("--report-only", is_flag=True, help="Train nothing.")
def main(data: str, rungs: str, seeds: str, report_only: bool) -> None:
    """Train what is missing of a ladder, and write its report."""
    wanted = [each for each in rungs_of(data) if not rungs or each.name in rungs.split(",")]
    shop = shop_of(data)
    for seed in [] if report_only else map(int, seeds.split(",")):
        for rung in wanted:
            path = VALUES / data / f"{rung.name}-seed{seed}.npz"
            if path.is_file():
                continue
            recipe = recipe_of_rung(rung, data, seed)
            with progress_bars() as progress:
                models = RungModels(shop, shop.folder / f"{rung.name}-seed{seed}", recipe, progress)
                models.values(VARIANTS if rung.is_whole else IN_SHORT).save(path)
    measured = {name: shop_of(name) for name in MIN_ORDERS if list((VALUES / name).glob("*.npz"))}
    for row in write_ladder(VALUES, measured):
        click.echo(row)


if __name__ == "__main__":
    main()
