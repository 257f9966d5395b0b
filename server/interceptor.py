"""Where exceptions become gRPC statuses, once for all RPCs. Clients get google.rpc details and never a traceback."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.code_pb2 import (
    DEADLINE_EXCEEDED,
    FAILED_PRECONDITION,
    INTERNAL,
    INVALID_ARGUMENT,
    NOT_FOUND,
    UNAVAILABLE,
)
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

from baguni.errors import BaguniError, InvalidInputError, NotFoundError, UnavailableError
from server.deadline import DeadlineExceeded
from server.validation import InvalidRequestError, StalePageError

log = logging.getLogger(__name__)
DOMAIN = "baguni.v1"
RETRY_AFTER_S = 1


class ErrorInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Maps the domain's exceptions to statuses."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap unary methods; the streaming ones are health checks and reflection, which map their own."""
        handler = await continuation(handler_call_details)
        if handler is None or handler.unary_unary is None:
            return handler

        async def handle(request: Message, context: Any) -> Any:
            try:
                return await handler.unary_unary(request, context)
            except BaguniError as error:
                await context.abort_with_status(rpc_status.to_status(status_of(error)))
            except Exception as error:
                if isinstance(error, grpc.aio.AbortError):
                    raise
                incident = uuid.uuid4().hex[:12]
                log.exception("unexpected method=%s incident=%s", handler_call_details.method, incident)
                message = f"internal error, incident {incident}"
                await context.abort_with_status(rpc_status.to_status(Status(code=INTERNAL, message=message)))

        return grpc.unary_unary_rpc_method_handler(
            handle, request_deserializer=handler.request_deserializer, response_serializer=handler.response_serializer
        )


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
    if isinstance(error, UnavailableError):
        retry = RetryInfo(retry_delay=Duration(seconds=RETRY_AFTER_S))
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
