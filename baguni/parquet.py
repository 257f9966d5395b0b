"""Parquet files from outside, read whole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def read_parquet(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Return some columns of a file, by default all. Raises OSError and ArrowException, the latter also for texts that are no
    UTF-8, as a damaged page may have."""
    table = pq.read_table(path, columns=None if columns is None else list(columns))
    table.validate(full=True)
    return table
