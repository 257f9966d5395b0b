"""Text that others send cannot look like a line of the log, whatever it contains."""

from __future__ import annotations

import io
import logging
import re

from google.protobuf.json_format import ParseError
from hypothesis import example, given
from hypothesis import strategies as st

from baguni.domain.events import MAX_ERROR_LENGTH, MalformedEvent
from baguni.logs import MAX_RECORD, LogFormatter

LINE = "%(asctime)s %(levelname)s %(name)s %(message)s"
BEGINS = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d")
FORGED = "2026-11-26 03:00:00,000 ERROR streaming redis lost"
HOSTILE = st.text(st.characters(), max_size=50) | st.sampled_from(
    ["\n", "\r", "\r\n", "\x0b", "\x0c", "\x1c", "\x85", "\u2028"]
)


def logged(message: str, error: Exception | None = None) -> str:
    """Return what is written of a message, and of an error that was caught."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(LogFormatter(LINE))
    log = logging.Logger("tested")
    log.addHandler(handler)
    log.warning("dead letters error=%s", message, exc_info=error)
    return stream.getvalue()


@given(HOSTILE, st.sampled_from([FORGED, "\x1b[2J", "\x9b2J", "\u202e"]), st.booleans())
@example("1 \n", FORGED, True)
def test_a_record_is_one_record(before: str, forged: str, is_traceback: bool) -> None:
    text = logged(before + forged, ValueError(before + forged) if is_traceback else None)
    assert sum(BEGINS.match(line) is not None for line in text.splitlines()) == 1
    assert not any(char in text for char in "\x1b\x9b\u202e\r\x0b\x0c\x1c\x85\u2028")
    text.encode()  # a lone surrogate would end the process that writes to a pipe


def test_a_record_has_an_end() -> None:
    assert len(logged("x" * (1 << 20), ValueError("y" * (1 << 20)))) < 2 * MAX_RECORD


def test_what_a_parser_quotes_is_cut() -> None:
    """protobuf puts the whole value into its error."""
    error = MalformedEvent("undecodable", f"the value is no OrderPlaced: {ParseError('z' * (1 << 20))}")
    assert len(str(error)) <= MAX_ERROR_LENGTH
