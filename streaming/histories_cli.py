"""`baguni histories`: load, rebuild, verify."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import click
from rich.progress import Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from baguni.cli.plain_console import PlainConsole
from baguni.clients.topics import TopicReader, retentions
from baguni.domain.errors import InvalidInputError, UnavailableError
from baguni.domain.events import DELETION_TOPIC, USER_TOPICS
from baguni.stores.history_store import HistoryWriter
from baguni.stores.redis_client import connect
from streaming.histories import Difference, UserChanges, load, read_events, read_file, verify
from streaming.settings import StreamingSettings

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
TIMEZONE = click.option("--timezone", default=None, help="Of times without one, such as Asia/Seoul.")
DROPPED_AT_ONCE = 1_000
DAY_S = 86_400


@click.group()
def histories() -> None:
    """Load, rebuild and check stored histories, while consumers run.

    \b
    baguni histories load events.parquet --timezone Asia/Seoul
    baguni histories verify events.parquet --timezone Asia/Seoul
    baguni histories rebuild --from-topic
    """


@histories.command("load")
@click.argument("files", nargs=-1, required=True, type=FILE)
@TIMEZONE
def load_files(files: tuple[Path, ...], timezone: str | None) -> None:
    """Add the events of Parquet or CSV FILES to histories. Loading twice adds nothing."""
    with _writer() as (writer, _):
        for file in files:
            _load(writer, read_file(file, timezone), str(file))


@histories.command()
@click.option("--from-topic", is_flag=True, required=True, help="From what the user topics hold.")
@click.option("--drop", is_flag=True, help="Remove what is stored first: what the topics do not hold any more is lost.")
@click.option(
    "--accept-lost-deletions", is_flag=True, help="Go on although users who were deleted may come back: see the error."
)
def rebuild(from_topic: bool, drop: bool, accept_lost_deletions: bool) -> None:
    """Write everything that the topics hold, which adds what Redis has lost.

    Refused where the broker keeps deletions of users for a shorter time than their events."""
    with _writer() as (writer, settings):
        if not accept_lost_deletions:
            check_deletions_outlast(_retentions(settings.kafka_bootstrap))
        if drop:
            click.confirm("Remove every stored history, those loaded from files included?", abort=True)
            _drop(writer)
        reader = TopicReader(settings.kafka_bootstrap, USER_TOPICS, {})
        _load(writer, read_events(reader), "topics")


@histories.command("verify")
@click.argument("files", nargs=-1, type=FILE)
@TIMEZONE
@click.option("--limit", default=20, show_default=True, help="How many differing users to name.")
@click.pass_context
def verify_stored(context: click.Context, files: tuple[Path, ...], timezone: str | None, limit: int) -> None:
    """Compare Redis with a batch build of the user topics and of FILES that were loaded; exit status 1 if they differ."""
    with _writer() as (writer, settings):
        sources = [read_file(file, timezone) for file in files]
        num_users, found = verify(writer, settings.kafka_bootstrap, sources, settings.max_events)
    if not found:
        click.echo(f"{num_users:,} histories are what the batch build says.")
        return
    PlainConsole().print(_table(found[:limit], f"{len(found):,} of {num_users:,} histories differ"))
    context.exit(1)


def check_deletions_outlast(kept_s: Mapping[str, float | None]) -> None:
    """Raise InvalidInputError if a topic keeps a user's events for longer than DELETION_TOPIC keeps the user's deletion: a
    rebuild would bring the user back. `kept_s`: by topic in s, None where it is not known."""
    deletions_s = kept_s[DELETION_TOPIC]
    longer = [topic for topic, each_s in kept_s.items() if each_s is not None and each_s > (deletions_s or math.inf)]
    if deletions_s is not None and longer:
        raise InvalidInputError(
            f"{DELETION_TOPIC} keeps records for {deletions_s / DAY_S:g} days, expected at least as long as "
            f"{', '.join(longer)}: users who were deleted before could come back. Set its retention.ms to -1; if no deletion "
            "is lost yet, or they may come back, add --accept-lost-deletions"
        )


def _retentions(bootstrap: str) -> dict[str, float | None]:
    """Return how long user topics are kept; nothing is known where the broker does not let us ask."""
    try:
        return retentions(bootstrap, USER_TOPICS)
    except UnavailableError as error:
        click.echo(f"the retention of topics is not known: {error}", err=True)
        return dict.fromkeys(USER_TOPICS)


@contextmanager
def _writer() -> Iterator[tuple[HistoryWriter, StreamingSettings]]:
    settings = StreamingSettings()
    with connect(settings.redis_url, timeout_s=10.0) as client:
        yield HistoryWriter(client, settings.max_events), settings


def _load(writer: HistoryWriter, source: Iterable[UserChanges], name: str) -> None:
    started, total = time.monotonic(), 0
    columns = (TextColumn("{task.description}"), TextColumn("{task.completed:,} events"), TimeElapsedColumn())
    with Progress(*columns, console=PlainConsole(stderr=True), transient=True) as bar:
        task = bar.add_task(name, total=None)
        for count in load(writer, source):
            total += count
            bar.update(task, completed=total)
    seconds = time.monotonic() - started
    click.echo(f"{name}: {total:,} events in {seconds:.1f} s, {total / max(seconds, 1e-9):,.0f} a second")


def _drop(writer: HistoryWriter) -> None:
    batch: list[str] = []
    for user_id in writer.user_ids():
        batch.append(user_id)
        if len(batch) == DROPPED_AT_ONCE:
            writer.drop(batch)
            batch.clear()
    writer.drop(batch)


def _table(found: Iterable[Difference], title: str) -> Table:
    table = Table("user", "missing in Redis", "only in Redis", "for example", title=title)
    for difference in found:
        example = next(iter((*difference.missing, *difference.surplus)))
        table.add_row(
            difference.user_id,
            f"{len(difference.missing):,}",
            f"{len(difference.surplus):,}",
            f"{example.action.name.lower()} {example.item_id} at {example.time_ms} {example.order_id}".strip(),
        )
    return table
