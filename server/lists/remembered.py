"""Personal lists that are returned again: those of an unchanged user, until an item changes that could change them."""

# I = items, S = items of the user's sequence, V = vector dim

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from baguni.clients.milvus import VISIBLE_S
from baguni.domain.scoring import Float32, Int64
from server.lists.queries import Cap, Rules
from server.lists.ranking import Candidates
from server.lists.rules import permitted
from server.release.items import ItemTable

Bool = NDArray[np.bool_]
SETTLED_S = VISIBLE_S + 1.0  # a search may miss what changed in Milvus since then
MOST_ITEMS = 2_000  # of a list: 20 bytes each
MOST_CHARACTERS = 2_000  # of the ids and values in a list's rules


class ListKey(NamedTuple):
    """Key of a list among those of a user: what it depends on besides the user and the items. `may_be_rescored`: by the
    generative head; `num_retrieved`: None for the gateway's own number."""

    rules: Rules
    may_be_rescored: bool
    num_retrieved: int | None
    caps: tuple[Cap, ...]
    diversity: float


class RememberedList(NamedTuple):
    """A complete list. `num_needed`: at least, of the search; `horizon`: see below; `items_version`: what changed later has not
    been compared with the list."""

    ranked: Candidates
    num_needed: int
    horizon: float
    items_version: int


def is_small(rules: Rules) -> bool:
    """Return whether rules may be kept with a list."""
    values = [*rules.exclude_item_ids, *(value for each in rules.filters for value in each.any_of or ())]
    return sum(map(len, values)) + 8 * len(values) <= MOST_CHARACTERS


def horizon(found_I: Int64, is_permitted_I: Bool, limit: int, items: ItemTable, embedding_V: Float32) -> float | None:
    """Return the inner product that an item must reach to be found by the same search for `limit` items; -inf if every
    permitted item would be found. None if the rules do not permit all that was found: the index does not have the newest
    changes yet, and the items that it should not have found have the places of others."""
    if not is_permitted_I.all():
        return None
    if len(found_I) < limit:
        return -np.inf
    return float((items.item_vectors(found_I) @ embedding_V).min())


def is_current(
    remembered: RememberedList, items: ItemTable, rules: Rules, embedding_V: Float32, known_S: Int64, purchased_I: Int64
) -> bool:
    """Return whether the same list would be made now: no item on it and none that the user knows has changed since, and no
    other changed item is permitted and near enough to be found."""
    if remembered.items_version == items.version:
        return True
    changed_I = items.changed_since(remembered.items_version)
    if changed_I is None or np.isin(changed_I, np.r_[remembered.ranked.index_I, known_S]).any():
        return False
    permitted_I = changed_I[permitted(items, changed_I, rules, purchased_I)]
    return not (items.item_vectors(permitted_I) @ embedding_V >= remembered.horizon).any()
