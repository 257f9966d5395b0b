"""A Redis server of a test's own."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import redis

from deploy.local.programs import servers
from deploy.local.settings import StackSettings
from tests.waiting import eventually


@contextmanager
def redis_server(port: int, folder: Path) -> Iterator[redis.Redis]:
    """Yield a client of a new server, which keeps nothing on the disk."""
    binary = servers(StackSettings(state_dir=folder))[0].command[0]
    command = [binary, "--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder), "--save", ""]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        with redis.Redis(port=port) as client:
            eventually(lambda: _answers(client))
            yield client
    finally:
        process.kill()
        process.wait()


def _answers(client: redis.Redis) -> bool:
    with suppress(redis.ConnectionError):
        return bool(client.ping())
    return False
