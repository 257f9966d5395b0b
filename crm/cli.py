"""`baguni crm`: run campaigns, look at what they did, serve what they prepared."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from baguni.cli.plain_console import PlainConsole
from baguni.domain.errors import BaguniError
from baguni.logs import log_to_stderr
from crm.campaign import Campaign, read_campaign
from crm.job import Job, open_parts, run_campaign
from crm.settings import CrmSettings
from crm.state import CampaignState, Run

CAMPAIGN = click.argument("campaign", type=click.Path(exists=True, dir_okay=False, path_type=Path))
NAMED_PROBLEMS = 20


@click.group()
def crm() -> None:
    """Campaigns: whom to push what, and delivering it once (docs/crm.md).

    \b
    baguni crm run bread.yaml --dry-run        exactly what would be sent
    baguni crm run bread.yaml                  send it; again, to go on where it stopped
    baguni crm show RUN                        how many users are in which state, and what did not arrive
    baguni crm serve                           what is prepared, for Braze's Connected Content
    """
    log_to_stderr(logging.WARNING, "%(levelname)s %(message)s")


@crm.command("run")
@CAMPAIGN
@click.option("--run-id", default=None, help="A name for the run: given again, it is the same run, and sent once.")
@click.option("--dry-run", is_flag=True, help="Send nothing: print what would be sent, as JSON lines.")
@click.option("--limit", type=click.IntRange(min=1), default=10, show_default=True, help="With --dry-run: users.")
@click.option(
    "--resend-unknown", is_flag=True, help="Send again what may have arrived: an event may then be there twice."
)
def run_file(campaign: Path, run_id: str | None, dry_run: bool, limit: int, resend_unknown: bool) -> None:
    """Run the campaign of a YAML file, or go on with its run that is not finished."""
    read = read_campaign(campaign)
    settings = CrmSettings()
    if dry_run:
        with _scratch(settings) as state, _job(read, settings, state) as (job, _):
            run = job.begin(run_id)
            job.check()
            job.select(run)
            job.prepare(run, limit)
            for sink, contents in job.preview(run, limit).items():
                for content in contents:
                    click.echo(json.dumps({"sink": sink, "would_send": content}, ensure_ascii=False))
        return
    with closing(CampaignState(settings.crm_state)) as state, state.lock(), _job(read, settings, state) as (job, begun):
        try:
            run_campaign(job, run_id, resend_unknown, begun.append)
        except (BaguniError, KeyboardInterrupt):
            if begun:
                click.echo("Not finished: run it again to go on. Until now:", err=True)
                _show(state, begun[0], PlainConsole(stderr=True))
            raise
        _show(state, begun[0], PlainConsole())
        if not state.counts(begun[0].run_id)["run"]:
            click.secho(
                "Nobody is in the audience: nothing was sent. Look at its conditions.", fg="red", bold=True, err=True
            )


@crm.command()
def runs() -> None:
    """All runs, newest first."""
    table = Table("run", "campaign", "state", "users")
    with closing(CampaignState(CrmSettings().crm_state)) as state:
        for run in state.runs():
            users = sum(state.counts(run.run_id)["run"].values())
            table.add_row(run.run_id, run.campaign, run.state, f"{users:,}")
    PlainConsole().print(table)


@crm.command()
@click.argument("run_id")
def show(run_id: str) -> None:
    """How many users of a run are in which state, and what did not arrive, or may not have."""
    with closing(CampaignState(CrmSettings().crm_state)) as state:
        _show(state, state.run(run_id), PlainConsole())


@crm.command()
@click.argument("run_id")
def discard(run_id: str) -> None:
    """Give up what is left of a run: nothing more of it is sent. What was sent still counts for quiet rules."""
    with closing(CampaignState(CrmSettings().crm_state)) as state, state.lock():
        state.discard(state.run(run_id).run_id)


@crm.command()
@click.option("--address", default="127.0.0.1:7459", show_default=True, help="HOST:PORT to listen on.")
def serve(address: str) -> None:
    """Serve what the last runs prepared, as JSON over HTTP, for Braze's Connected Content."""
    from crm.content import serve_content

    serve_content(CrmSettings(), address)


@contextmanager
def _job(campaign: Campaign, settings: CrmSettings, state: CampaignState) -> Iterator[tuple[Job, list[Run]]]:
    columns = (TextColumn("{task.description}"), TextColumn("{task.completed:>10,.0f} users"), TimeElapsedColumn())
    with open_parts(settings, state) as parts, Progress(*columns, console=PlainConsole(stderr=True)) as bars:
        tasks: dict[str, TaskID] = {}

        def progress(step: str, users: int) -> None:
            if step not in tasks:
                tasks[step] = bars.add_task(step, total=None)
            bars.advance(tasks[step], users)

        with closing(Job(campaign, parts, progress)) as job:
            yield job, []


@contextmanager
def _scratch(settings: CrmSettings) -> Iterator[CampaignState]:
    """A copy of the state, which is thrown away."""
    folder = Path(tempfile.mkdtemp(prefix="baguni-crm-"))
    try:
        with closing(CampaignState(settings.crm_state)) as state, closing(state.copy(folder)) as copied:
            yield copied
    finally:
        shutil.rmtree(folder)


def _show(state: CampaignState, run: Run, console: Console) -> None:
    run = state.run(run.run_id)
    table = Table("where", "users", "state", title=f"{run.run_id}: {run.state}")
    for where, states in state.counts(run.run_id).items():
        for name, users in sorted(states.items()):
            table.add_row(where, f"{users:,}", name)
    console.print(table)
    problems: list[Any] = state.problems(run.run_id, NAMED_PROBLEMS + 1)
    if problems:
        named = Table("sink", "user", "state", "reason", title="Did not arrive, or may not have")
        for problem in problems[:NAMED_PROBLEMS]:
            named.add_row(*problem)
        console.print(named)
        if len(problems) > NAMED_PROBLEMS:
            console.print("... and more")
