"""Turn the domain's exceptions into gRPC statuses, with google.rpc details and without a traceback."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterable

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.code_pb2 import (
    DEADLINE_EXCEEDED,
    FAILED_PRECONDITION,
    INTERNAL,
    INVALID_ARGUMENT,
    NOT_FOUND,
    PERMISSION_DENIED,
    RESOURCE_EXHAUSTED,
    UNAUTHENTICATED,
    UNAVAILABLE,
)
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from baguni.domain.errors import BaguniError, InvalidInputError, NotFoundError, RefusedError, UnavailableError
from server.edge.callers import ForbiddenError, RateLimitedError, UnauthenticatedError
from server.edge.validation import InvalidRequestError, StalePageError
from server.lists.deadline import DeadlineExceeded

log = logging.getLogger(__name__)
DOMAIN = "baguni.v1"
RETRY_AFTER_S = 1.0
# A status travels in the trailers, of which many clients take 8 kB: ASCII of every other script is three to nine times as long.
MAX_MESSAGE, MAX_FIELD, MAX_PROBLEM = 300, 80, 200  # characters
MAX_VIOLATIONS_BYTES = 2_048


class OverloadedError(BaguniError):
    """Too many requests are being answered: one more would only make all of them late."""


CODES: dict[type[BaguniError], tuple[int, str]] = {
    InvalidInputError: (INVALID_ARGUMENT, "INVALID_REQUEST"),
    NotFoundError: (NOT_FOUND, "NOT_FOUND"),
    StalePageError: (FAILED_PRECONDITION, "STALE_PAGE"),
    UnauthenticatedError: (UNAUTHENTICATED, "UNAUTHENTICATED"),
    ForbiddenError: (PERMISSION_DENIED, "FORBIDDEN"),
    RateLimitedError: (RESOURCE_EXHAUSTED, "RATE_LIMITED"),
    OverloadedError: (RESOURCE_EXHAUSTED, "OVERLOADED"),
    DeadlineExceeded: (DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED"),
    UnavailableError: (UNAVAILABLE, "UNAVAILABLE"),
    RefusedError: (UNAVAILABLE, "UNAVAILABLE"),  # by a server, of what the gateway asked
}
"""Each exception's code, and the reason that callers may rely on."""


def status_of(error: Exception) -> Status:
    """Return the status that a caller gets for an exception. An unexpected one has the name of its entry in the log."""
    if not isinstance(error, BaguniError):
        return _unexpected(error)
    found = next((CODES[kind] for kind in type(error).__mro__ if kind in CODES), None)
    if found is None:
        return _unexpected(error)
    if isinstance(error, UnavailableError | RefusedError):
        log.warning("unavailable part=%s error=%s", error.part, error)
        error = BaguniError(f"{error.part} is unavailable")  # what a server said stays in the log
    return _status(*found, str(error), _details(found[0], error))


def _details(code: int, error: BaguniError) -> Iterable[Message]:
    if isinstance(error, InvalidRequestError):
        yield _bad_request(error.violations)
    elif isinstance(error, InvalidInputError):
        yield _bad_request([(error.field, str(error))])
    if code in (RESOURCE_EXHAUSTED, UNAVAILABLE):
        delay = Duration()
        delay.FromNanoseconds(int(getattr(error, "retry_after_s", RETRY_AFTER_S) * 1e9))
        yield RetryInfo(retry_delay=delay)


def _unexpected(error: Exception) -> Status:
    incident = uuid.uuid4().hex[:12]
    log.error("unexpected incident=%s", incident, exc_info=error)
    return _status(INTERNAL, "INTERNAL", f"internal error, incident {incident}", ())


def _bad_request(violations: Iterable[tuple[str, str]]) -> BadRequest:
    """Return as many of the violations as fit into the details."""
    found = BadRequest()
    for field, problem in violations:
        violation = BadRequest.FieldViolation(field=_short(field, MAX_FIELD), description=_short(problem, MAX_PROBLEM))
        if found.ByteSize() + violation.ByteSize() > MAX_VIOLATIONS_BYTES:
            break
        found.field_violations.append(violation)
    return found


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _status(code: int, reason: str, message: str, details: Iterable[Message]) -> Status:
    packed = []
    for detail in (ErrorInfo(reason=reason, domain=DOMAIN), *details):
        holder = AnyMessage()
        holder.Pack(detail)
        packed.append(holder)
    return Status(code=code, message=_short(message, MAX_MESSAGE), details=packed)
