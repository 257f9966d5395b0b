"""Queries and their answers, without protobuf."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

from baguni.domain.filters import Filter
from baguni.domain.history import HistoryEvent
from server.experiments.choices import MODEL, Assignment, Exploration
from server.experiments.explore import Explored


class Source(IntEnum):
    """The part of the pipeline that proposed an item; the numbers are those of `baguni.v1.Source`."""

    RETRIEVAL = 1
    HISTORY = 2
    GENERATIVE = 3
    POPULAR = 4
    CANDIDATE = 5
    CONTENT = 6


class Tier(IntEnum):
    """The level of degradation of a list; the numbers are those of `baguni.v1.DegradationTier`."""

    FULL = 1
    CACHED_EMBEDDING = 2
    CACHED_LIST = 3
    POPULAR = 4
    RETRIEVAL_ORDER = 5


_FROM_BEST = (Tier.FULL, Tier.RETRIEVAL_ORDER, Tier.CACHED_EMBEDDING, Tier.CACHED_LIST, Tier.POPULAR)


def worst(*tiers: Tier) -> Tier:
    """Return the tier with the least of the user in it."""
    return max(tiers, key=_FROM_BEST.index)


@dataclass(frozen=True)
class Rules:
    """Rules about the items that may be returned."""

    filters: tuple[Filter, ...] = ()
    exclude_item_ids: frozenset[str] = frozenset()
    exclude_purchased: bool = False


@dataclass(frozen=True)
class Cap:
    """Limit: at most `max_items` with one value of the attribute in a round of a list."""

    attribute: str
    max_items: int


@dataclass(frozen=True)
class Visitor:
    """The shopper a list is for. `id`: of a user, or of an anonymous visitor, who may have none (""); `events`: of an anonymous
    visitor, in place of a stored history."""

    id: str
    is_anonymous: bool = False
    events: tuple[HistoryEvent, ...] = ()

    @property
    def user_id(self) -> str | None:
        """Return the id under which a history may be stored, None for an anonymous visitor."""
        return None if self.is_anonymous else self.id


@dataclass(frozen=True)
class RecommendQuery:
    """One page of a list, as the request and the visitor's experiments ask for it. Times in ms, UTC.

    rescored: whether the generative head ordered the pages before this one; `may_be_rescored`: whether it may order this one
    listed: "model", "popular", or the item ids of a fixed list; num_retrieved: None for the gateway's own number
    explore: how chance may change the order, None for not at all; assignments: the experiments that chose any of these
    """

    visitor: Visitor
    rules: Rules
    candidate_item_ids: tuple[str, ...]
    offset: int
    page_size: int
    now_ms: int
    rescored: bool = True
    may_be_rescored: bool = True
    caps: tuple[Cap, ...] = ()
    diversity: float = 0.0
    placement: str = ""
    listed: str | tuple[str, ...] = MODEL
    num_retrieved: int | None = None
    explore: Exploration | None = None
    assignments: tuple[Assignment, ...] = ()

    @property
    def list_size(self) -> int:
        """Number of ranked items needed: earlier pages, this page and one look-ahead item, or those that chance may place on
        this page if that is more."""
        among = self.explore.among if self.explore else 0
        return max(self.offset + self.page_size + 1, among)

    @property
    def is_arranged(self) -> bool:
        """Return whether an item's place depends on its neighbours."""
        return bool(self.caps) or self.diversity > 0


@dataclass(frozen=True)
class GenerateQuery:
    """A batch of users with valid ids."""

    user_ids: tuple[str, ...]
    k: int
    rules: Rules
    now_ms: int


@dataclass(frozen=True)
class SimilarQuery:
    """`collaborative` chooses the space."""

    item_id: str
    collaborative: bool
    page_size: int
    rules: Rules


class RankedItem(NamedTuple):
    """One item of an answer."""

    item_id: str
    score: float
    sources: tuple[Source, ...]


@dataclass(frozen=True)
class Ranking:
    """One page, best first. `has_more`: whether another page follows; `as_of_ms`: the moment the list was made for, which the
    next page needs; `explored`: how chance had a share in it."""

    items: Sequence[RankedItem]
    tier: Tier = Tier.FULL
    has_more: bool = False
    history_version: int = 0
    as_of_ms: int = 0
    explored: Explored | None = None


@dataclass(frozen=True)
class UserRanking:
    """One user of a batch; `cold` if the items are popular ones, `error` if there are none."""

    items: Sequence[RankedItem] = field(default_factory=tuple)
    cold: bool = False
    error: str = ""
