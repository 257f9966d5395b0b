"""From protobuf requests to queries. Every field that is wrong is named, with what was expected; none is guessed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from itertools import islice
from typing import TypeVar

from google.protobuf.timestamp_pb2 import Timestamp

from baguni import filters
from baguni.errors import BaguniError, InvalidInputError
from baguni.filters import Filter
from baguni.history import Action, HistoryEvent
from baguni.placements import MAX_PLACEMENT
from baguni.signed_tokens import TokenSigner
from baguni.v1 import recommendation_pb2 as pb
from server.experiments import NOTHING, Choices
from server.page_token import PageToken, query_hash
from server.queries import Cap, GenerateQuery, RecommendQuery, Rules, SimilarQuery

T = TypeVar("T")
ACTIONS = frozenset(Action)
MAX_ID = 256
MAX_REQUEST_ID = 128
MAX_PAGE, DEFAULT_PAGE = 200, 20
MAX_K, DEFAULT_K = 50, 10
MAX_USERS = 256
MAX_EXCLUDED = MAX_CANDIDATES = 5_000
MAX_RECENT = 200
MAX_FILTERS, MAX_VALUES = 50, 1_000  # conditions of a request, values of one of them
MAX_VIOLATIONS = 20  # that are named
MAX_CAPS = 4
MAX_ATTRIBUTES = 32
MAX_SECONDS = 253_402_214_400  # 9999-12-31: a day less than what a date can be, for time zones


class InvalidRequestError(InvalidInputError):
    """Raised for a request with violations: (field, what is wrong) pairs, and how many more there are."""

    def __init__(self, violations: Sequence[tuple[str, str]], more: int = 0) -> None:
        named = "; ".join(f"{field} {problem}" for field, problem in violations)
        super().__init__(named + (f"; and {more} more" if more else ""), violations[0][0])
        self.violations = violations


class StalePageError(BaguniError):
    """The page token's release is no longer served: the list has to be started again."""


class _Checks:
    """Collects violations: the first MAX_VIOLATIONS by name, the others by number."""

    def __init__(self) -> None:
        self.violations: list[tuple[str, str]] = []
        self._more = 0

    def require(self, holds: bool, field: str, problem: str) -> None:
        if not holds:
            self.add(field, problem)

    def add(self, field: str, problem: str) -> None:
        if len(self.violations) < MAX_VIOLATIONS:
            self.violations.append((field, problem))
        else:
            self._more += 1

    def length(self, value: str, field: str, low: int, high: int) -> None:
        size = len(value)
        self.require(low <= size <= high, field, f"has {size} characters, expected {low} to {high}")

    def number(self, value: int, field: str, high: int) -> None:
        self.require(0 <= value <= high, field, f"is {value}, expected 1 to {high}, or 0 for the default")

    def some(self, values: Sequence[T], field: str, high: int) -> Iterator[T]:
        """At most `high` of the entries: nothing that is longer than allowed is looked at whole."""
        self.require(len(values) <= high, field, _too_many(values, high))
        return islice(values, high)

    def ids(self, values: Sequence[str], field: str, high: int) -> None:
        for position, value in enumerate(self.some(values, field, high)):
            if not 0 < len(value) <= MAX_ID:
                self.length(value, f"{field}[{position}]", 1, MAX_ID)

    def raise_if_any(self) -> None:
        if self.violations:
            raise InvalidRequestError(self.violations, self._more)


def recommend_query(
    request: pb.RecommendRequest,
    attribute_types: Mapping[str, str],
    release_id: str,
    signer: TokenSigner,
    choices: Choices = NOTHING,
    clock: Callable[[], float] = time.time,
) -> tuple[RecommendQuery, str]:
    """The query and the hash that its page tokens carry. Raises InvalidRequestError or StalePageError."""
    checks = _Checks()
    checks.length(request.request_id, "request_id", 0, MAX_REQUEST_ID)
    checks.length(request.placement, "placement", 0, MAX_PLACEMENT)
    checks.number(request.page_size, "page_size", MAX_PAGE)
    checks.ids(request.candidate_item_ids, "candidate_item_ids", MAX_CANDIDATES)
    subject = request.WhichOneof("subject")
    checks.require(subject is not None, "subject", "is empty, expected user_id or anonymous")
    if subject == "user_id":
        checks.length(request.user_id, "user_id", 1, MAX_ID)
    recent = _recent_events(request.anonymous, checks) if subject == "anonymous" else ()
    now_ms = _now_ms(request.now, request.HasField("now"), checks, clock)
    rules = _rules(request, attribute_types, checks)
    caps = _caps(request, attribute_types, checks)
    in_range = 0 <= request.diversity <= 1  # false for NaN too
    checks.require(in_range, "diversity", f"is {request.diversity}, expected 0 to 1")
    checks.require(has_few_attributes(request), "attributes", _too_many(request.attributes, MAX_ATTRIBUTES))
    digest = "" if checks.violations else _query_digest(request)  # a request of any size is not copied
    token = _page_token(request.page_token, digest, release_id, signer, checks) if request.page_token else None
    checks.raise_if_any()
    return (
        RecommendQuery(
            request.user_id if subject == "user_id" else None,
            recent,
            rules,
            tuple(dict.fromkeys(request.candidate_item_ids)),
            token.offset if token else 0,
            request.page_size or DEFAULT_PAGE,
            token.now_ms if token else now_ms,
            token.rescored if token else True,
            caps,
            request.diversity if choices.diversity is None else choices.diversity,
            request.placement,
            choices,
        ),
        digest,
    )


def generate_query(
    request: pb.GenerateTopItemsRequest, attribute_types: Mapping[str, str], clock: Callable[[], float] = time.time
) -> GenerateQuery:
    """The query for the well-formed users of the batch; ill-formed ids are answered one by one, not refused together."""
    checks = _Checks()
    checks.length(request.request_id, "request_id", 0, MAX_REQUEST_ID)
    count = len(request.user_ids)
    checks.require(0 < count <= MAX_USERS, "user_ids", f"has {count} entries, expected 1 to {MAX_USERS}")
    checks.number(request.k, "k", MAX_K)
    now_ms = _now_ms(request.now, request.HasField("now"), checks, clock)
    rules = _rules(request, attribute_types, checks)
    checks.raise_if_any()
    users = tuple(user_id for user_id in request.user_ids if is_user_id(user_id))
    return GenerateQuery(users, request.k or DEFAULT_K, rules, now_ms)


def similar_query(request: pb.SimilarItemsRequest, attribute_types: Mapping[str, str]) -> SimilarQuery:
    """The query. Raises InvalidRequestError."""
    checks = _Checks()
    checks.length(request.request_id, "request_id", 0, MAX_REQUEST_ID)
    checks.length(request.item_id, "item_id", 1, MAX_ID)
    checks.number(request.page_size, "page_size", MAX_PAGE)
    known = request.space in (pb.SPACE_CONTENT, pb.SPACE_COLLABORATIVE)
    checks.require(known, "space", "is not set, expected SPACE_CONTENT or SPACE_COLLABORATIVE")
    rules = _rules(request, attribute_types, checks)
    checks.raise_if_any()
    collaborative = request.space == pb.SPACE_COLLABORATIVE
    return SimilarQuery(request.item_id, collaborative, request.page_size or DEFAULT_PAGE, rules)


def has_few_attributes(request: pb.RecommendRequest) -> bool:
    """Return whether a request has no more attributes than allowed: only then may experiments look at them."""
    return len(request.attributes) <= MAX_ATTRIBUTES


def _too_many(values: Sized, high: int) -> str:
    return f"has {len(values)} entries, expected at most {high}"


def is_user_id(user_id: str) -> bool:
    """Whether it can name a user."""
    return 0 < len(user_id) <= MAX_ID


def _rules(
    request: pb.RecommendRequest | pb.GenerateTopItemsRequest | pb.SimilarItemsRequest,
    attribute_types: Mapping[str, str],
    checks: _Checks,
) -> Rules:
    checks.ids(request.exclude_item_ids, "exclude_item_ids", MAX_EXCLUDED)
    given = checks.some(request.filters, "filters", MAX_FILTERS)
    conditions = tuple(_filter(f, f"filters[{position}]", checks) for position, f in enumerate(given))
    if not checks.violations:
        try:
            filters.check(conditions, attribute_types)
        except InvalidInputError as error:
            checks.add(error.field, str(error).removeprefix(error.field).strip())
    conditions = tuple(dict.fromkeys(conditions))  # one that is there twice says nothing more
    purchased = not isinstance(request, pb.SimilarItemsRequest) and request.exclude_purchased
    return Rules(conditions, frozenset(request.exclude_item_ids), purchased)


def _filter(message: pb.Filter, where: str, checks: _Checks) -> Filter:
    kind = message.WhichOneof("condition")
    checks.require(bool(message.attribute), f"{where}.attribute", "is empty, expected the name of an attribute")
    checks.require(kind is not None, f"{where}.condition", "is empty, expected any_of, range or is")
    if kind == "any_of":
        size = len(message.any_of.values)
        checks.require(0 < size <= MAX_VALUES, f"{where}.any_of", f"has {size} values, expected 1 to {MAX_VALUES}")
        return Filter(message.attribute, any_of=tuple(islice(message.any_of.values, MAX_VALUES)))
    if kind == "range":
        low = message.range.min if message.range.HasField("min") else None
        high = message.range.max if message.range.HasField("max") else None
        ordered = low is None or high is None or low <= high
        checks.require(ordered, f"{where}.range", f"has min {low} and max {high}, expected min ≤ max")
        return Filter(message.attribute, bounds=(low, high))
    return Filter(message.attribute, is_=getattr(message, "is"))


def _caps(request: pb.RecommendRequest, attribute_types: Mapping[str, str], checks: _Checks) -> tuple[Cap, ...]:
    kinds = {"category": "string", **attribute_types}
    names = sorted(name for name, kind in kinds.items() if kind == "string")
    given = tuple(checks.some(request.caps, "caps", MAX_CAPS))
    for position, cap in enumerate(given):
        where = f"caps[{position}]"
        known = cap.attribute in names
        checks.require(known, f"{where}.attribute", f"is {cap.attribute!r}, expected one of {', '.join(names)}")
        fits = 0 < cap.max_items <= MAX_PAGE
        checks.require(fits, f"{where}.max_items", f"is {cap.max_items}, expected 1 to {MAX_PAGE}")
    return tuple(Cap(cap.attribute, cap.max_items) for cap in given)


def _recent_events(anonymous: pb.AnonymousUser, checks: _Checks) -> tuple[HistoryEvent, ...]:
    where = "anonymous.recent_events"
    checks.length(anonymous.anonymous_id, "anonymous.anonymous_id", 0, MAX_ID)
    events = []
    for position, event in enumerate(checks.some(anonymous.recent_events, where, MAX_RECENT)):
        place = f"{where}[{position}]"
        checks.length(event.item_id, f"{place}.item_id", 1, MAX_ID)
        action = int(event.action)
        known = action in ACTIONS
        checks.require(known, f"{place}.action", "is not set, expected ACTION_ORDERED, _CLICKED or _CARTED")
        milliseconds = _milliseconds(event.event_time, f"{place}.event_time", checks)
        if known and milliseconds is not None:
            order_id = (event.order_id or str(milliseconds)) if action == Action.ORDERED else ""
            events.append(HistoryEvent(event.item_id, Action(action), milliseconds, order_id))
    return tuple(sorted(set(events), key=lambda event: event.sort_key))


def _now_ms(now: Timestamp, is_set: bool, checks: _Checks, clock: Callable[[], float]) -> int:
    if not is_set:
        return int(clock() * 1000)
    return _milliseconds(now, "now", checks) or 0


def _milliseconds(time: Timestamp, field: str, checks: _Checks) -> int | None:
    """Since 1970; None for what is no time of this age, which is a violation."""
    if 0 < time.seconds < MAX_SECONDS and 0 <= time.nanos < 1_000_000_000:
        return int(time.seconds * 1000 + time.nanos // 1_000_000)
    value = f"{time.seconds} s and {time.nanos} ns"
    checks.add(field, f"is {value}, expected a time after 1970 and before 9999-12-31, nanos below 1e9")
    return None


def _query_digest(request: pb.RecommendRequest) -> str:
    """All that must stay the same from page to page."""
    fixed = pb.RecommendRequest()
    fixed.CopyFrom(request)
    for changing in ("page_token", "page_size", "request_id", "now"):
        fixed.ClearField(changing)
    return query_hash(fixed.SerializeToString(deterministic=True))


def _page_token(text: str, digest: str, release_id: str, signer: TokenSigner, checks: _Checks) -> PageToken | None:
    try:
        token = PageToken.decode(text, signer)
    except InvalidInputError as error:
        checks.add("page_token", str(error).removeprefix("page_token "))
        return None
    checks.require(
        not digest or token.query == digest,
        "page_token",
        "belongs to another request, expected the same fields on every page",
    )
    if token.release_id != release_id:
        raise StalePageError(
            f"page_token is of release {token.release_id}, which is no longer served: start the list again"
        )
    return token
