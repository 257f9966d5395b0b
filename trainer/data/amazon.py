"""Amazon reviews 2014, 5-core (McAuley et al. 2015; the sequences of S3-Rec, arXiv:2008.07873), as an adapter to the
documented format, for comparison with the literature.

The files are not part of this project: `sequences.txt.gz` has one user a line (user, then item numbers, oldest first),
`items.jsonl.gz` one item a line. There are no timestamps, so each review becomes an order of its own on a made-up clock,
on which the field's leave-one-out split is the project's own split by months: a user's last item falls into the last
month (test), the one before it into the month before (validation), and so on back, always four weeks apart, so that the
clock says no more about the items to predict than about the others.
Same-day reviews stand in the order of their product numbers in the source: item numbers are names here, never features.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from baguni.domain.catalog import CATEGORY_SEPARATOR
from baguni.domain.errors import InvalidInputError, NotFoundError

TEST_DAY = pd.Timestamp("2014-03-15", tz="UTC")
STEP = pd.Timedelta(weeks=4)
SPORTS_ROOT = "Sports & Outdoors"
UNKNOWN = "Other"


def prepare(target: Path, source: Path) -> dict[str, int]:
    """Write the data set to the folder `target`; returns what was read."""
    for name in ("sequences.txt.gz", "items.jsonl.gz"):
        if not (source / name).is_file():
            raise NotFoundError(f"{source / name} does not exist: expected sequences.txt.gz and items.jsonl.gz there")
    with gzip.open(source / "items.jsonl.gz", "rt") as lines:
        items = pd.DataFrame([_item(json.loads(line)) for line in lines])
    with gzip.open(source / "sequences.txt.gz", "rt") as lines:
        events = _events([line.split() for line in lines])
    target.mkdir(parents=True, exist_ok=True)
    items.to_parquet(target / "items.parquet", index=False)
    events.to_parquet(target / "events.parquet", index=False)
    (target / "dataset.json").write_text(json.dumps({"name": source.name, "timezone": "UTC"}) + "\n")
    return {"items": len(items), "events": len(events), "users": events["user_id"].nunique()}


def _item(row: dict[str, Any]) -> dict[str, str]:
    """Title, brand and categories where the source has them (Beauty). Sports has a key phrase and attributes: the brand,
    if any, then "Sports & Outdoors" and the path below it."""
    brand, categories = row.get("brand") or "", row.get("categories") or []
    attributes: Sequence[str] = row.get("attributes") or []
    if SPORTS_ROOT in attributes:
        root = attributes.index(SPORTS_ROOT)
        brand, categories = ", ".join(attributes[:root]), list(attributes[root + 1 :])
    return {
        "item_id": str(row["item_id"]),
        "title": row.get("title") or row.get("keyphrase") or " ".join(categories) or UNKNOWN,
        "category": CATEGORY_SEPARATOR.join(categories) or UNKNOWN,
        "brand": brand,
    }


def _events(sequences: Sequence[Sequence[str]]) -> pd.DataFrame:
    """One row an item, each user's last on the test day."""
    length_U = np.asarray([len(sequence) - 1 for sequence in sequences])
    if (length_U < 3).any():
        short = sequences[int(np.flatnonzero(length_U < 3)[0])]
        raise InvalidInputError(
            f"user {short[0]} has {len(short) - 1} items, expected at least 3: train, validate, test"
        )
    user = np.repeat([sequence[0] for sequence in sequences], length_U)
    back = np.repeat(np.cumsum(length_U), length_U) - np.arange(len(user)) - 1  # 0 = the user's last item
    return pd.DataFrame(
        {
            "user_id": user,
            "item_id": [item for sequence in sequences for item in sequence[1:]],
            "action": "order",
            "order_id": [f"{name}-{number}" for name, number in zip(user, back, strict=True)],
            "time": TEST_DAY - back * STEP,
        }
    )
