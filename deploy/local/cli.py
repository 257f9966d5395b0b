"""`baguni up`, `down`, `status`, `demo`."""

from __future__ import annotations

from pathlib import Path

import click
from rich.table import Table

from baguni.cli.plain_console import PlainConsole
from deploy.local.bring_up import bring_up
from deploy.local.settings import StackSettings
from deploy.local.stack import LocalStack

STATE = click.option(
    "--state-dir", type=click.Path(path_type=Path), default=None, help="Where the stack keeps its state."
)


@click.command()
@STATE
@click.option("--servers-only", is_flag=True, help="Only Redis, broker, Milvus and Triton.")
def up(state_dir: Path | None, servers_only: bool) -> None:
    """Start the local stack and serve the active release.

    \b
    baguni up
    BAGUNI_STACK_REDIS_PORT=6400 baguni up --state-dir /tmp/second
    """
    settings = _settings(state_dir)
    bring_up(settings, servers_only)
    print_status(settings)


@click.command()
@STATE
def down(state_dir: Path | None) -> None:
    """Stop the local stack; no process of it is left."""
    LocalStack(_settings(state_dir)).stop()
    click.echo("The local stack is down.")


@click.command()
@STATE
def status(state_dir: Path | None) -> None:
    """Show the local stack's processes."""
    print_status(_settings(state_dir))


@click.command()
@STATE
@click.option("--keep", is_flag=True, help="Leave the stack up.")
def demo(state_dir: Path | None, keep: bool) -> None:
    """Go from nothing to live recommendations on a year of grocery orders (simulated data)."""
    from deploy.local.demo.story import run_demo

    run_demo(_settings(state_dir), keep)


def print_status(settings: StackSettings) -> None:
    """Print a table of the processes."""
    rows = LocalStack(settings).status()
    if not rows:
        click.echo("The local stack is down: `baguni up` starts it.")
        return
    table = Table("process", "state", "pid", "up", "address", "log")
    for row in rows:
        table.add_row(row.name, row.state, str(row.pid or ""), f"{row.uptime_s:.0f} s", row.address, str(row.log))
    PlainConsole().print(table)


def _settings(state_dir: Path | None) -> StackSettings:
    return StackSettings() if state_dir is None else StackSettings(state_dir=state_dir)
