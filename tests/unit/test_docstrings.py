"""Examples in docstrings hold."""

from __future__ import annotations

import doctest
import importlib

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
