"""The demo's households: what each really ordered next, and the lists that it gets."""

from __future__ import annotations

from dataclasses import dataclass, field

from trainer.data.dataset import Dataset
from trainer.data.splits import last_month_start_ms

MIN_EARLIER_ORDERS, MIN_ITEMS = 15, 6


@dataclass(frozen=True)
class NextOrder:
    """The next order of a household: `time_ms` is when it was placed, `item_ids` its items."""

    user_id: str
    order_id: str
    time_ms: int
    item_ids: tuple[str, ...]


@dataclass
class Shown:
    """One household in the final table."""

    order: NextOrder
    before: list[str] = field(default_factory=list)
    generated: list[str] = field(default_factory=list)
    after_clicks: list[str] = field(default_factory=list)
    after_order: list[str] = field(default_factory=list)


def next_orders(dataset: Dataset) -> list[NextOrder]:
    """Return the first December order of households with enough of a past, in a fixed order."""
    orders, start_ms, seen = dataset.orders(), last_month_start_ms(dataset), dict[int, int]()
    found = []
    for user, time_ms, number, first, last in zip(
        orders.user_O.tolist(),
        orders.time_O.tolist(),
        orders.number_O.tolist(),
        orders.first_O.tolist(),
        orders.last_O.tolist(),
        strict=True,
    ):
        if time_ms < start_ms:
            seen[user] = seen.get(user, 0) + 1
        elif seen.pop(user, 0) >= MIN_EARLIER_ORDERS and last - first >= MIN_ITEMS:
            item_ids = tuple(dataset.catalog.items[i].item_id for i in orders.item_P[first:last].tolist())
            found.append(NextOrder(dataset.user_ids[user], dataset.order_ids[number], time_ms, item_ids))
    return found
