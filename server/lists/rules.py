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


def permitted(items: ItemTable, index_I: Int64, rules: Rules, purchased_I: Int64 = NO_ITEMS) -> NDArray[np.bool_]:
    """Return [I], whether the rules permit each item for a user who purchased `purchased_I`."""
    permitted_I = items.are_allowed(index_I, rules.filters)
    if rules.exclude_item_ids:
        permitted_I &= ~np.isin(index_I, items.indexes(rules.exclude_item_ids))
    if rules.exclude_purchased:
        permitted_I &= ~np.isin(index_I, purchased_I)
    return permitted_I


def permitted_of_all(items: ItemTable, rules: Rules, purchased_I: Int64 = NO_ITEMS) -> NDArray[np.bool_]:
    """Return [N], the same for every item."""
    permitted_N = items.allowed(rules.filters).copy()
    permitted_N[items.indexes(rules.exclude_item_ids)] = False
    if rules.exclude_purchased:
        permitted_N[purchased_I] = False
    return permitted_N


def purchased_items(history: History) -> frozenset[str]:
    """Return the ids of all ordered items."""
    return frozenset(event.item_id for event in history.events if event.action is Action.ORDERED)
