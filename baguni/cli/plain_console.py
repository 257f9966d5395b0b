"""A console for text from outside: ids and titles are printed as they are. Rich alone reads `[red]` and `:milk:` in them, and
terminals obey control characters.
"""

from __future__ import annotations

import unicodedata
from typing import Any

from rich.console import Console
from rich.text import Text

KEPT = "\n\t"


class PlainConsole(Console):
    """A Console without markup and emoji codes. Control characters, also those that change the direction of text, are shown as
    escapes such as \\x1b."""

    def __init__(self, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return the text to print. Overrides what Console does for strings, in tables, too."""
        return super().render_str(visible(text), **(options | {"markup": False, "emoji": False}))


def visible(text: str) -> str:
    """Return the text with its control characters and lone surrogates as escapes."""
    return "".join(
        char if char in KEPT or unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Zl", "Zp") else _escaped(char)
        for char in text
    )


def _escaped(char: str) -> str:
    return char.encode("unicode_escape", errors="surrogatepass").decode()
