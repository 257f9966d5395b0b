"""`baguni segment`: who will buy of a category, when something is bought again, and how well that is foreseen."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from baguni.cli.plain_console import PlainConsole
from baguni.domain.errors import InvalidInputError
from trainer.cli import DATA, RECIPE, RUN, SEED, progress_bars

if TYPE_CHECKING:
    from trainer.segments.forecasts import Forecaster

TOP = click.option("--top", type=click.IntRange(min=1), default=20, show_default=True, help="Rows to print.")
OUT = click.option("--out", type=click.Path(path_type=Path), default=None, help="Write every row to this CSV file.")
CATEGORY = click.option("--category", default=None, help='A path, such as "GROCERY > BREAD".')
USER = click.option("--user", "user_id", default=None, help="Only this user.")


@click.group()
def segment() -> None:
    """Segments from the generative head, as of the end of the log (docs/segments.md).

    \b
    baguni segment category my-shop/ --category "GROCERY > BREAD"      who buys of it next
    baguni segment category my-shop/ --user u1                         what a user buys of next
    baguni segment repurchase my-shop/ --item rye-1 --within-days 7    who buys it again within a week
    """


@segment.command()
@DATA
@RUN
@RECIPE
@SEED
@CATEGORY
@USER
@click.option("--depth", type=click.IntRange(min=1), default=1, show_default=True, help="With --user: of which depth.")
@TOP
@OUT
def category(
    data: Path,
    run_path: Path,
    recipe: str | None,
    seed: int,
    category: str | None,
    user_id: str | None,
    depth: int,
    top: int,
    out: Path | None,
) -> None:
    """Probability that a line of the next order is of a category: of every user, or of every category for one user."""
    if (category is None) == (user_id is None):
        raise InvalidInputError(f"got --category {category!r} and --user {user_id!r}, expected one of them")
    if category is not None:
        with _forecaster(data, run_path, recipe, seed) as forecaster:
            rows = forecaster.users_of_category(category)
        _show(f"Users most likely to buy of {category!r}", ("user", "probability"), rows, top, out)
    elif user_id is not None:
        with _forecaster(data, run_path, recipe, seed) as forecaster:
            rows = forecaster.categories_of_user(user_id, depth)
        _show(f"What {user_id!r} is most likely to buy of", ("category", "probability"), rows, top, out)


@segment.command()
@DATA
@RUN
@RECIPE
@SEED
@click.option("--item", "item_id", default=None, help="An item_id.")
@CATEGORY
@USER
@click.option("--within-days", type=click.FloatRange(min=0, min_open=True), default=7.0, show_default=True)
@TOP
@OUT
def repurchase(
    data: Path,
    run_path: Path,
    recipe: str | None,
    seed: int,
    item_id: str | None,
    category: str | None,
    user_id: str | None,
    within_days: float,
    top: int,
    out: Path | None,
) -> None:
    """Expected days to the next purchase of an item or category by those who bought it before, soonest first."""
    if (item_id is None) == (category is None):
        raise InvalidInputError(f"got --item {item_id!r} and --category {category!r}, expected one of them")
    with _forecaster(data, run_path, recipe, seed) as forecaster:
        rows = forecaster.repurchases(item_id, category, user_id, within_days)
    columns = ("user", "expected_days", f"bought_within_{within_days:g}_days", "days_since_last", "purchases")
    _show(f"Next purchase of {item_id or category!r}", columns, rows, top, out)


@segment.command()
@DATA
@RUN
@RECIPE
@SEED
@click.option("--users", type=click.IntRange(min=1), default=300, show_default=True, help="So many, at random.")
def evaluate(data: Path, run_path: Path, recipe: str | None, seed: int, users: int) -> None:
    """Both segments in the last month of the log, against what a shop could do without a model, as JSON."""
    from trainer.segments.evaluate import evaluate_segments

    run = _run(data, run_path, recipe, seed)
    if run.recipe.is_warm:
        raise InvalidInputError(
            f"{run_path} has read the whole log: it has no month to predict; train one without --warm"
        )
    with progress_bars() as progress:
        found = evaluate_segments(run, run.model(), users, seed, progress)
    click.echo(json.dumps(found, indent=2))


def _run(data: Path, run_path: Path, recipe: str | None, seed: int) -> Any:
    from trainer.run import Run

    return Run.opened(run_path, data, recipe, seed)


@contextmanager
def _forecaster(data: Path, run_path: Path, recipe: str | None, seed: int) -> Iterator[Forecaster]:
    from trainer.segments.forecasts import Forecaster

    run = _run(data, run_path, recipe, seed).released
    with progress_bars() as progress:
        yield Forecaster(run, run.model(), seed, progress)


def _show(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], top: int, out: Path | None) -> None:
    table = Table(*columns, title=f"{title}, {min(top, len(rows)):,} of {len(rows):,}")
    for row in rows[:top]:
        table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row))
    PlainConsole().print(table)
    if out is not None:
        with out.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(rows)
        click.echo(f"{len(rows):,} rows: {out}")
