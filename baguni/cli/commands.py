"""Commands that processes bring along, by entry point: a group names where they are registered, and imports none of them until
it is called.
"""

from __future__ import annotations

import importlib.util
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import click


class CommandGroup(click.Group):
    """A group whose commands are its own and those of the entry points `registry`."""

    def __init__(self, *args: Any, registry: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._registry = registry

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*super().list_commands(ctx), *self._registered()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry_point = self._registered().get(cmd_name)
        if entry_point is None:
            return super().get_command(ctx, cmd_name)
        if package := missing_package(entry_point):
            raise click.ClickException(f"`baguni {cmd_name}` needs the package {package}, which is not installed here")
        command: click.Command = entry_point.load()
        return command

    def _registered(self) -> dict[str, EntryPoint]:
        return {entry.name: entry for entry in entry_points(group=self._registry)}


def missing_package(entry_point: EntryPoint) -> str:
    """Return the package of an entry point if it is not installed here, else "": an image has those of its own processes."""
    package = entry_point.module.partition(".")[0]
    return package if importlib.util.find_spec(package) is None else ""
