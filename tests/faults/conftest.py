"""Load, and a place for what was measured: BAGUNI_FAULTS_RESULT=file.json writes the rows there at the end."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from operator import itemgetter
from pathlib import Path

import pytest
import redis
from filelock import FileLock

from baguni.domain.history import Action, HistoryEvent
from baguni.domain.release import Release
from baguni.settings import Endpoints
from baguni.stores.history_store import HistoryWriter
from benchmarks.result import Row, write_result
from tests.conftest import PATIENT
from tests.faults.load import NOW_MS, USERS

DAY_MS = 86_400_000
COMMANDS = {
    "faults": "test-faults",
    "faults-streaming": "test-streaming-faults",
    "faults-hostile": "test-hostile",
    "releases": "test-releases",
}


@pytest.fixture(scope="session")
def measured() -> Iterator[list[tuple[str, Row]]]:
    """Rows and the test of each, written at the end. Rows of tests that did not run stay, those without a test go."""
    rows: list[tuple[str, Row]] = []
    yield rows
    path = Path(os.environ.get("BAGUNI_FAULTS_RESULT", ""))
    if not path.suffix or not rows:
        return
    with FileLock(Path(tempfile.gettempdir()) / f"{path.stem}.lock"):
        earlier = json.loads(path.read_text())["rows"] if path.is_file() else []
        write_result(path, path.stem, f"make {COMMANDS[path.stem]}", [row for _, row in rows])
        result = json.loads(path.read_text())
        new = [
            {**row, "test": test, "commit": result["commit"]}
            for row, (test, _) in zip(result["rows"], rows, strict=True)
        ]
        tests = {test for test, _ in rows}
        result["rows"] = sorted(
            [*(row for row in earlier if row.get("test", "") not in {*tests, ""}), *new], key=itemgetter("test")
        )
        path.write_text(json.dumps(result, indent=2) + "\n")


@pytest.fixture
def record(request: pytest.FixtureRequest, measured: list[tuple[str, Row]]) -> Callable[[Row], None]:
    """Take a row of the results; a row that does not hold fails the test."""
    test = f"{request.node.path.stem}.{request.node.name}"

    def take(row: Row) -> None:
        measured.append((test, row))
        assert row.holds, row

    return take


@pytest.fixture(scope="session", autouse=True)
def shipped_limits(request: pytest.FixtureRequest) -> None:
    """Measure gateways with the limits that are shipped, not with those that are patient with a busy machine."""
    request.getfixturevalue("local_stack")
    for name in PATIENT:
        os.environ.pop(name, None)


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
