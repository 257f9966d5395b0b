"""Ids and titles come from outside: a terminal shows them and obeys none."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from baguni.cli.plain_console import PlainConsole, visible

HOSTILE = [
    "[red]x[/]",
    "[/nothing]",
    ":milk:",
    "\x1b[2J",
    "\x9b31m",
    "\u202etxt",
    "\u2028",
    "\ud800",
    "\x00",
    "a\x07",
    "[link=x]",
]


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_a_table_shows_text_as_it_is(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("id", title=f"for {text}")
    table.add_row(text)
    PlainConsole().print(table)
    printed = capsys.readouterr().out
    assert printed.count(visible(text)) == 2
    printed.encode()
    assert not any(unicodedata.category(char) in ("Cc", "Cf", "Cs") for char in printed.replace("\n", ""))


@given(st.text(st.characters(exclude_categories=())))
def test_what_is_shown_is_one_line_of_what_terminals_print(text: str) -> None:
    shown = visible(text.replace("\n", "").replace("\t", ""))
    assert all(unicodedata.category(char)[0] != "C" or unicodedata.category(char) in ("Cn", "Co") for char in shown)
    assert shown.splitlines() == ([shown] if shown else [])
