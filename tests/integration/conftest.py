"""One server alone, for tests that need no stack."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deploy.local.programs import servers
from deploy.local.settings import StackSettings
from tests.waiting import eventually


@pytest.fixture(scope="session")
def lone_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of an empty Redis."""
    with _server("redis", tmp_path_factory.mktemp("redis")) as address:
        yield address


@pytest.fixture(scope="session")
def lone_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a broker without topics."""
    with _server("broker", tmp_path_factory.mktemp("broker")) as address:
        yield address


@contextmanager
def _server(name: str, folder: Path) -> Iterator[str]:
    """Start one server of the local stack; yield its address once it answers."""
    program = next(each for each in servers(StackSettings.on_free_ports(folder)) if each.name == name)
    environment = {**os.environ, **program.environment}
    process = subprocess.Popen(program.command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def answers() -> bool:
        assert process.poll() is None
        return program.is_ready()

    try:
        eventually(answers, f"{name} answers")
        yield program.address
    finally:
        process.terminate()
        process.wait(30)
