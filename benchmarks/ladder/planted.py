"""A shop whose shoppers follow rules that are known: does the teacher learn them, and does distillation carry them over?

Each shopper likes a few of the shelves, and orders from each of them now and then. What comes next on a shelf depends on the
item that the shopper ordered there last: after Y comes X. If the last order contains a blocker Z from any shelf, another item
comes instead of X. A share of the purchases is random. So a next order has several parts, and each depends on one past
item and on what else was in the last order: a decoder can look at these items one part at a time, while a single vector must
point at all parts at once.

Everything follows from the seed.
"""

# U = users, N = items, G = shelves, K = items of a shelf, T = tastes of a user, O = orders of a user

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from baguni.domain.sequences import DAY_MS

Int64 = NDArray[np.int64]
FIRST_DAY, DAYS = datetime(2026, 1, 5, tzinfo=UTC), 175  # six months: the last is the test month
_GOODS = (
    "bread milk cheese butter yoghurt eggs apples pears oranges grapes carrots onions potatoes tomatoes spinach rice pasta "
    "flour sugar salt honey jam coffee tea cocoa juice water beer wine crisps nuts biscuits chocolate soup beans tuna salmon "
    "chicken beef tofu"
)
_KINDS = (
    "red green blue white black golden smoked salted sweet sour bitter spicy mild fresh frozen dried canned sliced whole "
    "ground roasted raw organic local imported family mini large premium classic light dark creamy crunchy soft aged young "
    "early late summer winter spring autumn festive daily gourmet rustic northern southern coastal"
)
GOODS, KINDS = _GOODS.split(), _KINDS.split()


@dataclass(frozen=True)
class PlantedShop:
    """Sizes and chances. `blocker_share`: of items that are blockers; `random_share`: of purchases that follow no rule;
    `order_share`: chance that a shopper orders from a liked shelf."""

    num_users: int = 50_000
    num_tastes: int = 3
    mean_orders: int = 9
    order_share: float = 0.8
    blocker_share: float = 0.15
    random_share: float = 0.15
    seed: int = 0


def write_planted_shop(folder: Path, shop: PlantedShop = PlantedShop()) -> Path:
    """Write the shop's catalogue and orders, in the format of docs/data-format.md: whole or not at all."""
    building = folder.with_name(f".{folder.name}-building")
    building.mkdir(parents=True, exist_ok=True)
    items_of().to_parquet(building / "items.parquet", index=False)
    events_of(shop).to_parquet(building / "events.parquet", index=False)
    (building / "dataset.json").write_text(json.dumps({"name": "planted", "timezone": "UTC"}) + "\n")
    return building.rename(folder)


def items_of() -> pd.DataFrame:
    """Return 40 shelves of 50 items. Texts name the shelf and the kind, and nothing of the rules."""
    shelf, kind = np.divmod(np.arange(len(GOODS) * len(KINDS)), len(KINDS))
    titles = [f"{KINDS[k]} {GOODS[g]}" for g, k in zip(shelf, kind, strict=True)]
    return pd.DataFrame(
        {
            "item_id": [f"i{number}" for number in range(len(titles))],
            "title": titles,
            "category": [f"FOOD > {GOODS[g].upper()}" for g in shelf],
        }
    )


def rules_of(shop: PlantedShop) -> tuple[Int64, Int64, NDArray[np.bool_]]:
    """Return what follows each item, [N] without a blocker and [N] with one, and [N] whether it is a blocker. Both successors
    are on the item's shelf, differ from it and from each other."""
    rng = np.random.default_rng([shop.seed, 0])
    num_kinds, first = len(KINDS), np.arange(len(GOODS))[:, None] * len(KINDS)
    cycles = np.argsort(rng.random((len(GOODS), num_kinds)), axis=1)
    place = np.argsort(cycles, axis=1)
    usual, instead = (np.take_along_axis(cycles, (place + step) % num_kinds, axis=1) for step in (1, num_kinds // 2))
    blockers = rng.random(len(GOODS) * num_kinds) < shop.blocker_share
    return (first + usual).ravel(), (first + instead).ravel(), blockers


def events_of(shop: PlantedShop) -> pd.DataFrame:
    """Return the order lines of all shoppers."""
    rng = np.random.default_rng([shop.seed, 1])
    usual_N, instead_N, blocker_N = rules_of(shop)
    num_users, num_kinds = shop.num_users, len(KINDS)
    taste_UT = np.argsort(rng.random((num_users, len(GOODS))), axis=1)[:, : shop.num_tastes]
    last_UT = taste_UT * num_kinds + rng.integers(0, num_kinds, taste_UT.shape)  # ordered there last
    is_blocked_U = np.zeros(num_users, bool)
    num_orders_U = np.clip(rng.poisson(shop.mean_orders, num_users), 2, 3 * shop.mean_orders)
    most = int(num_orders_U.max())
    moment_UO = rng.random((num_users, most))  # of the log's time
    moment_UO[np.arange(most) < most - num_orders_U[:, None]] = 0.0  # before the first order
    moment_UO.sort(axis=1)
    parts = []
    for number in range(most):
        orders_U = number >= most - num_orders_U
        bought_UT = (rng.random(taste_UT.shape) < shop.order_share) & orders_U[:, None]
        bought_UT[orders_U & ~bought_UT.any(axis=1), 0] = True
        by_rule_UT = np.where(is_blocked_U[:, None], instead_N[last_UT], usual_N[last_UT])
        by_chance_UT = taste_UT * num_kinds + rng.integers(0, num_kinds, taste_UT.shape)
        next_UT = np.where(rng.random(taste_UT.shape) < shop.random_share, by_chance_UT, by_rule_UT)
        user, taste = np.nonzero(bought_UT)
        parts.append(pd.DataFrame({"user": user, "item": next_UT[user, taste], "number": number}))
        last_UT = np.where(bought_UT, next_UT, last_UT)
        is_blocked_U = np.where(orders_U, (blocker_N[next_UT] & bought_UT).any(axis=1), is_blocked_U)
    lines = pd.concat(parts, ignore_index=True).sort_values(["user", "number", "item"])
    start_ms = int(FIRST_DAY.timestamp() * 1000)
    moment = moment_UO[lines["user"], lines["number"]]
    return pd.DataFrame(
        {
            "user_id": "u" + lines["user"].astype(str),
            "item_id": "i" + lines["item"].astype(str),
            "action": "order",
            "order_id": "o" + lines["user"].astype(str) + "-" + lines["number"].astype(str),
            "time": pd.to_datetime(start_ms + (moment * DAYS * DAY_MS).astype(np.int64), unit="ms", utc=True),
        }
    )
