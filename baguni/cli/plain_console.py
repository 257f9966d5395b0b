"""A console for text from outside: ids and titles are printed as they are. Rich alone reads `[red]` and `:milk:` in them, and
terminals obey control characters.
"""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from baguni.logs import visible


class PlainConsole(Console):
    """A Console without markup and emoji codes. Control characters, also those that change the direction of text, are shown as
    escapes such as \\x1b."""

    def __init__(self, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return the text to print. Overrides what Console does for strings, in tables, too."""
        return super().render_str(visible(text), **(options | {"markup": False, "emoji": False}))
