"""`baguni user`: show a user's history, find everything that is stored of a user, forget a user."""

from __future__ import annotations

import math
import sqlite3
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import closing
from datetime import UTC, datetime
from importlib.metadata import entry_points

import click
from google.protobuf.timestamp_pb2 import Timestamp
from rich.table import Table

from baguni.cli.commands import missing_package
from baguni.cli.lists import item_name, opened_release, semantic_id
from baguni.cli.plain_console import PlainConsole
from baguni.clients.topics import retentions
from baguni.domain.errors import InvalidInputError, NotFoundError, UnavailableError
from baguni.domain.events import DEAD_LETTER_TOPIC, EXPOSURE_TOPIC, MAX_ID_LENGTH, USER_TOPICS, producible
from baguni.domain.history import Action
from baguni.settings import Endpoints
from baguni.stores.forgotten import ForgottenUsers
from baguni.stores.history_store import HistoryWriter
from baguni.stores.personal_data import Finding, NotSearchedError, in_redis
from baguni.stores.redis_client import connect
from baguni.v1 import events_pb2

LOOK_S = 0.5
DAY_S = 86_400
BEYOND = (
    ("Braze, other sinks, files that campaigns wrote", "ask them: we have no copy"),
    ("models of releases", "trained on the past: the next training is without the user, if the shop's export is"),
)


class UserGroup(click.Group):
    """`baguni user USER` is `baguni user show USER`, unless USER is called like a command."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            args = ["show", *args]
        return super().resolve_command(ctx, args)


@click.group(cls=UserGroup)
def user() -> None:
    """Show, find and forget what is stored of a user.

    \b
    baguni user 1000                   the history of user 1000, as `baguni user show 1000`
    baguni user find 1000              everything that is stored of the user, and where
    baguni user forget 1000 --verify   remove it, and search for what is left
    """


@user.command()
@click.argument("user_id")
@click.option("--orders", default=5, show_default=True, help="How many orders back.")
def show(user_id: str, orders: int) -> None:
    """The history of USER_ID, newest first, with Semantic IDs.

    \b
    baguni user 1000
    """
    release = opened_release(None)
    with closing(connect(Endpoints().redis_url)) as client:
        (history,) = HistoryWriter(client).read([user_id])
    if not history.events:
        raise NotFoundError(f"user {user_id!r} has no history")
    table = Table("time (UTC)", "what", "order", "item", "Semantic ID", title=f"{user_id}: {len(history)} events")
    seen: list[str] = []
    for event in reversed(history.events):
        if event.order_id and event.order_id not in seen:
            seen.append(event.order_id)
            table.add_section()
        if len(seen) > orders:
            break
        when = datetime.fromtimestamp(event.time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M")
        codes = semantic_id(release, event.item_id)
        name = item_name(release.catalog, event.item_id)
        table.add_row(when, Action(event.action).name.lower(), event.order_id, name, codes)
    PlainConsole().print(table)


@user.command()
@click.argument("user_id")
def find(user_id: str) -> None:
    """Search Redis, captured requests and campaigns for USER_ID. What cannot be searched from here is listed at the end."""
    findings, not_searched = _search(_checked(user_id), erase=False)
    PlainConsole().print(_table(findings, f"What is stored of {user_id}"))
    _print_beyond(not_searched)


@user.command()
@click.argument("user_id")
@click.option("--verify", is_flag=True, help="Then search for USER_ID everywhere; exit status 1 if anything is left.")
@click.option("--wait", "wait_s", default=180.0, show_default=True, help="For consumers and gateways, in seconds.")
@click.pass_context
def forget(context: click.Context, user_id: str, verify: bool, wait_s: float) -> None:
    """Remove everything that is stored of USER_ID, as if the shop had sent UserDeleted.

    The event is what makes it last: a rebuild from the topics applies it again. What this command cannot reach is listed at the
    end, with how long it is kept. A user who orders again afterwards begins anew."""
    endpoints, deadline = Endpoints(), time.monotonic() + wait_s
    time_ms = _send_deletion(_checked(user_id), endpoints)
    with closing(connect(endpoints.redis_url)) as client, PlainConsole(stderr=True).status("") as status:
        histories, forgotten = HistoryWriter(client), ForgottenUsers(client)
        status.update("waiting for the user consumer")
        _wait_for(
            lambda: histories.read([user_id])[0].deleted_ms >= time_ms and forgotten.position_of(user_id) is not None,
            deadline,
            "the deletion is in the topic, and the user consumer has not applied it: start it, and repeat the command",
        )
        position = forgotten.position_of(user_id) or 0
        removed, not_searched = _search(user_id, erase=True)
        status.update("waiting for the gateway")
        _wait_for(
            lambda: not forgotten.not_yet(position),
            deadline,
            "gateway processes have not answered; they forget the user when they do",
        )
    PlainConsole().print(_table([each for each in removed if not each.stays], f"Removed of {user_id}"))
    _print_beyond(not_searched)
    if verify:
        findings, _ = _search(user_id, erase=False)
        PlainConsole().print(_table(findings, f"What is left of {user_id}"))
        context.exit(int(any(not finding.stays for finding in findings)))


def _checked(user_id: str) -> str:
    if not 0 < len(user_id) <= MAX_ID_LENGTH:
        raise InvalidInputError(f"USER_ID has {len(user_id)} characters, expected 1 to {MAX_ID_LENGTH}", "user_id")
    return user_id


def _send_deletion(user_id: str, endpoints: Endpoints) -> int:
    """Send the event; return its time in ms. Raises UnavailableError unless the broker has it."""
    from kafka import KafkaProducer
    from kafka.errors import KafkaError

    time_ms = int(time.time() * 1000)
    event_time = Timestamp(seconds=time_ms // 1000, nanos=time_ms % 1000 * 1_000_000)
    message = events_pb2.UserDeleted(user_id=user_id, event_time=event_time)
    try:
        with closing(
            KafkaProducer(bootstrap_servers=endpoints.kafka_bootstrap, acks="all", bootstrap_timeout_ms=5_000)
        ) as producer:
            producer.send(**producible(message, uuid.uuid4().hex, "baguni user forget")).get(timeout=30)
    except KafkaError as error:
        raise UnavailableError("kafka", f"{endpoints.kafka_bootstrap}: {error}; nothing was removed") from error
    return time_ms


def _wait_for(condition: Callable[[], bool], deadline: float, problem: str) -> None:
    while not condition():
        if time.monotonic() > deadline:
            raise UnavailableError("user forget", problem)
        time.sleep(LOOK_S)


def _search(user_id: str, erase: bool) -> tuple[list[Finding], dict[str, str]]:
    """Search Redis and every place that another process has registered. Return what was found, and the places that cannot be
    searched from here, each with the reason."""
    not_searched: dict[str, str] = {}
    with closing(connect(Endpoints().redis_url)) as client:
        found = in_redis(client, user_id, erase)
    for entry in sorted(entry_points(group="baguni.personal_data"), key=lambda entry: entry.name):
        if package := missing_package(entry):
            not_searched[entry.name] = f"the package {package} is not installed here"
            continue
        try:
            found += [Finding(entry.name, what) for what in entry.load()(user_id, erase)]
        except (NotSearchedError, InvalidInputError, OSError, sqlite3.Error) as error:
            not_searched[entry.name] = str(error)
    return found, not_searched


def _table(findings: list[Finding], title: str) -> Table:
    table = Table("where", "what", title=title)
    for finding in findings:
        table.add_row(finding.where, finding.what + (" (stays)" if finding.stays else ""))
    if not findings:
        table.add_row("", "nothing")
    return table


def _print_beyond(not_searched: Mapping[str, str]) -> None:
    """Print which places were not searched and why; then what no command of ours can remove, and how long it is kept."""
    topics = (*USER_TOPICS, EXPOSURE_TOPIC, DEAD_LETTER_TOPIC)
    table = Table("not reached", "kept", title="Beyond this command")
    for where, why in not_searched.items():
        table.add_row(where, f"not searched: {why}")
    try:
        kept = retentions(Endpoints().kafka_bootstrap, topics)
    except UnavailableError:
        kept = dict.fromkeys(topics)
    for topic in topics:
        table.add_row(f"topic {topic}", _period(kept[topic]))
    for where, what in BEYOND:
        table.add_row(where, what)
    PlainConsole().print(table)


def _period(seconds: float | None) -> str:
    if seconds is None:
        return "as the broker is configured: it did not tell"
    return "for ever" if math.isinf(seconds) else f"{seconds / DAY_S:g} days"
