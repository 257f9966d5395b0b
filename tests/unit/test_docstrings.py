"""Examples in docstrings hold, and docstrings are sentences or names, no fragments."""

from __future__ import annotations

import ast
import doctest
import importlib
from pathlib import Path

import pytest

from tests.conftest import repository

PACKAGES = ("analysis", "baguni", "benchmarks", "crm", "deploy", "inspection", "server", "streaming", "trainer")
MODULES = sorted(
    ".".join(path.relative_to(repository()).with_suffix("").parts)
    for package in PACKAGES
    for path in (repository() / package).rglob("*.py")
    if ">>> " in path.read_text()
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_hold(name: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert tried > 0
    assert failed == 0


FRAGMENTS = {
    *(
        "All",
        "As",
        "At",
        "By",
        "Everything",
        "For",
        "From",
        "How",
        "If",
        "In",
        "Into",
        "None",
        "Nothing",
        "Of",
        "On",
        "So",
        "To",
    ),
    *("Under", "Until", "Up", "What", "When", "Where", "Whether", "Which", "Who", "Why", "With"),
}
WRITTEN_ANEW = ("baguni", "server", "deploy/nightly.py", "deploy/local/demo")  # the other rooms follow


def documented() -> list[tuple[str, str]]:
    """Return the place and the docstring of every class and function."""
    found = []
    for place in WRITTEN_ANEW:
        path = repository() / place
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            if not file.is_relative_to(repository() / "baguni/v1"):  # generated
                found += [(f"{Path(place).name}:{file.name}:{name}", text) for name, text in _docstrings(file)]
    return found


def _docstrings(file: Path) -> list[tuple[str, str]]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    nodes = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, kinds)]
    return [(node.name, text) for node in nodes if (text := ast.get_docstring(node))]


def test_docstrings_start_with_a_verb_or_with_the_name_of_the_thing() -> None:
    found = documented()
    fragments = [
        f"{place}: {text.splitlines()[0]}" for place, text in found if text.split()[0].rstrip(",:") in FRAGMENTS
    ]
    assert not fragments, "\n".join(fragments)
    assert len(found) > 500
