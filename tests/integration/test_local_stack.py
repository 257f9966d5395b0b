"""The local stack leaves nothing behind, and says what is in its way."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import psutil
import pytest

from baguni.domain.errors import InvalidInputError, NotFoundError
from deploy.local.programs import servers
from deploy.local.settings import StackSettings
from deploy.local.stack import MARK, LocalStack
from tests.waiting import COMMAND_S, eventually

pytestmark = pytest.mark.stack


def own_settings(path: Path, **changes: object) -> StackSettings:
    return StackSettings.on_free_ports(path).model_copy(update=changes)


def marked_processes(stack: LocalStack) -> list[int]:
    """Processes of a stack, found without its help."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == str(stack.settings.root) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def test_a_taken_port_is_named_with_the_way_out(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        stack = LocalStack(own_settings(tmp_path, redis_port=port))
        with pytest.raises(InvalidInputError, match=f"port {port}.*redis.*BAGUNI_STACK_REDIS_PORT"):
            stack.start_servers()
    assert not stack.is_up()
    assert stack.status() == []


def test_missing_servers_are_said_to_be_installed_by_make_setup(tmp_path: Path) -> None:
    stack = LocalStack(own_settings(tmp_path, servers_python=tmp_path / "none"))
    with pytest.raises(NotFoundError, match="make setup"):
        stack.start_servers()


def test_stopping_leaves_no_process_even_when_the_supervisor_was_killed(tmp_path: Path) -> None:
    stack = LocalStack(own_settings(tmp_path))
    try:
        stack.start_servers()
        states = {row.name: row.state for row in stack.status()}
        assert {name for name, state in states.items() if state == "running"} == {"redis", "broker", "milvus", "triton"}
        assert states["gateway"] == "stopped"
        stack.start_servers()  # again: it is up already, and nothing is started twice
        assert len(marked_processes(stack)) >= 5
        started = [psutil.Process(row.pid) for row in stack.status() if row.pid]
        supervisor = int((stack.run_dir / "supervisord.pid").read_text())
        os.kill(supervisor, signal.SIGKILL)
    finally:
        stack.stop()
    assert marked_processes(stack) == []
    assert [process for process in started if process.is_running() and process.status() != psutil.STATUS_ZOMBIE] == []
    assert stack.status() == []


def test_a_milvus_that_ended_before_its_first_write_starts_again(tmp_path: Path) -> None:
    """As one does whose port was taken in that very moment: the etcd that it leaves would never elect a leader."""
    settings = StackSettings.on_free_ports(tmp_path)
    (program,) = (program for program in servers(settings) if program.name == "milvus")
    with (tmp_path / "milvus.log").open("w") as log:
        for attempt in range(3):
            first = psutil.Popen(program.command, stdout=log, stderr=log)
            wal = tmp_path / "milvus" / "data" / "etcd.data" / "member" / "wal"
            eventually(wal.is_dir, "etcd has a log", interval_s=0.002)
            for child in first.children():
                child.kill()
            first.wait()
            assert not wal.exists(), f"attempt {attempt}"
        started: list[psutil.Popen] = []

        def is_ready() -> bool:
            if not started or started[-1].poll() is not None:  # a port was taken again: the stack starts it anew, too
                started.append(psutil.Popen(program.command, stdout=log, stderr=log))
            return program.is_ready()

        try:
            eventually(is_ready, "Milvus is ready", (tmp_path / "milvus.log").read_text)
        finally:
            started[-1].terminate()
            started[-1].wait(COMMAND_S)
