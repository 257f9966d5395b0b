"""Commands that processes bring along, by entry point: whoever has a group of commands names it, and imports none of them."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points


def commands_of(group: str) -> dict[str, EntryPoint]:
    """Command name → where it is."""
    return {entry.name: entry for entry in entry_points(group=group)}
