"""The items of a shop: ids, text, categories, and the attributes that filters use.

A catalogue is columns; an item is an index into them. It knows nothing of vectors, codes or servers.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

CATEGORY_SEPARATOR = " > "
AttributeValue = str | float | bool


@dataclass(frozen=True, slots=True)
class Item:
    """One item as a shop describes it. `attributes` are what filters can ask for, beyond category and available."""

    item_id: str
    title: str
    category_path: tuple[str, ...] = ()
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)
    available: bool = True
    description: str = ""

    @property
    def category(self) -> str:
        """The path as one string: "GROCERY > BREAD"."""
        return CATEGORY_SEPARATOR.join(self.category_path)

    @property
    def text(self) -> str:
        """Text that the text encoder reads."""
        values = [value for _, value in sorted(self.attributes.items()) if isinstance(value, str) and value]
        words = ", ".join(values)
        return ". ".join(part for part in (self.title, self.category, words, self.description) if part)


@dataclass(frozen=True)
class Catalog:
    """Items by index. `attribute_types` maps each attribute to "string", "number" or "bool"."""

    items: Sequence[Item]
    attribute_types: Mapping[str, str]

    def __len__(self) -> int:
        return len(self.items)

    @cached_property
    def index(self) -> dict[str, int]:
        """item_id → item index."""
        return {item.item_id: index for index, item in enumerate(self.items)}

    @cached_property
    def categories(self) -> NDArray[np.str_]:
        """Each item's category path as one string, [N]."""
        return np.asarray([item.category for item in self.items], dtype=np.str_)

    def save(self, path: Path) -> None:
        """Write one Parquet file; `load` reads it back unchanged."""
        columns: dict[str, pa.Array] = {
            "item_id": pa.array([item.item_id for item in self.items], pa.string()),
            "title": pa.array([item.title for item in self.items], pa.string()),
            "category_path": pa.array([list(item.category_path) for item in self.items], pa.list_(pa.string())),
            "available": pa.array([item.available for item in self.items], pa.bool_()),
            "description": pa.array([item.description for item in self.items], pa.string()),
        }
        for name, kind in self.attribute_types.items():
            columns[f"attributes.{name}"] = pa.array([item.attributes.get(name) for item in self.items], _ARROW[kind])
        pq.write_table(pa.table(columns), path)

    @classmethod
    def load(cls, path: Path) -> Catalog:
        """Read what `save` wrote."""
        table = pq.ParquetFile(path).read(use_threads=False)
        names = [name for name in table.column_names if name.startswith("attributes.")]
        kinds = {name.removeprefix("attributes."): _kind(table.schema.field(name).type) for name in names}
        items = _items(table, list(kinds))
        del table
        pa.default_memory_pool().release_unused()  # a server lives long after this
        return cls(items, kinds)


def _items(table: pa.Table, attributes: Sequence[str]) -> list[Item]:
    """The rows. Equal words and paths are kept once: a process may hold a million items."""
    seen: dict[Any, Any] = {}

    def column(name: str) -> Iterator[Any]:
        values = (value.as_py() for chunk in table.column(name).iterchunks() for value in chunk)
        return (seen.setdefault(value, value) if isinstance(value, str) else value for value in values)

    paths = (tuple(seen.setdefault(word, word) for word in path) for path in column("category_path"))
    columns = [column(f"attributes.{name}") for name in attributes]
    values = zip(*columns, strict=True) if columns else itertools.repeat((), table.num_rows)
    rows = zip(
        column("item_id"),
        column("title"),
        (seen.setdefault(path, path) for path in paths),
        ({name: x for name, x in zip(attributes, row, strict=True) if x is not None} for row in values),
        column("available"),
        column("description"),
        strict=True,
    )
    return [Item(*row) for row in rows]


_ARROW = {"string": pa.string(), "number": pa.float64(), "bool": pa.bool_()}


def _kind(arrow_type: pa.DataType) -> str:
    return next(kind for kind, expected in _ARROW.items() if expected == arrow_type)
