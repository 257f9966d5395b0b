"""What the documents tell to type can be typed, and the site can be built."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from baguni.cli.root import root
from tests.conftest import repository

DOCUMENTS = [*sorted(repository().glob("README*.md")), *sorted((repository() / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```[a-z]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
REMARK = re.compile(r"\s{2,}\S.*$|\s+#.*$")


def commands(program: str) -> list[tuple[str, list[str]]]:
    """(document, words) of each command of that program in a block of code; a line that ends with a backslash goes on."""
    found = []
    for document in DOCUMENTS:
        for block in BLOCK.findall(document.read_text()):
            lines = [REMARK.sub("", line) for line in block.replace("\\\n", " ").splitlines()]
            parts = [
                re.sub(r"^([A-Z_]+=\S+ )*(\.venv/bin/)?", "", p) for line in lines for p in re.split(r" && |; ", line)
            ]
            typed = [part for part in parts if part.startswith(program + " ")]
            found += [(document.name, shlex.split(part, comments=True)[1:]) for part in typed]
    return found


@pytest.mark.parametrize(("document", "words"), commands("baguni"), ids=lambda part: str(part)[:60])
def test_a_documented_command_exists_with_its_options(document: str, words: list[str]) -> None:
    command: click.Command = root
    context = click.Context(root)
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        if "|" in words[0]:  # a|b|c: any of them
            names, words = words[0].split("|"), []
        else:
            names, words = words[:1], words[1:]
        group = command
        for name in names:
            found = group.get_command(context, name)
            assert found is not None, f"{document}: there is no {name!r} in {group.name}"
            command = found
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    asked = {word.split("=")[0] for word in words if word.startswith("--")}
    assert asked <= known | {"--help"}, f"{document}: {command.name} has no {asked - known}"


@pytest.mark.parametrize(("document", "words"), commands("make"), ids=lambda part: str(part)[:60])
def test_a_documented_target_exists(document: str, words: list[str]) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (repository() / "Makefile").read_text(), re.MULTILINE))
    assert {word for word in words if "=" not in word} <= targets, document


def test_the_site_is_built_without_a_warning_and_fetches_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=repository(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        loaded = re.findall(r'<(?:script|img|link)[^>]+(?:src|href)="(https?:[^"]+)"', page.read_text())
        assert not loaded, (page.name, loaded)
    contracts = (tmp_path / "site/reference/contracts.html").read_text()
    assert "The next items for one shopper" in contracts
    assert "BAGUNI_MAX_IN_FLIGHT" in (tmp_path / "site/reference/settings.html").read_text()
    assert "baguni_event_visible_lag_seconds" in (tmp_path / "site/reference/metrics.html").read_text()
    assert "<math" in (tmp_path / "site/concepts.html").read_text()
    assert "baguni release replay" in (tmp_path / "site/reference/commands.html").read_text()
