"""Apply a request's rules to items."""

# I = items, N = all items

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from baguni.domain.history import Action, History
from baguni.domain.scoring import Int64
from server.lists.queries import Rules
from server.lists.ranking import NO_ITEMS
from server.release.items import ItemTable


def excluded(items: ItemTable, rules: Rules, purchased_I: Int64 = NO_ITEMS) -> Int64:
    """Return the items that the rules exclude by themselves, whatever the filters permit, ascending."""
    by_id_I = items.indexes(rules.exclude_item_ids)
    return np.union1d(by_id_I, purchased_I) if rules.exclude_purchased else np.sort(by_id_I)


def permitted(items: ItemTable, index_I: Int64, rules: Rules, purchased_I: Int64 = NO_ITEMS) -> NDArray[np.bool_]:
    """Return [I], whether the rules permit each item for a user who purchased `purchased_I`."""
    permitted_I = items.are_allowed(index_I, rules.filters)
    excluded_I = excluded(items, rules, purchased_I)
    return permitted_I & ~np.isin(index_I, excluded_I) if len(excluded_I) else permitted_I


def permitted_of_all(items: ItemTable, rules: Rules, purchased_I: Int64 = NO_ITEMS) -> NDArray[np.bool_]:
    """Return [N], the same for every item."""
    permitted_N = items.allowed(rules.filters).copy()
    permitted_N[excluded(items, rules, purchased_I)] = False
    return permitted_N


def purchased_items(history: History) -> frozenset[str]:
    """Return the ids of all ordered items."""
    return frozenset(event.item_id for event in history.events if event.action is Action.ORDERED)
