"""A shop small enough to train on in seconds: 60 items on 6 shelves, 40 users who each favour two shelves."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd

SHELVES = ("BREAD", "MILK", "FRUIT", "CHEESE", "BEER", "SOAP")
KINDS = ("rye", "white", "organic", "family", "small", "fresh", "aged", "light", "classic", "premium")
TIMEZONE = "America/New_York"
NUM_USERS = 40
FIRST_DAY = datetime(2024, 1, 3, 10, 0)
LAST_MONTH = datetime(2024, 4, 1)


def write_tiny_shop(path: Path) -> Path:
    """The shop in the documented format; orders from January to April 2024, so April is the test month."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "dataset.json").write_text(json.dumps({"name": "tiny-shop", "timezone": TIMEZONE}))
    items().to_csv(path / "items.csv", index=False)
    events().to_csv(path / "events.csv", index=False)
    return path


def items() -> pd.DataFrame:
    """60 items with a price and a brand."""
    rows = [
        {
            "item_id": f"{shelf.lower()}-{kind}",
            "title": f"{kind} {shelf.lower()}",
            "category": f"GROCERY > {shelf}" if shelf != "SOAP" else "HOUSEHOLD > SOAP",
            "brand": "own" if number % 2 else "other",
            "price": 1.0 + number / 10,
            "available": "true",
        }
        for shelf in SHELVES
        for number, kind in enumerate(KINDS)
    ]
    return pd.DataFrame(rows)


def events() -> pd.DataFrame:
    """Weekly orders of 3 to 5 items, most of them a user's own favourites, and a click now and then."""
    rng = np.random.default_rng(0)
    ids = items()["item_id"].to_numpy().reshape(len(SHELVES), len(KINDS))
    rows = []
    for user in range(NUM_USERS):
        favourites = rng.choice(ids[[user % 6, (user + 2) % 6]].ravel(), 6, replace=False)
        for week in range(16):
            when = FIRST_DAY + timedelta(weeks=week, hours=int(rng.integers(0, 48)))
            chosen = set(rng.choice(favourites, 3, replace=False)) | set(rng.choice(ids.ravel(), 1))
            order = {"user_id": f"user-{user}", "action": "order", "order_id": f"order-{user}-{week}"}
            rows += [{**order, "item_id": item_id, "time": when.isoformat()} for item_id in sorted(chosen)]
            clicked = {"user_id": f"user-{user}", "action": "click", "order_id": ""}
            rows.append({**clicked, "item_id": min(chosen), "time": (when - timedelta(minutes=5)).isoformat()})
    return pd.DataFrame(rows)
