"""Text from outside in logs and on terminals: nothing in it looks like another line or moves a cursor."""

from __future__ import annotations

import logging
import sys
import unicodedata

KEPT = "\n\t"
MAX_RECORD = 20_000  # characters of a log record, its traceback included


def visible(text: str) -> str:
    """Return the text with its control characters, those that change the direction of text included, and lone surrogates as
    escapes such as \\x1b. Line feeds and tabs stay."""
    return "".join(
        char if char in KEPT or unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Zl", "Zp") else _escaped(char)
        for char in text
    )


def _escaped(char: str) -> str:
    return char.encode("unicode_escape", errors="surrogatepass").decode()


def indented(text: str) -> str:
    """Return text from outside for a place where lines are records: visible, and lines after the first are indented."""
    return visible(text).replace("\n", "\n    ")


class LogFormatter(logging.Formatter):
    """Formats a record so that a part of it cannot be taken for a record of its own: lines after the first are indented, other
    control characters are escapes, and what is too long is cut."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the lines of a record."""
        text = super().format(record)
        if len(text) > MAX_RECORD:
            text = f"{text[:MAX_RECORD]}… and {len(text) - MAX_RECORD:,} characters more"
        return indented(text)


def log_to_stderr(level: int, line: str) -> None:
    """Log to standard error; `line`: the format of a record, in the words of logging."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LogFormatter(line))
    logging.basicConfig(level=level, handlers=[handler])
