"""Requests captured for replay: the slow ones, and a share of all. One JSON object a line, in a file that only the gateway's
user may read, because it names users. Its size and the age of its lines are bounded, and users can be removed from it.

    FOLDER/HOST.online-0.jsonl      is being written, by the process that holds its lock
    FOLDER/HOST.online-0.jsonl.1    what was written before
"""

from __future__ import annotations

import fcntl
import glob
import json
import logging
import math
import os
import random
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict, ParseDict, ParseError

from baguni.domain.errors import InvalidInputError
from baguni.domain.staging import unheld
from baguni.v1 import recommendation_pb2 as pb
from server.settings import ServerSettings
from server.telemetry.metrics import Metrics

log = logging.getLogger(__name__)
DAY_MS = 86_400_000
FILE_MODE = 0o600
PROCESS = re.compile(r"(.+\.)?online-\d+")  # begins the names of its files
CAPTURED = re.compile(PROCESS.pattern + r"\.jsonl(\.\d+)?")
TIDYING = ".tidying"  # a lock of those that change files that no process writes
PARTIAL = re.compile(PROCESS.pattern + r"(\.\d+)?\.partial")
BACKUPS = 1  # the file that was full, beside the one being written

stage_ms: ContextVar[dict[str, float] | None] = ContextVar("stage_ms", default=None)
"""Duration of each stage of the current request, in ms. `Recommend` makes it, `ListRequest.ask` fills it."""


@dataclass(frozen=True)
class Recorded:
    """A request for a list with what became of it. `now_ms`, `offset` and `rescored` say what its page token said, which is of
    no use to another release. `sampled`: chosen by chance, not for being slow. Times in ms."""

    request: pb.RecommendRequest
    request_id: str
    release_id: str
    now_ms: int
    offset: int
    rescored: bool
    tier: str
    item_ids: tuple[str, ...]
    took_ms: float
    stage_ms: dict[str, float]
    exposure_token: str = ""
    sampled: bool = False
    written_ms: int = 0  # by our clock; `now_ms` may be the caller's

    def line(self) -> str:
        """Return it as JSON."""
        return json.dumps({**asdict(self), "request": MessageToDict(self.request)}, ensure_ascii=False)

    @classmethod
    def of(cls, line: str) -> Recorded:
        """Inverse of `line`. Raises InvalidInputError for anything else."""
        try:
            fields: dict[str, Any] = json.loads(line)
            request = ParseDict(fields.pop("request"), pb.RecommendRequest())
            return cls(request=request, item_ids=tuple(fields.pop("item_ids")), **fields)
        except (ValueError, TypeError, KeyError, AttributeError, ParseError, RecursionError) as error:
            raise InvalidInputError(f"is no recorded request: {error}", "log") from error


@dataclass
class Skipped:
    """Counts what of a log could not be read: lines that are no recorded request, as a kill or a full disk cuts them, and files
    that were gone by then, as gateways rotate them. `first` names the first line, and what is wrong with it."""

    num_lines: int = 0
    num_files: int = 0
    first: str = ""

    def __str__(self) -> str:
        lines = f"lines that are no recorded request: {self.num_lines:,}, first {self.first}"
        files = f"files that are gone: {self.num_files:,}"
        return "; ".join(words for words, num in ((lines, self.num_lines), (files, self.num_files)) if num)


def log_files(log: Path) -> list[Path]:
    """Return the files of a log, oldest first: itself, or those in a folder and below it."""
    if log.is_file():
        return [log]
    return _oldest_first(Path(folder, name) for folder, _, names in os.walk(log) for name in names if ".jsonl" in name)


def _oldest_first(paths: Iterable[Path]) -> list[Path]:
    """Return the files that are there, by when they were written last."""
    written: dict[Path, int] = {}
    for path in paths:
        with suppress(FileNotFoundError):  # rotated since it was listed
            written[path] = path.stat().st_mtime_ns
    return sorted(written, key=lambda path: (written[path], path))


def read_log(paths: Sequence[Path], skipped: Skipped) -> Iterator[Recorded]:
    """Yield the requests of some files, and count in `skipped` what cannot be read. Raises OSError for a file that is there and
    unreadable."""
    for path in paths:
        try:  # splitlines would cut at U+2028 and U+0085, which ids may have; a cut may be within a character
            lines = path.open(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            skipped.num_files += 1
            continue
        with lines:
            for number, line in enumerate(lines, 1):
                try:
                    yield Recorded.of(line)
                except InvalidInputError as error:
                    skipped.num_lines += 1
                    skipped.first = skipped.first or f"{path}:{number} {error}"


class Capture:
    """Write to FOLDER/NAME.jsonl, or nowhere without a folder. No other process may have the same name."""

    def __init__(self, folder: Path | None, name: str, settings: ServerSettings, metrics: Metrics) -> None:
        self._slow_ms, self._share = 1e3 * settings.capture_slow_s, settings.capture_share
        self._max_age_ms, self._metrics = settings.capture_days * DAY_MS, metrics
        self._folder, self._file = folder, None
        if folder is not None:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file = _PrivateFile(folder / f"{name}.jsonl", settings.capture_bytes, metrics)

    def is_sampled(self) -> bool:
        """Return whether this request is among the share that chance captures."""
        return self._file is not None and random.random() < self._share  # noqa: S311 - no secret

    def is_slow(self, took_ms: float) -> bool:
        """Return whether a request that took so long is captured."""
        return self._file is not None and took_ms >= self._slow_ms

    def add(self, recorded: Recorded) -> None:
        """Write one request."""
        if self._file is None:
            return
        if recorded.took_ms >= self._slow_ms:
            stages = " ".join(f"{stage}_ms={took:.0f}" for stage, took in recorded.stage_ms.items())
            log.warning("slow took_ms=%.0f tier=%s %s", recorded.took_ms, recorded.tier, stages)
        self._metrics.captured.labels("written").inc()
        self._file.handle(logging.makeLogRecord({"msg": recorded.line()}))

    def forget(self, until_ms: Mapping[str, float]) -> int:
        """Remove the requests of users up to a time (user id → that time in ms), and those that are too old: from the files of
        this process, and from those that no process writes any more. Reads the files, so not for the event loop. Returns the
        number of removed requests."""
        if self._file is None or self._folder is None:
            return 0
        removal = Removal(until_ms, time.time() * 1000 - self._max_age_ms)
        return self._file.remove(removal) + remove_from_unused(self._folder, removal)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


@dataclass(frozen=True)
class Removal:
    """Selects captured requests to remove: those of some users, known or anonymous, written up to a time (user id → that time
    in ms), and those of everybody written before `before_ms`."""

    until_ms: Mapping[str, float]
    before_ms: float = -math.inf

    def concerns(self, path: Path) -> bool:
        """Return whether a file may have one: lines are in the order of time."""
        if self.until_ms:
            return path.stat().st_size > 0
        with path.open(encoding="utf-8", errors="replace") as lines:
            first = lines.readline()
        return bool(first) and self.takes(first, path.stat().st_mtime * 1000)

    def takes(self, line: str, file_ms: float) -> bool:
        """Return whether a line is one. `file_ms`: when the file was written last, for a line that does not say when it was."""
        try:  # a tenth of what Recorded.of takes
            fields = json.loads(line)
            request = fields["request"]
            names = {request.get("userId"), request.get("anonymous", {}).get("anonymousId")}
            written_ms = fields.get("written_ms") or 0
        except (ValueError, TypeError, KeyError, AttributeError):
            return True  # cut short by a kill: of no use, and perhaps of such a user
        if (written_ms or file_ms) < self.before_ms:
            return True
        return any(written_ms <= self.until_ms[name] for name in names if name in self.until_ms)  # 0: perhaps before


def captured_of(folder: Path, user_id: str) -> list[tuple[Path, int]]:
    """Return the files below a folder that have requests of a user, and how many each has."""
    removal = Removal({user_id: math.inf})
    while True:
        with suppress(FileNotFoundError):  # rotated since it was listed: its lines are in another file now
            found = [(path, _num_taken(path, removal)) for path in _captured(folder)]
            return [(path, count) for path, count in found if count]


def _num_taken(path: Path, removal: Removal) -> int:
    with path.open(encoding="utf-8", errors="replace") as lines:
        return sum(removal.takes(line, 0.0) for line in lines)


def remove_from_unused(folder: Path, removal: Removal) -> int:
    """Remove requests from the files below a folder that no process writes. Waits while another process does the same. Returns
    the number of removed requests."""
    num_removed = 0
    with (folder / TIDYING).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for path in [*_captured(folder, PARTIAL), *_captured(folder)]:
            with unheld(_written_beside(path)) as is_unused:
                if is_unused and path.suffix == ".partial":
                    path.unlink()
                elif is_unused and removal.concerns(path):
                    num_removed += _rewrite([path], path, removal)
    return num_removed


def _captured(folder: Path, names: re.Pattern[str] = CAPTURED) -> list[Path]:
    """Return the files of gateways below a folder. Somebody may keep other files there. Raises OSError for a folder that cannot
    be read."""

    def fail(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # removed meanwhile
            raise error

    below = os.walk(folder, onerror=fail)
    found = (Path(each, name) for each, _, files in below for name in files if names.fullmatch(name))
    return sorted(path for path in found if path.is_file())


def _written_beside(path: Path) -> Path:
    """Return the file that the process of a file writes, and locks."""
    return path.with_name(f"{PROCESS.match(path.name)[0]}.jsonl")  # type: ignore[index]


def _rewrite(sources: Sequence[Path], target: Path, removal: Removal) -> int:
    """Move what stays of some files to `target`. Returns the number of removed requests."""
    partial, num_removed = target.with_name(target.name.replace(".jsonl", "") + ".partial"), 0
    last_s = max(path.stat().st_mtime for path in sources)
    with os.fdopen(os.open(partial, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, FILE_MODE), "w", encoding="utf-8") as kept:
        for path in sources:
            file_ms = path.stat().st_mtime * 1000
            with path.open(encoding="utf-8", errors="replace") as lines:
                for line in lines:
                    if removal.takes(line, file_ms):
                        num_removed += 1
                    else:
                        kept.write(line)
        is_empty = not kept.tell()
    os.utime(partial, (last_s, last_s))
    partial.replace(target)
    for path in sources:
        if path != target:
            path.unlink()
    if is_empty:
        target.unlink()
    return num_removed


class _PrivateFile(RotatingFileHandler):
    """The standard library's rotation; nobody else may read the files. Holds a lock on the file while it is written."""

    def __init__(self, path: Path, max_bytes: int, metrics: Metrics) -> None:
        self._metrics, self._path, self._is_removing = metrics, path, False
        super().__init__(path, maxBytes=max_bytes, backupCount=BACKUPS, encoding="utf-8")

    def remove(self, removal: Removal) -> int:
        """Remove requests from this file and the one before it, while others may be written. Returns their number. Files that
        somebody else has removed are made anew."""
        if self._is_locked and not self._path.exists():
            self._begin_anew()
        if not self._is_locked or not any(map(removal.concerns, self._files())):
            return 0
        try:
            self._is_removing = True
            self._begin_anew()
            files = [path for path in self._files() if path != self._path]
            return _rewrite(files, self._path.with_name(f"{self._path.name}.{BACKUPS}"), removal) if files else 0
        finally:
            self._is_removing = False

    def _begin_anew(self) -> None:
        """Set aside what was written, and begin another file. If that fails, the next line tries it again."""
        with self.lock:  # type: ignore[union-attr]
            if self.stream is not None:
                self.stream.close()
                self.stream = None
            with suppress(FileNotFoundError):
                self._path.rename(self._path.with_name(f"{self._path.name}.{time.time_ns()}"))
            self.stream = self._open()

    def _files(self) -> list[Path]:
        """Return this file and those before it, oldest first."""
        return _oldest_first(self._path.parent.glob(f"{glob.escape(self._path.name)}*"))

    def shouldRollover(self, record: logging.LogRecord) -> int:  # noqa: N802 - the standard library's name
        """Return whether the file is full; while lines are removed from the one before it, it may grow."""
        return 0 if self._is_removing else int(super().shouldRollover(record))

    def _open(self) -> Any:
        descriptor = os.open(self.baseFilename, os.O_APPEND | os.O_CREAT | os.O_WRONLY, FILE_MODE)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._is_locked = True
        except BlockingIOError:  # another process of this name writes it, too
            self._is_locked = False
        except OSError as error:  # the file system has no locks; nobody else should have the name
            log.warning("captured requests have no lock file=%s error=%s", self.baseFilename, error)
            self._is_locked = True
        return os.fdopen(descriptor, "a", encoding="utf-8")

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the standard library's name
        """Count a line that the disk did not take."""
        self._metrics.captured.labels("dropped").inc()
