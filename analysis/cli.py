"""`baguni experiment`: what an experiment has shown."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.table import Table

from baguni.cli.plain_console import PlainConsole
from baguni.domain.errors import InvalidInputError
from baguni.settings import Endpoints

if TYPE_CHECKING:
    from analysis.off_policy import Estimate

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group()
def experiment() -> None:
    """What experiments have shown, and what a candidate would have (docs/experiments.md).

    \b
    baguni experiment export shown/                                from the topics into Parquet
    baguni experiment analyze sale-page --control popular --exposures shown/exposures.parquet --actions shown/actions.parquet
    baguni experiment estimate --shown shown/shown.parquet --lists candidate.parquet
    """


@experiment.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
def export(folder: Path) -> None:
    """Write what the topics hold of exposures, clicks, carts and orders into FOLDER, for `analyze` and `estimate`."""
    from analysis.tables import read_topics, write_parquet

    tables = read_topics(Endpoints().kafka_bootstrap)
    write_parquet(tables, folder)
    pages = tables.shown["exposure_token"].nunique()
    found = f"{len(tables.exposures):,} exposures, {len(tables.actions):,} actions, {pages:,} pages ordered by chance"
    click.echo(f"{found}: {folder}")


@experiment.command()
@click.argument("key")
@click.option("--control", required=True, help="The control's variation key.")
@click.option("--exposures", type=FILE, default=None, help="Parquet; without it, the topics.")
@click.option("--actions", type=FILE, default=None, help="Parquet; without it, the topics.")
@click.option(
    "--days", type=click.FloatRange(min=0, min_open=True), default=14.0, show_default=True, help="That count."
)
@click.option(
    "--before-days", type=click.FloatRange(min=0), default=28.0, show_default=True, help="For CUPED; 0: without."
)
@click.option(
    "--weights", default="", help="How users are split, in the order of variation keys: 1,1,2. Default: alike."
)
@click.option("--planned-users", type=click.IntRange(min=0), default=0, help="At which it was to be read.")
@click.option("--page", type=click.Path(dir_okay=False, path_type=Path), default=None, help="Write the report here.")
def analyze(
    key: str,
    control: str,
    exposures: Path | None,
    actions: Path | None,
    days: float,
    before_days: float,
    weights: str,
    planned_users: int,
    page: Path | None,
) -> None:
    """What experiment KEY has shown, and what may be concluded."""
    from analysis.analyse import Plan, analyse, conclusion
    from analysis.metrics import Window
    from analysis.report import page as report
    from analysis.tables import read_parquet, read_topics

    if (exposures is None) != (actions is None):
        raise InvalidInputError("got one of --exposures and --actions, expected both or neither")
    if exposures is not None and actions is not None:
        tables = read_parquet(exposures, actions)
    else:
        tables = read_topics(Endpoints().kafka_bootstrap)
    plan = Plan(key, control, Window(days, before_days), _weights(weights), planned_users)
    found = analyse(tables, plan)
    console = PlainConsole()
    counts = ", ".join(f"{name} {count:,}" for name, count in found.users.items())
    console.print(
        f"Users: {counts}; {found.num_mixed:,} of more than one variation left out. Split: p = {found.ratio_p:.3g}"
    )
    table = Table("metric", "variation", "of control", "of variation", "effect at any moment", "chance to win")
    for result in found.results:
        effect, chance = result.now.sequential, result.now.bayesian.chance_to_win
        shown = effect.problem
        if effect.expected is not None and effect.low is not None and effect.high is not None:
            shown = f"{effect.expected:+.1%} ({effect.low:+.1%} to {effect.high:+.1%})"
        means = (f"{result.control_mean:,.4g}", f"{result.variation_mean:,.4g}")
        table.add_row(result.metric.title, result.variation, *means, shown, "" if chance is None else f"{chance:.1%}")
    console.print(table)
    for result in found.results:
        console.print(f"- {conclusion(found, result)}")
    if page is not None:
        page.write_text(report(found), encoding="utf-8")
        click.echo(f"report: {page}")


@experiment.command()
@click.option("--shown", type=FILE, required=True, help="shown.parquet of `export`.")
@click.option("--lists", type=FILE, required=True, help="What `baguni release replay --lists` wrote of a candidate.")
@click.option("--reward", default="click", show_default=True, help="click, cart or order.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def estimate(shown: Path, lists: Path, reward: str, as_json: bool) -> None:
    """What a candidate's lists would have earned, from lists in whose order chance had a share: before any test."""
    from analysis.off_policy import estimate as off_policy
    from analysis.tables import read_lists, read_shown

    found = off_policy(read_shown(shown), read_lists(lists), reward)
    if as_json:
        click.echo(json.dumps({**asdict(found), "conclusion": found.conclusion}, indent=2))
        return
    console = PlainConsole()
    console.print(
        f"{found.num_pages:,} pages of {found.num_users:,} users, {found.mean_places:.1f} places each; "
        f"{found.num_without:,} pages without a list of the candidate left out. "
        f"Weights: mean {_interval(found.support)}, as much as {found.effective:,.0f} places of the candidate's own."
    )
    table = Table("", f"{reward}s a page", "less the active order's")
    table.add_row("active, as ranked", _interval(found.active), "")
    for name, value in found.candidate.items():
        table.add_row(f"candidate, {name}", _interval(value), _interval(found.gain[name], "+"))
    console.print(table)
    console.print(found.conclusion)


def _interval(estimated: Estimate, sign: str = "") -> str:
    value, low, high = (format(end, f"{sign}.4f") for end in (estimated.value, estimated.low, estimated.high))
    return f"{value} ({low} to {high})"


def _weights(text: str) -> tuple[float, ...]:
    try:
        weights = tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise InvalidInputError(f"--weights is {text!r}, expected numbers such as 1,1,2") from error
    if any(not weight > 0 for weight in weights):
        raise InvalidInputError(f"--weights is {text!r}, expected numbers above 0")
    return weights
