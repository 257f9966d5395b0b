"""Turn protobuf requests into queries. Every wrong field is named with what was expected; none is guessed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from itertools import islice
from typing import Any, TypeVar

from google.protobuf.timestamp_pb2 import Timestamp

from baguni.domain import filters
from baguni.domain.errors import BaguniError, InvalidInputError
from baguni.domain.events import MAX_ID_LENGTH, MAX_PLACEMENT, is_id
from baguni.domain.filters import Filter
from baguni.domain.history import Action, HistoryEvent
from baguni.domain.signed_tokens import TokenSigner
from baguni.v1 import recommendation_pb2 as pb
from server.edge.page_token import PageToken, query_hash
from server.experiments.choices import NO_CHOICES, Choices
from server.lists.queries import Cap, GenerateQuery, RecommendQuery, Rules, SimilarQuery, Visitor

T = TypeVar("T")
ACTIONS = frozenset(Action)
MAX_ID = MAX_ID_LENGTH
MAX_REQUEST_ID = 128
MAX_TEXT = 1_024  # characters of a filter's value or of an attribute's name or text
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
    """Raised for the page token of a release that is no longer served: the list must be started again."""


class _Checks:
    """Collect violations: name the first MAX_VIOLATIONS, count the others."""

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
        """Yield at most `high` of the entries; more are a violation."""
        self.require(len(values) <= high, field, _too_many(values, high))
        return islice(values, high)

    def ids(self, values: Sequence[str], field: str, high: int) -> None:
        for position, value in enumerate(self.some(values, field, high)):
            if not 0 < len(value) <= MAX_ID:
                self.length(value, f"{field}[{position}]", 1, MAX_ID)

    def raise_if_any(self) -> None:
        if self.violations:
            raise InvalidRequestError(self.violations, self._more)


class RecommendDraft:
    """A Recommend request as far as it can be read without a release, whose catalogue decides which filters are valid.

    visitor: who the list is for; attributes: of the visitor, for experiments. Both are meaningful only if `is_valid`.
    """

    def __init__(self, request: pb.RecommendRequest, clock: Callable[[], float] = time.time) -> None:
        self.request, self._checks = request, _Checks()
        checks = self._checks
        checks.length(request.request_id, "request_id", 0, MAX_REQUEST_ID)
        checks.length(request.placement, "placement", 0, MAX_PLACEMENT)
        checks.number(request.page_size, "page_size", MAX_PAGE)
        checks.ids(request.candidate_item_ids, "candidate_item_ids", MAX_CANDIDATES)
        self.visitor = _visitor(request, checks)
        self._now_ms = _now_ms(request.now, request.HasField("now"), checks, clock)
        in_range = 0 <= request.diversity <= 1  # false for NaN too
        checks.require(in_range, "diversity", f"is {request.diversity}, expected 0 to 1")
        self.attributes = _attributes(request, checks)

    @property
    def is_valid(self) -> bool:
        """Return whether nothing is wrong so far."""
        return not self._checks.violations

    def query(
        self, attribute_types: Mapping[str, str], release_id: str, signer: TokenSigner, choices: Choices = NO_CHOICES
    ) -> tuple[RecommendQuery, str]:
        """Return the query and the hash that its page tokens carry. Raises InvalidRequestError or StalePageError."""
        request, checks = self.request, self._checks
        rules = _rules(request, attribute_types, checks)
        caps = _caps(request, attribute_types, checks)
        digest = "" if checks.violations else _query_digest(request)  # a request of any size is not copied
        token = _page_token(request.page_token, digest, release_id, signer, checks) if request.page_token else None
        checks.raise_if_any()
        query = RecommendQuery(
            self.visitor,
            rules,
            tuple(dict.fromkeys(request.candidate_item_ids)),
            token.offset if token else 0,
            request.page_size or DEFAULT_PAGE,
            token.now_ms if token else self._now_ms,
            token.rescored if token else True,
            choices.rescored is not False,
            caps,
            request.diversity if choices.diversity is None else choices.diversity,
            request.placement,
            choices.listed,
            choices.num_retrieved,
            choices.explore,
            choices.assignments,
        )
        return query, digest


def generate_query(
    request: pb.GenerateTopItemsRequest, attribute_types: Mapping[str, str], clock: Callable[[], float] = time.time
) -> GenerateQuery:
    """Return the query for the users with a valid id; the others get an answer of their own. Raises InvalidRequestError."""
    checks = _Checks()
    checks.length(request.request_id, "request_id", 0, MAX_REQUEST_ID)
    count = len(request.user_ids)
    checks.require(0 < count <= MAX_USERS, "user_ids", f"has {count} entries, expected 1 to {MAX_USERS}")
    checks.number(request.k, "k", MAX_K)
    now_ms = _now_ms(request.now, request.HasField("now"), checks, clock)
    rules = _rules(request, attribute_types, checks)
    checks.raise_if_any()
    users = tuple(user_id for user_id in request.user_ids if is_id(user_id))
    return GenerateQuery(users, request.k or DEFAULT_K, rules, now_ms)


def similar_query(request: pb.SimilarItemsRequest, attribute_types: Mapping[str, str]) -> SimilarQuery:
    """Return the query. Raises InvalidRequestError."""
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


def _too_many(values: Sized, high: int) -> str:
    return f"has {len(values)} entries, expected at most {high}"


def _rules(
    request: pb.RecommendRequest | pb.GenerateTopItemsRequest | pb.SimilarItemsRequest,
    attribute_types: Mapping[str, str],
    checks: _Checks,
) -> Rules:
    before = len(checks.violations)
    checks.ids(request.exclude_item_ids, "exclude_item_ids", MAX_EXCLUDED)
    given = checks.some(request.filters, "filters", MAX_FILTERS)
    conditions = tuple(_filter(f, f"filters[{position}]", checks) for position, f in enumerate(given))
    if len(checks.violations) == before:
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
        values = tuple(islice(message.any_of.values, MAX_VALUES))
        for position, value in enumerate(values):
            checks.length(value, f"{where}.any_of.values[{position}]", 0, MAX_TEXT)
        return Filter(message.attribute, any_of=values)
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


def _visitor(request: pb.RecommendRequest, checks: _Checks) -> Visitor:
    """Return who the list is for."""
    subject = request.WhichOneof("subject")
    checks.require(subject is not None, "subject", "is empty, expected user_id or anonymous")
    if subject == "user_id":
        checks.length(request.user_id, "user_id", 1, MAX_ID)
        return Visitor(request.user_id)
    events = _recent_events(request.anonymous, checks) if subject == "anonymous" else ()
    return Visitor(request.anonymous.anonymous_id, is_anonymous=True, events=events)


def _attributes(request: pb.RecommendRequest, checks: _Checks) -> dict[str, Any]:
    """Return the visitor's attributes; none of more than are allowed."""
    count = len(request.attributes)
    checks.require(count <= MAX_ATTRIBUTES, "attributes", _too_many(request.attributes, MAX_ATTRIBUTES))
    if count > MAX_ATTRIBUTES:
        return {}
    for name, value in request.attributes.items():
        checks.length(name, "attributes", 1, MAX_TEXT)
        checks.length(value.string_value, f"attributes[{name[:MAX_ID]!r}]", 0, MAX_TEXT)
    return {name: getattr(value, value.WhichOneof("value") or "", None) for name, value in request.attributes.items()}


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
    """Return milliseconds since 1970, or None and a violation for a time before 1970 or after MAX_SECONDS."""
    if 0 < time.seconds < MAX_SECONDS and 0 <= time.nanos < 1_000_000_000:
        return int(time.seconds * 1000 + time.nanos // 1_000_000)
    value = f"{time.seconds} s and {time.nanos} ns"
    checks.add(field, f"is {value}, expected a time after 1970 and before 9999-12-31, nanos below 1e9")
    return None


def _query_digest(request: pb.RecommendRequest) -> str:
    """Return the hash of the fields that must not change from page to page."""
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
