"""Load, and a place for what was measured: BAGUNI_FAULTS_RESULT=file.json writes the rows there at the end."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from baguni.history import Action, HistoryEvent
from baguni.history_store import HistoryWriter
from baguni.release import Release
from baguni.settings import Endpoints
from benchmarks.result import Row, write_result
from tests.faults.load import NOW_MS, USERS

DAY_MS = 86_400_000
COMMANDS = {
    "faults": "test-faults",
    "faults-streaming": "test-streaming-faults",
    "faults-hostile": "test-hostile",
    "releases": "test-releases",
}


@pytest.fixture(scope="session")
def record() -> Iterator[Callable[[Row], None]]:
    """Take a row of the results; a row that does not hold fails the test."""
    rows: list[Row] = []

    def take(row: Row) -> None:
        rows.append(row)
        assert row.holds, row

    yield take
    if path := os.environ.get("BAGUNI_FAULTS_RESULT"):
        name = Path(path).stem
        write_result(Path(path), name, f"make {COMMANDS[name]}", rows)


@pytest.fixture(scope="session")
def users(stack: Endpoints, active_release: Release) -> tuple[str, ...]:
    """Users with two orders each."""
    items = [item.item_id for item in active_release.catalog.items]
    histories = {
        user_id: [
            HistoryEvent(items[(number + place) % len(items)], Action.ORDERED, NOW_MS - week * 7 * DAY_MS, f"o{week}")
            for week in (1, 2)
            for place in (0, 7)
        ]
        for number, user_id in enumerate(USERS)
    }
    with redis.Redis.from_url(stack.redis_url) as client:
        HistoryWriter(client).apply(histories)
    return USERS
