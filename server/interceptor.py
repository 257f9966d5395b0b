"""What every RPC passes: requests that would only be late are refused, durations are measured, and exceptions become gRPC
statuses. Clients get google.rpc details and never a traceback.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.code_pb2 import (
    CANCELLED,
    DEADLINE_EXCEEDED,
    FAILED_PRECONDITION,
    INTERNAL,
    INVALID_ARGUMENT,
    NOT_FOUND,
    OK,
    RESOURCE_EXHAUSTED,
    UNAVAILABLE,
    Code,
)
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

from baguni.errors import BaguniError, InvalidInputError, NotFoundError, UnavailableError
from server.deadline import DeadlineExceeded
from server.metrics import Metrics
from server.validation import InvalidRequestError, StalePageError

log = logging.getLogger(__name__)
DOMAIN = "baguni.v1"
RETRY_AFTER_S = 1
LAG_CHECK_S = 0.02


class OverloadedError(BaguniError):
    """Too many requests are being answered: one more would only make all of them late."""


class Gatekeeper(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Refuses what would only be late, times what is answered, and maps the domain's exceptions to statuses. Of the service's
    own methods, at most `max_in_flight` are answered at a time, and a quarter of that while the event loop is `max_lag_s`
    behind: then requests wait unseen, before they are counted. Health checks and reflection always are answered."""

    def __init__(self, service: str, metrics: Metrics, max_in_flight: int, max_lag_s: float) -> None:
        self._prefix, self._metrics = f"/{service}/", metrics
        self._max_in_flight, self._max_lag_s = max_in_flight, max_lag_s
        self._in_flight, self._lag_s = 0, 0.0

    async def watch_the_loop(self) -> None:
        """Measure how late the event loop is, for ever."""
        while True:
            due = time.perf_counter() + LAG_CHECK_S
            await asyncio.sleep(LAG_CHECK_S)
            self._lag_s = time.perf_counter() - due
            self._metrics.loop_lag_s.set(self._lag_s)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the service's methods; they are unary."""
        handler = await continuation(handler_call_details)
        if handler is None or not handler_call_details.method.startswith(self._prefix):
            return handler
        # A loop that is late with little to do is late because of something else: refusing would not help.
        allowed = self._max_in_flight if self._lag_s <= self._max_lag_s else self._max_in_flight // 4
        if self._in_flight >= max(allowed, 1):
            self._metrics.shed.inc()
            return _SHEDDING  # before the request is even read
        method = handler_call_details.method.removeprefix(self._prefix)

        async def handle(request: Message, context: Any) -> Any:
            started, code = time.perf_counter(), OK
            self._in_flight += 1
            self._metrics.in_flight.set(self._in_flight)
            try:
                return await handler.unary_unary(request, context)
            except grpc.aio.AbortError:
                raise
            except asyncio.CancelledError:
                code = CANCELLED
                raise
            except Exception as error:
                status = status_of(error) if isinstance(error, BaguniError) else _unexpected(error, method)
                code = status.code
                await context.abort_with_status(rpc_status.to_status(status))
            finally:
                self._in_flight -= 1
                self._metrics.in_flight.set(self._in_flight)
                self._metrics.request_s.labels(method, Code.Name(code)).observe(time.perf_counter() - started)

        return grpc.unary_unary_rpc_method_handler(
            handle, request_deserializer=handler.request_deserializer, response_serializer=handler.response_serializer
        )


async def _shed(request: bytes, context: Any) -> None:
    await context.abort_with_status(rpc_status.to_status(status_of(OverloadedError("too many requests: try again"))))


_SHEDDING = grpc.unary_unary_rpc_method_handler(_shed)


def _unexpected(error: Exception, method: str) -> Status:
    """What a caller may know of an error that nobody foresaw: under which name it stands in the log."""
    incident = uuid.uuid4().hex[:12]
    log.error("unexpected method=%s incident=%s", method, incident, exc_info=error)
    return Status(code=INTERNAL, message=f"internal error, incident {incident}")


def status_of(error: BaguniError) -> Status:
    """The status that says what a domain exception means to a caller."""
    if isinstance(error, InvalidRequestError):
        return _status(INVALID_ARGUMENT, "INVALID_REQUEST", error, _bad_request(error.violations))
    if isinstance(error, InvalidInputError):
        return _status(INVALID_ARGUMENT, "INVALID_REQUEST", error, _bad_request([(error.field, str(error))]))
    if isinstance(error, NotFoundError):
        return _status(NOT_FOUND, "NOT_FOUND", error)
    if isinstance(error, StalePageError):
        return _status(FAILED_PRECONDITION, "STALE_PAGE", error)
    if isinstance(error, DeadlineExceeded):
        return _status(DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", error)
    retry = RetryInfo(retry_delay=Duration(seconds=RETRY_AFTER_S))
    if isinstance(error, OverloadedError):
        return _status(RESOURCE_EXHAUSTED, "OVERLOADED", error, retry)
    if isinstance(error, UnavailableError):
        public = BaguniError(f"{error.part} is unavailable")  # what a server said stays in the log
        log.warning("unavailable part=%s error=%s", error.part, error)
        return _status(UNAVAILABLE, "UNAVAILABLE", public, retry)
    return _status(INTERNAL, "INTERNAL", BaguniError("internal error"))


def _bad_request(violations: Any) -> BadRequest:
    fields = [BadRequest.FieldViolation(field=field, description=problem) for field, problem in violations]
    return BadRequest(field_violations=fields)


def _status(code: int, reason: str, error: Exception, *details: Message) -> Status:
    packed = []
    for detail in (ErrorInfo(reason=reason, domain=DOMAIN), *details):
        holder = AnyMessage()
        holder.Pack(detail)
        packed.append(holder)
    return Status(code=code, message=str(error), details=packed)
