"""Folders that commands are making are theirs as long as they live, and removed when they were killed long ago."""

from __future__ import annotations

import errno
import fcntl
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from baguni.domain.release import ReleaseStore
from baguni.domain.staging import OLD_S, locked, remove_abandoned, staging, unheld

KINDS = ["adding", "building", "pulling"]
LATER_S = OLD_S + 60
HOLDS = """
import sys
from pathlib import Path
from baguni.domain.staging import staging
with staging(Path(sys.argv[1]), sys.argv[2], "r1") as folder:
    (folder / "part").write_text("half")
    print("begun", flush=True)
    sys.stdin.read()
"""


@contextmanager
def working(root: Path, kind: str) -> Iterator[subprocess.Popen[str]]:
    """A process that makes something until it is told to end."""
    command = [sys.executable, "-c", HOLDS, str(root), kind]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_killed_process_left_is_removed_when_it_is_old(tmp_path: Path, kind: str) -> None:
    with working(tmp_path, kind) as process:
        folder = tmp_path / f".{kind}-r1"
        remove_abandoned(tmp_path, time.time() + LATER_S)
        assert (folder / "part").read_text() == "half"  # however old: its process lives
        process.kill()
        process.wait()
        remove_abandoned(tmp_path)
        assert (folder / "part").exists()  # the same command may go on there
        remove_abandoned(tmp_path, time.time() + LATER_S)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", KINDS)
def test_what_an_earlier_version_left_without_a_lock_is_removed(tmp_path: Path, kind: str) -> None:
    (tmp_path / f".{kind}-x/release/triton").mkdir(parents=True)
    remove_abandoned(tmp_path, time.time() + LATER_S)
    assert list(tmp_path.iterdir()) == []


def test_nothing_else_is_removed(tmp_path: Path) -> None:
    names = [".tensorrt-timing", ".adding", ".adding-r1.lock.d", "r20260101_00000000", "pulling-r1", ".git"]
    for name in names:
        (tmp_path / name).mkdir()
    remove_abandoned(tmp_path, time.time() + LATER_S)
    assert {path.name for path in tmp_path.iterdir()} == {*names}


def test_removing_releases_removes_what_was_abandoned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with working(tmp_path, "building") as process:
        process.kill()
        process.wait()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + LATER_S)
    assert ReleaseStore(tmp_path).remove_but([]) == []
    assert list(tmp_path.iterdir()) == []


def test_a_process_waits_for_another_and_works_in_a_folder_that_is_there(tmp_path: Path) -> None:
    """Each holder removes the folder and the lock, as one does that has ended."""
    at_once, most, begun = [0], [0], [0]
    guard = threading.Lock()

    def count(change: int) -> None:
        with guard:
            at_once[0] += change
            begun[0] += change > 0
            most[0] = max(most[0], at_once[0])

    def work() -> None:
        for _ in range(20):
            with staging(tmp_path, "adding", "r1") as folder:
                count(1)
                (folder / "part").write_text("")
                shutil.rmtree(folder)
                count(-1)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most[0], begun[0]) == (1, 160)
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_body_is_not_hidden(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), locked(tmp_path / "lock"):
        raise FileNotFoundError
    with locked(tmp_path / "lock", on_wait=lambda: pytest.fail("the lock is still held")):
        pass


def test_locks_work_where_only_a_writer_may_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS makes of flock a lock of bytes, and refuses an exclusive one to who has opened the file to read."""
    flock = fcntl.flock

    def of_nfs(file: Any, operation: int) -> None:
        if operation & fcntl.LOCK_EX and not file.writable():
            raise OSError(errno.EBADF, "Bad file descriptor")
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", of_nfs)
    with staging(tmp_path, "adding", "r1"), unheld(tmp_path / ".adding-r1.lock") as is_free:
        assert not is_free
    (tmp_path / ".adding-r1.lock").touch()  # of a command that was killed
    with unheld(tmp_path / ".adding-r1.lock") as is_free:
        assert is_free
    remove_abandoned(tmp_path, time.time() + LATER_S)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_locked_counts_as_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lock").touch()

    def refuses(file: Any, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuses)
    with unheld(tmp_path / "lock") as is_free:
        assert not is_free
