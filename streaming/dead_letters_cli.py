"""`baguni dlq`: what will never parse, and sending it again once it does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from datetime import UTC, datetime

import click
from kafka import KafkaProducer
from kafka.errors import KafkaError
from rich.table import Table

from baguni.cli.plain_console import PlainConsole
from baguni.clients.topics import Record, TopicReader
from baguni.domain.errors import NotFoundError, UnavailableError
from baguni.domain.events import DEAD_LETTER_TOPIC, MalformedEvent, latest_time_ms, read
from baguni.logs import visible
from baguni.stores.redis_client import connect
from streaming.dead_letters import ADDED, MAX_REQUEST_BYTES, Quarantine, original
from streaming.settings import StreamingSettings

SHOWN_BYTES = 4_000
SEND_TIMEOUT_S = 10.0

REASON = click.option("--reason", default=None, help="Only these, such as undecodable.")
TOPIC = click.option("--topic", default=None, help="Only what came from this topic.")


@click.group()
def dlq() -> None:
    """List, show and replay records that the consumers set aside.

    \b
    baguni dlq list --reason undecodable
    baguni dlq show 2@17
    baguni dlq replay --topic baguni.orders
    """


@dlq.command("list")
@REASON
@TOPIC
@click.option("--limit", default=50, show_default=True, help="How many of them to list, the last.")
def list_letters(reason: str | None, topic: str | None, limit: int) -> None:
    """Dead letters, partition by partition, and how many there are of each reason; then quarantined records, which nobody can
    read or the dead-letter topic refused: they lie where they were, until their topic forgets them."""
    letters = list(_chosen(reason, topic))
    table = Table("where", "reason", "from", "type", "error", title=f"{len(letters):,} dead letters")
    for letter in letters[-limit:] if limit > 0 else []:
        headers = _headers(letter)
        source = "{dead_letter_topic}/{dead_letter_partition}@{dead_letter_offset}".format_map(_Unknown(headers))
        table.add_row(
            _place(letter),
            headers.get("dead_letter_reason", ""),
            source,
            headers.get("ce_type", ""),
            headers.get("dead_letter_error", "")[:120],
        )
    PlainConsole().print(table)
    for name, count in Counter(_headers(letter).get("dead_letter_reason", "") for letter in letters).most_common():
        click.echo(f"{count:>8,}  {visible(name)}")
    _list_quarantined(reason, topic, limit)


def _list_quarantined(reason: str | None, topic: str | None, limit: int) -> None:
    with closing(connect(StreamingSettings().redis_url)) as client:
        entries = [
            entry
            for entry in Quarantine(client).entries()
            if reason in (None, entry.reason) and topic in (None, entry.topic)
        ]
    if not entries:
        return
    table = Table("where", "reason", "since", "error", title=f"{len(entries):,} quarantined records")
    for entry in entries[-limit:] if limit > 0 else []:
        since = datetime.fromtimestamp(entry.time_s, UTC).isoformat(" ", "seconds")
        table.add_row(f"{entry.topic}/{entry.partition}@{entry.offset}", entry.reason, since, ascii(entry.error[:120]))
    PlainConsole().print(table)


@dlq.command()
@click.argument("place")
def show(place: str) -> None:
    """One dead letter whole: PLACE is its PARTITION@OFFSET."""
    for letter in _letters():
        if _place(letter) == place:
            for name, value in letter.headers:
                click.echo(f"{visible(name)}: {_shown(value)}")
            click.echo(f"key: {_shown(letter.key or b'')}")
            value = letter.value or b""
            click.echo(f"value, {len(value):,} bytes: {_shown(value[:SHOWN_BYTES])}")
            return
    raise NotFoundError(f"there is no dead letter {place!r}, expected PARTITION@OFFSET as `baguni dlq list` says it")


@dlq.command()
@click.argument("places", nargs=-1)
@REASON
@TOPIC
@click.option("--all", "everything", is_flag=True, help="All of them.")
@click.option("--dry-run", is_flag=True, help="Send nothing; say what would be sent.")
@click.option("--force", is_flag=True, help="Send also what does not parse here either.")
def replay(
    places: tuple[str, ...], reason: str | None, topic: str | None, everything: bool, dry_run: bool, force: bool
) -> None:
    """Send dead letters to where they came from: those at PLACES, or all of a reason or a topic.

    Only what parses now is sent, by a newer version of baguni for example. What was sent before is sent again: it changes
    nothing then."""
    if not (places or reason or topic or everything):
        raise click.UsageError("say which: PARTITION@OFFSET, --reason, --topic or --all")
    chosen = [letter for letter in _chosen(reason, topic) if not places or _place(letter) in places]
    unknown = set(places) - {_place(letter) for letter in chosen}
    if unknown:
        raise NotFoundError(f"there is no dead letter {', '.join(sorted(unknown))}")
    ready, still_malformed = [], Counter[str]()
    for letter in chosen:
        try:
            record = original(letter)
            read(record, latest_time_ms(StreamingSettings().max_future_s))
        except MalformedEvent as error:
            still_malformed[error.reason] += 1
            if not (force and any(name == "dead_letter_topic" for name, _ in letter.headers)):
                continue
        ready.append(original(letter))
    if not dry_run:
        _send(ready)
    click.echo(f"{'would send' if dry_run else 'sent'} {len(ready):,} of {len(chosen):,}")
    for name, count in still_malformed.most_common():
        click.echo(f"{count:>8,}  still {name}")


def _shown(value: bytes) -> str:
    return visible(value.decode(errors="backslashreplace"))


def _letters() -> Iterable[Record]:
    return TopicReader(StreamingSettings().kafka_bootstrap, [DEAD_LETTER_TOPIC], {})


def _chosen(reason: str | None, topic: str | None) -> Iterator[Record]:
    for letter in _letters():
        headers = _headers(letter)
        if (reason is None or headers.get("dead_letter_reason") == reason) and (
            topic is None or headers.get("dead_letter_topic") == topic
        ):
            yield letter


def _send(records: Iterable[Record]) -> None:
    try:
        producer = KafkaProducer(
            bootstrap_servers=StreamingSettings().kafka_bootstrap, acks="all", max_request_size=MAX_REQUEST_BYTES
        )
        with closing(producer):
            sent = [
                producer.send(record.topic, key=record.key, value=record.value, headers=list(record.headers))
                for record in records
            ]
            for future in sent:
                future.get(timeout=SEND_TIMEOUT_S)
    except KafkaError as error:
        raise UnavailableError("kafka", f"not everything was sent: {error}") from error


def _place(letter: Record) -> str:
    return f"{letter.partition}@{letter.offset}"


def _headers(letter: Record) -> dict[str, str]:
    return {name: value.decode(errors="replace") for name, value in letter.headers if name.startswith((ADDED, "ce_"))}


class _Unknown(dict[str, str]):
    def __missing__(self, key: str) -> str:
        return "?"
