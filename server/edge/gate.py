"""Pass every RPC through these checks, in this order: is there room, who asks and may it, can the request be read. Then it is
answered, traced and timed, and exceptions become statuses.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc.code_pb2 import CANCELLED, OK, Code
from grpc_status import rpc_status

from baguni.domain.errors import InvalidInputError
from server.edge.callers import Callers, Permission
from server.edge.statuses import OverloadedError, status_of
from server.edge.validation import MAX_REQUEST_ID
from server.telemetry.metrics import Metrics
from server.telemetry.tracing import Telemetry, request_id

LAG_CHECK_S = 0.02
OVERLOADED = OverloadedError("too many requests: try again")
BULK_METHOD = "GenerateTopItems"
OPEN_PREFIX = "/grpc.health.v1.Health/"  # probes have no token
OWN_PEER = "unix:"  # processes of this gateway: they share a folder that nobody else may read


class Elsewhere(Protocol):
    """Another process that may have room for a page view."""

    async def ask(self, path: str, raw: bytes, context: Any) -> bytes | None:
        """Return its answer, None if it has no room either."""


@dataclass
class Room:
    """Number of requests of one kind that are, and may be, in flight."""

    max_in_flight: int
    in_flight: int = field(default=0)


class Gate(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Admit at most `max_in_flight` requests of the online methods at a time, and a quarter of that while the event loop is
    `max_lag_s` late, because requests wait then before they are counted. A request without room is sent to `elsewhere`, then
    refused. Bulk has its own room. Health checks are always answered."""

    def __init__(
        self,
        service: str,
        callers: Callers,
        metrics: Metrics,
        telemetry: Telemetry,
        online: Room,
        bulk: Room,
        max_lag_s: float,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        self._elsewhere = elsewhere
        self._prefix, self._callers, self._metrics, self._telemetry = f"/{service}/", callers, metrics, telemetry
        self._rooms = {Permission.ONLINE: online, Permission.BULK: bulk}
        self._max_lag_s, self._lag_s = max_lag_s, 0.0

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
        """Wrap the service's methods, which are unary; guard reflection, which is a stream."""
        handler = await continuation(handler_call_details)
        path = handler_call_details.method
        if handler is None or path.startswith(OPEN_PREFIX):
            return handler
        metadata = {key: str(value) for key, value in handler_call_details.invocation_metadata or ()}
        if not path.startswith(self._prefix):
            return self._guarded(handler, metadata)
        method = path.removeprefix(self._prefix)
        permission = Permission.BULK if method == BULK_METHOD else Permission.ONLINE
        room = self._rooms[permission]
        if room.in_flight >= self._allowed(room):  # before the request is even read
            return grpc.unary_unary_rpc_method_handler(self._shedding(path, permission, metadata))
        return grpc.unary_unary_rpc_method_handler(self._answering(handler, method, permission, metadata))

    def _allowed(self, room: Room) -> int:
        """Return the number of requests that may be in flight now. A loop that is late with few of them is late for another
        reason, so refusing all would not help."""
        allowed = room.max_in_flight if self._lag_s <= self._max_lag_s else room.max_in_flight // 4
        return max(allowed, 1)

    def _shedding(self, path: str, permission: Permission, metadata: dict[str, str]) -> Any:
        async def handle(raw: bytes, context: Any) -> bytes | None:
            is_of_a_sibling = context.peer().startswith(OWN_PEER)
            if self._elsewhere is not None and permission is Permission.ONLINE and not is_of_a_sibling:
                try:
                    self._admit(metadata, context, permission)
                except Exception as error:
                    await context.abort_with_status(rpc_status.to_status(status_of(error)))
                answer = await self._elsewhere.ask(path, raw, context)
                if answer is not None:
                    self._metrics.handed_over.inc()
                    return answer
            if not is_of_a_sibling:  # it counts what becomes of its request
                self._metrics.refused.labels("overloaded").inc()
            await context.abort_with_status(rpc_status.to_status(status_of(OVERLOADED)))
            return None

        return handle

    def _answering(self, handler: Any, method: str, permission: Permission, metadata: dict[str, str]) -> Any:
        async def handle(raw: bytes, context: Any) -> bytes:
            with self._telemetry.request(self._prefix + method, metadata):
                return await self._answer(handler, method, permission, metadata, raw, context)

        return handle

    async def _answer(
        self, handler: Any, method: str, permission: Permission, metadata: dict[str, str], raw: bytes, context: Any
    ) -> bytes:
        started, code, room = time.perf_counter(), OK, self._rooms[permission]
        room.in_flight += 1
        self._metrics.in_flight.inc()
        try:
            self._admit(metadata, context, permission)
            if handler.request_deserializer is None:  # for another process, which reads it
                return bytes(await handler.unary_unary(raw, context))
            request = _parsed(handler.request_deserializer, raw)
            request_id.set(request.request_id[:MAX_REQUEST_ID] or uuid.uuid4().hex)
            return bytes(handler.response_serializer(await handler.unary_unary(request, context)))
        except grpc.aio.AbortError:
            code = _number(context.code())
            raise
        except asyncio.CancelledError:
            code = CANCELLED
            raise
        except Exception as error:
            status = status_of(error)
            code = status.code
            await context.abort_with_status(rpc_status.to_status(status))
            raise  # never reached: aborting raises
        finally:
            room.in_flight -= 1
            self._metrics.in_flight.dec()
            self._metrics.request_s.labels(method, Code.Name(code)).observe(time.perf_counter() - started)
            self._telemetry.answered(code)

    def _guarded(self, handler: Any, metadata: dict[str, str]) -> Any:
        async def handle(requests: AsyncIterator[Message], context: Any) -> AsyncIterator[Message]:
            try:
                self._admit(metadata, context, Permission.ADMIN)
            except Exception as error:
                await context.abort_with_status(rpc_status.to_status(status_of(error)))
            async for response in handler.stream_stream(requests, context):
                yield response

        return grpc.stream_stream_rpc_method_handler(handle, handler.request_deserializer, handler.response_serializer)

    def _admit(self, metadata: dict[str, str], context: Any, permission: Permission) -> None:
        if self._callers.is_open or context.peer().startswith(OWN_PEER):
            return
        try:
            self._callers.admit(metadata.get("authorization", ""), _certificate_names(context), permission)
        except Exception as error:
            self._metrics.refused.labels(type(error).__name__.removesuffix("Error").lower()).inc()
            raise


def _number(code: Any) -> int:
    """Return the gRPC code as an int; forwarded aborts carry an enum instead."""
    return int(code.value[0] if isinstance(code, grpc.StatusCode) else code)


def _certificate_names(context: Any) -> Iterable[str]:
    identity = context.auth_context()
    for kind in ("x509_common_name", "x509_subject_alternative_name"):
        yield from (name.decode(errors="replace") for name in identity.get(kind, ()))


def _parsed(deserialize: Callable[[bytes], Any], raw: bytes) -> Any:
    try:
        return deserialize(raw)
    except DecodeError as error:
        raise InvalidInputError(f"the request of {len(raw)} bytes is no message of this method", "request") from error
