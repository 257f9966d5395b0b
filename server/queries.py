"""What the gateway is asked and what it answers, without protobuf."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from baguni.filters import Filter
from baguni.history import HistoryEvent
from server.experiments import NOTHING, Choices
from server.explore import Explored


class Source(IntEnum):
    """Which part of the pipeline proposed an item; the numbers are those of `baguni.v1.Source`."""

    RETRIEVAL = 1
    HISTORY = 2
    GENERATIVE = 3
    POPULAR = 4
    CANDIDATE = 5
    CONTENT = 6


class Tier(IntEnum):
    """How much of the pipeline answered; the numbers are those of `baguni.v1.DegradationTier`."""

    FULL = 1
    CACHED_EMBEDDING = 2
    CACHED_LIST = 3
    POPULAR = 4
    RETRIEVAL_ORDER = 5


_FROM_BEST = (Tier.FULL, Tier.RETRIEVAL_ORDER, Tier.CACHED_EMBEDDING, Tier.CACHED_LIST, Tier.POPULAR)


def worse(one: Tier, other: Tier) -> Tier:
    """The one that says less of the user."""
    return max(one, other, key=_FROM_BEST.index)


@dataclass(frozen=True)
class Rules:
    """Which items may be returned."""

    filters: tuple[Filter, ...] = ()
    exclude_item_ids: frozenset[str] = frozenset()
    exclude_purchased: bool = False


@dataclass(frozen=True)
class Cap:
    """At most `max_items` with one value of the attribute in a round of a list."""

    attribute: str
    max_items: int


@dataclass(frozen=True)
class RecommendQuery:
    """`user_id` is None for an anonymous visitor, whose events stand in `recent_events`. `rescored`: whether the generative
    head had its say in the order of the pages before. `choices`: what experiments choose. Times in ms, UTC."""

    user_id: str | None
    recent_events: tuple[HistoryEvent, ...]
    rules: Rules
    candidate_item_ids: tuple[str, ...]
    offset: int
    page_size: int
    now_ms: int
    rescored: bool = True
    caps: tuple[Cap, ...] = ()
    diversity: float = 0.0
    placement: str = ""
    choices: Choices = NOTHING

    @property
    def list_size(self) -> int:
        """Of how many items, best first, the page is made: itself and those before it, one that says that more follow, and
        those that chance may put in its place."""
        among = self.choices.explore.among if self.choices.explore else 0
        return max(self.offset + self.page_size + 1, among)

    @property
    def is_arranged(self) -> bool:
        """Whether an item's place depends on its neighbours."""
        return bool(self.caps) or self.diversity > 0


@dataclass(frozen=True)
class GenerateQuery:
    """A batch of users that are all well-formed."""

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


@dataclass(frozen=True)
class RankedItem:
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
