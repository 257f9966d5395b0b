"""A data set with its test month, and what the benchmark has decided for it."""

# N = items

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from baguni.domain.errors import InvalidInputError
from benchmarks.quality.measure import SETTINGS, Float64, Setting
from benchmarks.quality.store import ListStore
from trainer.data.dataset import Dataset
from trainer.data.queries import OrderQueries
from trainer.data.reading import load_dataset
from trainer.data.splits import last_month_start_ms
from trainer.files import written_whole
from trainer.text import BUNDLED, TextEncoder

COLD_ORDERS = (0, 1, 3)
"""How many orders are known of the users in the slice of cold users."""
MIN_ORDERS = {"complete-journey": 5, "amazon-beauty": 1, "amazon-sports": 1}
"""Orders before the validation month that a user needs to take part."""
NO_REPEATS = ("amazon-beauty", "amazon-sports")
"""Data in which nobody has an item twice: only lists without what is bought already say anything, as in the literature."""
KS = {"complete-journey": (10,), "amazon-beauty": (5, 10), "amazon-sports": (5, 10)}
"""Lengths at which lists are measured."""


DISCOUNTS = (0.0, 0.1, 0.2, 0.3, 0.5)
"""Values of a recipe's `popularity_discount` at which lists are measured."""
LITERATURE = "-literature"
"""Ends the name of a shop whose validation month is not trained on, as the literature does it with Amazon data."""


def data_of(name: str) -> str:
    """Return the name of a shop's data set."""
    return name.removesuffix(LITERATURE)


def discount_part(discount: float) -> str:
    """Return the part of the store with the lists of a discount."""
    return f"discount{discount}"


@dataclass(frozen=True)
class Shop:
    """A data set with its test month; `folder` takes lists and training runs. `until_ms`: the moment at which training ends, ms
    UTC; None = where the test month starts."""

    name: str
    path: Path
    folder: Path
    dataset: Dataset
    queries: OrderQueries
    until_ms: int | None = None

    @classmethod
    def open(cls, name: str, path: Path, folder: Path, min_orders: int) -> Shop:
        """Read the data set. The test month is its last one, the month before is for validation: it is trained on unless the
        name says otherwise, see `LITERATURE`. `min_orders`: orders of a user before both."""
        dataset = load_dataset(path)
        test_ms = last_month_start_ms(dataset)
        validation_ms = last_month_start_ms(dataset.before(test_ms))
        queries = OrderQueries.of(dataset, test_ms, min_orders=min_orders, eligible_before_ms=validation_ms)
        if len(queries) == 0:
            raise InvalidInputError(f"{path} has no order to predict in its last month")
        until_ms = validation_ms if name.endswith(LITERATURE) else None
        return cls(name, path, folder / name, dataset, queries, until_ms)

    @property
    def data(self) -> str:
        """Return the name of the data set."""
        return data_of(self.name)

    @property
    def train_until_ms(self) -> int:
        """Return the moment at which training ends, ms UTC."""
        return self.queries.start_ms if self.until_ms is None else self.until_ms

    @cached_property
    def frequency_N(self) -> Float64:  # noqa: N802 - a shape suffix
        """Orders of each item that are trained on, [N]."""
        before = self.dataset.before(self.train_until_ms).orders()
        return np.bincount(before.item_P, minlength=len(self.dataset.catalog)).astype(np.float64)

    @cached_property
    def text_NT(self) -> NDArray[np.float32]:  # noqa: N802 - a shape suffix
        """Text embeddings of the catalogue, [N, T]; made once."""
        path = self.folder / "texts.npy"
        if not path.is_file():
            encoder = TextEncoder(BUNDLED, self.folder / "runs" / "text-encoders")
            embeddings = encoder.embed([item.text for item in self.dataset.catalog.items])
            with written_whole(path) as file:
                np.save(file, embeddings)
        return np.asarray(np.load(path), np.float32)

    @property
    def settings(self) -> tuple[Setting, ...]:
        """What is reported; by the first, heads and peers are compared."""
        return ("novel",) if self.data in NO_REPEATS else SETTINGS

    @property
    def store(self) -> ListStore:
        """Where the lists are kept."""
        return ListStore(self.folder)
