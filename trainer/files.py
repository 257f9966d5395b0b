"""Files that are there whole or not at all: what reads them never sees half of one, whenever a process is killed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from baguni.domain.release import link_or_copy


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes the name `path` once the block ends without an error, in place of what had that name.

    Several processes may write the same file at once: the last to end wins. OSError where the folder cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            yield file
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def share(source: Path, target: Path, names: Sequence[str]) -> None:
    """Give a run's folder the files of another that it would only compute again. FileNotFoundError if one is missing there."""
    for name in names:
        if not (target / name).is_file():
            link_or_copy(str(source / name), str(target / name))
