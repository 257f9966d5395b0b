"""A consumer whose producers have broken their schema stops, and skips nothing. Redis and broker are the test's own: every
consumer of these topics stops.
"""

from __future__ import annotations

from pathlib import Path

from baguni.domain.events import cloud_event_headers
from tests.faults.streams import TIME_MS, Consumers, compare, dead_letters, expected, own_servers, sender, wait
from tests.integration.streams import click
from tests.waiting import COMMAND_S


def test_a_consumer_stops_when_most_records_are_malformed_and_goes_on_once_that_is_allowed(tmp_path: Path) -> None:
    good = [click(f"user-{number}", "rye", TIME_MS + number) for number in range(10)]
    garbage = [
        ("baguni.carts", b"user", b"\xff", cloud_event_headers(good[0], f"bad-{number}", "test"))
        for number in range(150)
    ]
    with own_servers(tmp_path) as own, sender(own.endpoints) as producing:
        producing.send(good)
        with Consumers(own.endpoints, tmp_path, 1):
            assert compare(own.endpoints, expected(good)).lost == 0
        producing.send_raw(garbage)
        broken = Consumers(own.endpoints, tmp_path, 1)
        for _ in range(2):  # starting it again does not skip them
            broken.start(0)
            process = broken.processes[0]
            assert process is not None
            assert process.wait(COMMAND_S) == 1
            assert "150 of the last 150 records are malformed" in broken.logs[0].read_text().splitlines()[-1]
        assert dead_letters(own.endpoints) == []
        with Consumers(own.endpoints, tmp_path, 1, BAGUNI_MAX_DEAD_SHARE="1"):
            wait(lambda: len(dead_letters(own.endpoints)) == 150)
