"""The command line: fast help, and a user's mistake is one clear line."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import click
import pytest

from baguni.cli.root import SUMMARIES


def baguni(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "baguni.cli", *arguments], capture_output=True, text=True, cwd=cwd)


def test_help_lists_every_command_and_imports_no_torch() -> None:
    program = (
        "import sys, baguni.cli.root as c; sys.argv = ['baguni', '--help']\ntry: c.main()\nexcept SystemExit: pass\n"
    )
    program += "assert 'torch' not in sys.modules and 'pymilvus' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in SUMMARIES:
        assert f"  {name} " in done.stdout


def test_every_command_has_a_summary_and_every_summary_a_command() -> None:
    declared = {point.name: point for point in entry_points(group="baguni.commands")}
    assert declared.keys() == SUMMARIES.keys()
    for name, point in declared.items():
        command = point.load()
        assert isinstance(command, click.Command), name
        assert command.name == name
        assert (command.help or "").strip(), name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["release", "show", "r0"], "there is no release 'r0'"),
        (["release", "rollback"], "no earlier release"),
        (["train", "no-such-folder", "--recipe", "huge"], "expected one of demo, complete-journey"),
        (["recommend", "1000", "--address", "127.0.0.1:1"], "baguni up"),
        (["user", "1000"], "no release is active"),
        (["export", "no-such-folder"], "baguni train"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_do(arguments: list[str], words: str, tmp_path: Path) -> None:
    done = baguni(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.lstrip().startswith("Error: ")


def test_an_unknown_option_exits_with_2() -> None:
    assert baguni("status", "--no-such-option").returncode == 2


def test_status_of_a_stack_that_is_down_says_how_to_start_it(tmp_path: Path) -> None:
    done = baguni("status", cwd=tmp_path)
    assert done.returncode == 0
    assert "baguni up" in done.stdout
