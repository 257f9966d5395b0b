"""Folders in which commands make something that others see when it is whole.

A command holds a lock on what it makes. The kernel lets go of a dead process's lock, so what nobody makes any more is known,
and removed when it is old. Until then the command can be repeated, and goes on.

    ROOT/.KIND-NAME/         what is being made
    ROOT/.KIND-NAME.lock     held by its process
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

log = logging.getLogger(__name__)
OLD_S = 86_400.0  # after the last change: a command that was killed is repeated the next night at the latest
STAGING = re.compile(r"(\.(?:adding|building|pulling)-\w+)(\.lock)?")


@contextmanager
def locked(path: Path, on_wait: Callable[[], None] = lambda: None) -> Iterator[int]:
    """Hold the lock of a file, which is there as long, while the body runs. Waits for another holder, after a call of
    `on_wait`. Yields the file's descriptor: a process that inherits it holds the lock, too, until it ends."""
    while (file := _locked_file(path, on_wait)) is None:
        pass
    with file:
        try:
            yield file.fileno()
        finally:
            path.unlink(missing_ok=True)


def _locked_file(path: Path, on_wait: Callable[[], None]) -> BinaryIO | None:
    """Return the file with its lock, None if the holder before has removed it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as opened, suppress(FileNotFoundError):
        file = opened.enter_context(path.open("ab"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_ino == path.stat().st_ino:
            opened.pop_all()
            return file
    return None


@contextmanager
def unheld(lock: Path) -> Iterator[bool]:
    """Hold a lock while the body runs, if nobody holds it. Yields whether nobody does; where that cannot be found out, as on a
    file system that is read-only, somebody may."""
    is_free = True
    with ExitStack() as opened:
        try:  # for writing: NFS locks no other file exclusively
            fcntl.flock(opened.enter_context(lock.open("r+b")), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            pass
        except BlockingIOError:
            is_free = False
        except OSError as error:
            log.warning("not known whether somebody holds lock=%s error=%s", lock, error)
            is_free = False
        yield is_free


@contextmanager
def staging(root: Path, kind: str, name: str) -> Iterator[Path]:
    """Yield the folder `.KIND-NAME` of a root, with what a killed command has left there, for this process alone."""
    folder = root / f".{kind}-{name}"
    with locked(root / f"{folder.name}.lock"):
        folder.mkdir(exist_ok=True)
        yield folder


def remove_abandoned(root: Path, now_s: float | None = None) -> None:
    """Remove what killed commands have left in staging folders, unless something there changed within OLD_S."""
    now_s = time.time() if now_s is None else now_s
    for name in {match[1] for path in root.iterdir() if (match := STAGING.fullmatch(path.name))}:
        folder, lock = root / name, root / f"{name}.lock"
        if now_s - max(changed_s(folder), changed_s(lock)) > OLD_S:
            with unheld(lock) as is_free:
                if is_free:
                    shutil.rmtree(folder, ignore_errors=True)
                    lock.unlink(missing_ok=True)


def changed_s(path: Path) -> float:
    """Return when something at or below a path was changed last, in s since 1970; also when an older file was linked there. 0
    if nothing is there."""
    times = [0.0]
    below = ((folder, *folders, *files) for folder, folders, files in os.walk(path))
    for folder, *names in [(str(path),), *below]:
        for each in (folder, *(os.path.join(folder, name) for name in names)):
            with suppress(FileNotFoundError):  # its command goes on
                times.append(os.lstat(each).st_ctime)
    return max(times)
