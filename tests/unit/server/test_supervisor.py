"""Processes that hang are replaced, whatever they had done before."""

from __future__ import annotations

import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import psutil
import pytest
from prometheus_client import CollectorRegistry, multiprocess

from baguni.http_server import Limits
from deploy.local.settings import free_port
from server.process import supervisor
from server.process.supervisor import Process, Supervisor
from server.settings import ServerSettings
from tests.waiting import WAIT_S, eventually


class Supervised:
    """A supervisor whose processes are looked after when the test says so."""

    def __init__(self, run_dir: Path, **settings: float) -> None:
        self.supervisor = Supervisor(ServerSettings(run_dir=run_dir, processes=1, bulk_processes=0, **settings))
        self.supervisor._prepare()
        self.process: Process = self.supervisor._processes[0]

    def pid(self) -> int:
        """The process id, or 0 while none runs."""
        return self.process.running.pid if self.process.running else 0

    def start_and_stop_it(self) -> int:
        """Start the process, and stop it before it could answer; return its id."""
        self.supervisor._look_after(self.process)
        pid = self.pid()
        psutil.Process(pid).send_signal(signal.SIGSTOP)
        return pid

    def is_replaced(self, pid: int) -> bool:
        """Look after it once."""
        self.supervisor._look_after(self.process)
        return self.pid() not in (0, pid)


@pytest.fixture
def hasty(tmp_path: Path) -> Iterator[Supervised]:
    """A process has a tenth of a second to answer after its start, an hour later on."""
    supervised = Supervised(tmp_path, start_s=0.1, hang_s=3600)
    yield supervised
    if running := supervised.process.running:
        running.kill()
        running.wait()


def test_a_process_that_hangs_before_it_ever_answered_is_replaced(hasty) -> None:
    pid = hasty.start_and_stop_it()
    eventually(lambda: hasty.is_replaced(pid), "another process")


@pytest.mark.parametrize(
    "ask", [lambda it: it.states(), lambda it: it._ask(it._processes[0])], ids=["probe", "listener"]
)
def test_an_answer_to_anybody_counts(hasty, monkeypatch, ask) -> None:
    """One that served and hangs a moment later, before the supervisor asked again, hangs all the same."""
    pid = hasty.start_and_stop_it()
    monkeypatch.setattr(supervisor, "_health", lambda socket: "NOT_SERVING")
    ask(hasty.supervisor)
    monkeypatch.undo()
    time.sleep(0.2)
    assert not hasty.is_replaced(pid)  # it has answered: the hour counts
    hasty.process.seen -= 3601
    eventually(lambda: hasty.is_replaced(pid), "another process")


def test_probes_are_answered_beside_connections_that_send_nothing(tmp_path: Path) -> None:
    port = free_port()
    supervised = Supervisor(ServerSettings(run_dir=tmp_path, metrics_address=f"127.0.0.1:{port}"))
    supervised._prepare()
    server = supervised._export()
    with ExitStack() as stack:
        stack.callback(server.server_close)
        stack.callback(server.shutdown)
        for _ in range(3 * Limits().max_connections):
            stack.enter_context(closing(socket.create_connection(("127.0.0.1", port))))
        for path in ("livez", "metrics"):
            with urlopen(f"http://127.0.0.1:{port}/{path}", timeout=WAIT_S) as reply:
                assert reply.status == 200


@pytest.mark.parametrize("error", [BlockingIOError(11, "no process"), OSError(24, "no file"), FileNotFoundError()])
def test_a_process_that_cannot_be_started_is_tried_again_and_the_others_serve(
    hasty, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuses(*arguments: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(subprocess, "Popen", refuses)
    hasty.supervisor._look_after(hasty.process)
    assert hasty.pid() == 0
    monkeypatch.undo()
    eventually(lambda: hasty.is_replaced(0), "it is started")


COUNTS = """
import os, sys
os.environ["PROMETHEUS_MULTIPROC_DIR"] = sys.argv[1]
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
Counter("asked", "Asked.", ["by"]).labels("소금").inc(2)
Histogram("took", "Took.", buckets=[1, 2]).observe(1.5)
Gauge("open", "Open.", multiprocess_mode="livesum").set(1)
print(os.getpid())
"""


def test_counts_of_processes_that_ended_stay_and_take_no_more_room(tmp_path: Path) -> None:
    supervised = Supervised(tmp_path)
    folder = supervised.supervisor._counters
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", COUNTS, str(folder)], capture_output=True, text=True, check=True)
        supervised.supervisor._add_counts_of(int(done.stdout))
    cut = struct.pack("iiii", 64, 0, 10_000, 0).ljust(64)  # of one that was killed as it wrote: a key beyond the end
    for content in (cut, b"", b"\xff" * 40):
        (folder / "counter_99.db").write_bytes(content)
        supervised.supervisor._add_counts_of(99)
    assert {path.name for path in folder.iterdir()} == {"counter_ended.db", "histogram_ended.db"}
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry, str(folder))
    assert registry.get_sample_value("asked_total", {"by": "소금"}) == 6
    assert registry.get_sample_value("took_count") == 3
    assert registry.get_sample_value("took_bucket", {"le": "1.0"}) == 0


def test_counts_that_cannot_be_added_end_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    supervised = Supervised(tmp_path)

    def refuses(*arguments: Any) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(supervisor, "MmapedDict", refuses)
    (supervised.supervisor._counters / "counter_99.db").write_bytes(b"")
    supervised.supervisor._add_counts_of(99)
    assert list(supervised.supervisor._counters.iterdir()) == []
