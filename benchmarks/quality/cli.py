"""`baguni benchmark quality`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.table import Table

from baguni.domain.errors import InvalidInputError

if TYPE_CHECKING:
    from benchmarks.quality.run import Contender
    from benchmarks.quality.shop import Shop
    from benchmarks.result import Row
    from trainer.recipes import Recipe

DATASETS = (
    "complete-journey",
    "amazon-beauty",
    "amazon-beauty-literature",
    "amazon-sports",
    "amazon-sports-literature",
)
COLD_ITEMS, DISCOUNTS = "cold-items", "discounts"
OURS = ("A", "B", "C", "served", "teacher", "generative", COLD_ITEMS, DISCOUNTS)


@click.group()
def benchmark() -> None:
    """Measure what is promised."""


@benchmark.command()
@click.option("--dataset", type=click.Choice(DATASETS), default=DATASETS[0], show_default=True)
@click.option("--data", type=click.Path(path_type=Path), default=None, help="The prepared data set. [.baguni/DATASET]")
@click.option("--seeds", default="0,1,2", show_default=True, help="Seeds of what chance has a part in.")
@click.option(
    "--contenders", default="peers,ours", show_default=True, help="Names or groups; an unknown one lists all."
)
@click.option("--recipe", "recipe_name", default=None, help="A recipe of trainer/recipes.py. [that of the data set]")
@click.option("--work", type=click.Path(path_type=Path), default=Path(".baguni/quality"), show_default=True)
@click.option("--report-only", is_flag=True, help="Train nothing: measure the lists that are there, and render.")
def quality(
    dataset: str,
    data: Path | None,
    seeds: str,
    contenders: str,
    recipe_name: str | None,
    work: Path,
    report_only: bool,
) -> None:
    """Train every contender, let all predict the same orders, and write docs/quality.md and docs/quality.html.

    What is there is not made again, so an interrupted benchmark goes on.

    \b
    baguni benchmark quality                                  Complete Journey, everybody, three seeds
    baguni benchmark quality --contenders C,EASE --seeds 0    two of them, once
    baguni data prepare amazon .baguni/amazon-beauty --source PATH
    baguni benchmark quality --dataset amazon-beauty          the field's standard data
    baguni benchmark quality --dataset amazon-beauty-literature     without training on the validation month
    """
    chosen_seeds = _seeds(seeds)
    from benchmarks.quality.shop import data_of
    from trainer.recipes import recipe_named

    path = data or Path(".baguni") / data_of(dataset)
    if not report_only or (work / dataset).is_dir():
        shop = _open(dataset, path, work, may_prepare=data is None)
        names = [name.strip() for name in contenders.split(",") if name.strip()]
        needs_recipe = bool({"ours", *OURS} & set(names))
        recipe = None
        if needs_recipe and not report_only:
            recipe = recipe_named(recipe_name or shop.data, until_ms=shop.until_ms)
        if not report_only:
            _run(shop, names, chosen_seeds, recipe)
        _measure(shop, chosen_seeds[0])
    _render()


def _seeds(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() for part in parts) or len(set(parts)) != len(parts):
        raise InvalidInputError(f"--seeds is {text!r}, expected different numbers such as 0,1,2")
    return [int(part) for part in parts]


def _open(dataset: str, path: Path, work: Path, may_prepare: bool) -> Shop:
    from benchmarks.quality.shop import MIN_ORDERS, Shop, data_of
    from trainer.data.complete_journey import prepare

    if not path.is_dir():
        if dataset != DATASETS[0] or not may_prepare:
            raise InvalidInputError(f"{path} does not exist: `baguni data prepare` writes it, see docs/quality.md")
        prepare(path)
    return Shop.open(dataset, path, work, MIN_ORDERS[data_of(dataset)])


def _run(shop: Shop, names: list[str], seeds: list[int], recipe: Recipe | None) -> None:
    from dataclasses import replace

    from benchmarks.quality.run import run_cold_items, run_contenders, run_discounts
    from trainer.cli import progress_bars

    contenders, more = _chosen(shop, names, recipe)
    run_contenders(shop, contenders, seeds, progress_bars)
    for name, run_one in ((COLD_ITEMS, run_cold_items), (DISCOUNTS, run_discounts)):
        if name in more and recipe is not None:
            with progress_bars() as progress:
                run_one(shop, replace(recipe, seed=seeds[0]), progress)


def _chosen(shop: Shop, names: list[str], recipe: Recipe | None) -> tuple[list[Contender], set[str]]:
    """Return the contenders of these names or groups, in the order of the report, and all names that are wanted."""
    from benchmarks.quality.run import our_contenders, peer_contenders, trained_peers, trees_contender
    from benchmarks.quality.shop import NO_REPEATS
    from benchmarks.quality.store import slug

    peers = [*peer_contenders(shop), *trained_peers(shop)]
    if shop.data not in NO_REPEATS:
        peers.append(trees_contender(shop))
    groups = {"peers": [slug(peer.name) for peer in peers], "ours": list(OURS)}
    known = [*groups["peers"], *OURS]
    wanted = {each for name in names for each in groups.get(name, [name])}
    for name in wanted - set(known):
        raise InvalidInputError(f"--contenders names {name!r}, expected some of {', '.join([*groups, *known])}")
    ours = [] if recipe is None else list(our_contenders(shop, recipe))
    return [one for one in (*peers, *ours) if slug(one.name) in wanted], wanted


def _measure(shop: Shop, seed: int) -> None:
    from baguni.domain.semantic_ids import SemanticIdTable
    from benchmarks.quality.results import write_runs, write_summary
    from benchmarks.quality.shop import KS
    from benchmarks.quality.summary import summarise
    from benchmarks.result import RESULTS

    records = shop.store.records()
    if not records:
        return
    table = shop.folder / "runs" / f"seed{seed}" / "semantic_ids.npz"
    summary = summarise(shop, KS[shop.data], SemanticIdTable.load(table) if table.is_file() else None)
    write_summary(RESULTS / "quality" / shop.name, summary)
    write_runs(RESULTS / "quality" / shop.name, summary, records, _command())


def _render() -> None:
    from rich.console import Console

    from benchmarks.quality.results import write_report
    from benchmarks.result import REPOSITORY, RESULTS

    if not list((RESULTS / "quality").glob("*/summary.json")):
        raise InvalidInputError("nothing was measured yet: run `baguni benchmark quality` without --report-only")
    rows = write_report(RESULTS, REPOSITORY / "docs", _command())
    Console().print(promises_table(rows))
    click.echo("Report: docs/quality.md and docs/quality.html")


def promises_table(rows: list[Row]) -> Table:
    """Return each promised number beside its bar."""
    table = Table("what", "measured", "bar", "holds", title="What was promised")
    for row in rows:
        table.add_row(row.what, f"{row.value:.4g} {row.unit}", row.bar, "yes" if row.holds else "[red]no")
    return table


def _command() -> str:
    return " ".join(["baguni", *sys.argv[1:]])
