"""All lists of a run in one file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from baguni.domain.errors import InvalidInputError
from crm.campaign import FileSink
from crm.state import Push, Run

USERS_AT_ONCE = 5_000
SCHEMA = pa.schema(
    [
        ("user_id", pa.string()), ("position", pa.int32()), ("item_id", pa.string()), ("score", pa.float32()),
        ("campaign", pa.string()), ("run_id", pa.string()), ("release_id", pa.string()), ("cold_start", pa.bool_()),
    ]
)  # fmt: skip


class ListFile:
    """A row an item, users in order, best first. The file appears, or is replaced, when it is complete."""

    def __init__(self, sink: FileSink) -> None:
        self.path = sink.path
        self.name = f"file {sink.path.name}"

    def check(self) -> None:
        """Raises InvalidInputError if the folder is not there."""
        if not self.path.parent.is_dir():
            raise InvalidInputError(f"sink file: {self.path.parent} is no folder", "sinks")

    def write(self, run: Run, pushes: Iterable[Push]) -> None:
        """Write everything, a few users at a time. Raises InvalidInputError where the disk takes no more."""
        partial = self.path.with_name(self.path.name + ".partial")
        try:
            with self._writer(partial) as writer:
                left = iter(pushes)
                while some := list(islice(left, USERS_AT_ONCE)):
                    writer.write_table(pa.Table.from_pylist(self.preview(run, some), SCHEMA))
            partial.replace(self.path)
        except (OSError, pa.ArrowException) as error:
            raise InvalidInputError(f"sink file: {partial} cannot be written: {error}", "sinks") from error

    def preview(self, run: Run, pushes: Sequence[Push]) -> list[dict[str, Any]]:
        """The rows."""
        return [
            {
                "user_id": push.user_id,
                "position": position,
                "item_id": item.item_id,
                "score": item.score,
                "campaign": run.campaign,
                "run_id": run.run_id,
                "release_id": push.release_id,
                "cold_start": push.cold_start,
            }
            for push in pushes
            for position, item in enumerate(push.items)
        ]

    def _writer(self, path: Path) -> pq.ParquetWriter | pa.csv.CSVWriter:
        return pa.csv.CSVWriter(path, SCHEMA) if self.path.suffix == ".csv" else pq.ParquetWriter(path, SCHEMA)
