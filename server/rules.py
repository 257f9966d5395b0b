"""What a request's rules let through."""

# I = items

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from baguni.history import Action, History
from server.active_release import Serving
from server.queries import Rules
from server.users import Int64

NOTHING = np.zeros(0, np.int64)


def allowed(serving: Serving, index_I: Int64, rules: Rules, purchased_I: Int64 = NOTHING) -> NDArray[np.bool_]:
    """[I] which items the rules let through for somebody who purchased these."""
    items = serving.items
    allowed_I = items.are_allowed(index_I, rules.filters)
    if rules.exclude_item_ids:
        allowed_I &= ~np.isin(index_I, items.indexes(rules.exclude_item_ids))
    if rules.exclude_purchased:
        allowed_I &= ~np.isin(index_I, purchased_I)
    return allowed_I


def purchased_items(history: History) -> frozenset[str]:
    """Ids of everything the user ordered."""
    return frozenset(event.item_id for event in history.events if event.action is Action.ORDERED)
