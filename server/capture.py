"""Requests written down for replay: the slow ones, and a share of all. One JSON object a line, in a file that only the
gateway's user may read, since it names users; it is rotated, so that it has an end.
"""

from __future__ import annotations

import json
import logging
import os
import random
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict, ParseDict, ParseError

from baguni.errors import InvalidInputError
from baguni.v1 import recommendation_pb2 as pb
from server.metrics import Metrics

log = logging.getLogger(__name__)
FILE_MODE = 0o600
BACKUPS = 1  # the file that was full, beside the one being written

stage_ms: ContextVar[dict[str, float] | None] = ContextVar("stage_ms", default=None)
"""What each stage of the request being answered took, in ms; `Recommend` makes it, `Parts.ask` fills it."""


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

    def line(self) -> str:
        """As JSON."""
        return json.dumps({**asdict(self), "request": MessageToDict(self.request)}, ensure_ascii=False)

    @classmethod
    def of(cls, line: str) -> Recorded:
        """Inverse of `line`. Raises InvalidInputError for anything else."""
        try:
            fields: dict[str, Any] = json.loads(line)
            request = ParseDict(fields.pop("request"), pb.RecommendRequest())
            return cls(request=request, item_ids=tuple(fields.pop("item_ids")), **fields)
        except (ValueError, TypeError, KeyError, AttributeError, ParseError) as error:
            raise InvalidInputError(f"is no recorded request: {error}", "log") from error


def read_log(paths: Sequence[Path]) -> Iterator[Recorded]:
    """The requests of some files. Raises InvalidInputError that names the line, OSError for a file that cannot be read."""
    for path in paths:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            try:
                yield Recorded.of(line)
            except InvalidInputError as error:
                raise InvalidInputError(f"{path}:{number} {error}", "log") from error


class Capture:
    """Writes to FOLDER/NAME.jsonl; nothing without a folder. `slow_s`: what is slower is written and logged; `share`: of all,
    however slow, chosen by chance."""

    def __init__(
        self, folder: Path | None, name: str, slow_s: float, share: float, max_bytes: int, metrics: Metrics
    ) -> None:
        self._slow_ms, self._share, self._metrics = 1e3 * slow_s, share, metrics
        self._file: _PrivateFile | None = None
        if folder is not None:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file = _PrivateFile(folder / f"{name}.jsonl", max_bytes, metrics)

    def is_sampled(self) -> bool:
        """Whether chance wants this request written down."""
        return self._file is not None and random.random() < self._share  # noqa: S311 - no secret

    def is_slow(self, took_ms: float) -> bool:
        """Whether a request that took so long is to be written down."""
        return self._file is not None and took_ms >= self._slow_ms

    def add(self, recorded: Recorded) -> None:
        """Write one down."""
        if self._file is None:
            return
        if recorded.took_ms >= self._slow_ms:
            stages = " ".join(f"{stage}_ms={took:.0f}" for stage, took in recorded.stage_ms.items())
            log.warning("slow took_ms=%.0f tier=%s %s", recorded.took_ms, recorded.tier, stages)
        self._metrics.captured.labels("written").inc()
        self._file.emit(logging.makeLogRecord({"msg": recorded.line()}))

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


class _PrivateFile(RotatingFileHandler):
    """The standard library's rotation; nobody else may read the files."""

    def __init__(self, path: Path, max_bytes: int, metrics: Metrics) -> None:
        self._metrics = metrics
        super().__init__(path, maxBytes=max_bytes, backupCount=BACKUPS, encoding="utf-8")

    def _open(self) -> Any:
        return open(
            os.open(self.baseFilename, os.O_APPEND | os.O_CREAT | os.O_WRONLY, FILE_MODE), "a", encoding="utf-8"
        )

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the standard library's name
        """A disk that is full costs the line and nothing else."""
        self._metrics.captured.labels("dropped").inc()
