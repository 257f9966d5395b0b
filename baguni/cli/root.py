"""The `baguni` command. Its commands come from the processes, by the entry points `baguni.commands`; each is imported
when it is called, so asking for help is fast and the gateway's machine needs no torch.
"""

from __future__ import annotations

import sys

import click

from baguni.cli.commands import CommandGroup
from baguni.domain.errors import BaguniError
from baguni.logs import visible

SUMMARIES = {
    "data": "Prepare and check a shop's own data.",
    "train": "Fit Semantic IDs, train both heads, distil.",
    "evaluate": "Predict the last month's orders with a finished run.",
    "segment": "Who buys of a category, and when something is bought again.",
    "export": "Make a release of a finished run.",
    "generate": "Lists for all users of a log, without servers.",
    "release": "List, show, try, activate, roll back, prune, push and pull releases.",
    "histories": "Load, rebuild and check stored histories.",
    "crm": "Run campaigns: whom to push what, delivered once.",
    "experiment": "What experiments have shown, and what may be concluded.",
    "dlq": "List, show and replay what streams in and will never parse.",
    "token": "Make a bearer token for a caller of the gateway.",
    "up": "Start the local stack.",
    "down": "Stop the local stack, every process of it.",
    "status": "Show the local stack's processes.",
    "recommend": "Ask the gateway what to recommend to a user.",
    "top-items": "Ask the gateway for the generative head's items.",
    "similar": "Ask the gateway for items like an item.",
    "inspect": "A page to look inside recommendations.",
    "user": "Show, find and forget what is stored of a user.",
    "benchmark": "Measure how good the lists are, beside the peers.",
    "demo": "From nothing to live recommendations on grocery orders.",
}


class Commands(CommandGroup):
    """The commands in the order of SUMMARIES, which describe them without an import."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        found = set(super().list_commands(ctx))
        return [name for name in SUMMARIES if name in found]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, SUMMARIES[name]) for name in self.list_commands(ctx)])


@click.group(cls=Commands, registry="baguni.commands")
@click.version_option(package_name="baguni")
def root() -> None:
    """Personalised recommendations for shops.

    \b
    baguni data validate my-shop/         check your own catalogue and events
    baguni train my-shop/                 train on them
    baguni export my-shop/                make a release
    baguni up                             start Triton, Milvus, broker, Redis, gateway, consumers
    baguni release activate RELEASE       serve it
    baguni recommend USER                 ask for a list
    """


def main() -> None:
    """Run the command; a user's mistake is one line on standard error, never a traceback."""
    try:
        status = root(standalone_mode=False)
    except BaguniError as error:
        click.secho(f"Error: {visible(str(error))}", fg="red", err=True)
        status = 1
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("Stopped.", err=True)
        status = 130
    sys.exit(status if isinstance(status, int) else 0)
