"""Calls to the other processes of this gateway, by their Unix sockets. A request is passed on unread.

`GenerateTopItems` goes to the processes that are there for it, so that a batch of beam searches never shares an event loop with
a page view. A page view that finds its process full goes to one that has room: the kernel spreads connections over processes,
and a few connections may all be of one process while the others idle.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc

from baguni.clients.channels import KEEPALIVE
from baguni.domain.errors import UnavailableError
from server.edge.gate import BULK_METHOD

OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),
    (
        "grpc.max_receive_message_length",
        -1,
    ),  # the caller limits what it takes; 256 lists of long ids are beyond the default
    *KEEPALIVE.items(),
]
PASSED_ON = ("request-id", "traceparent", "tracestate")
FULL_S = 0.05  # how long a process that was full is not asked again: refusing is quick, asking everybody is not
NO_ROOM = (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE)


class Siblings:
    """The processes behind some sockets."""

    def __init__(self, sockets: Sequence[str], default_deadline_s: float) -> None:
        self._channels = [grpc.aio.insecure_channel(socket, options=OPTIONS) for socket in sockets]
        self._default_deadline_s = default_deadline_s

    def __len__(self) -> int:
        return len(self._channels)

    async def ask(self, number: int, path: str, raw: bytes, context: Any) -> bytes:
        """Return the answer of one of them. Raises AioRpcError."""
        remaining_s = context.time_remaining()
        timeout_s = self._default_deadline_s if remaining_s is None else remaining_s
        metadata = [(key, value) for key, value in context.invocation_metadata() if key in PASSED_ON]
        call = self._channels[number].unary_unary(path, None, None)
        return bytes(await call(raw, timeout=timeout_s, metadata=metadata))

    async def close(self) -> None:
        """Close the channels."""
        for channel in self._channels:
            await channel.close(None)


class BulkForwarder(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Send bulk requests to the siblings in turn."""

    def __init__(self, service: str, siblings: Siblings) -> None:
        self._siblings, self._path = siblings, f"/{service}/{BULK_METHOD}"
        self._next = os.getpid()  # so that several processes do not begin with the same one

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Answer bulk requests; the others go on."""
        if handler_call_details.method != self._path:
            return await continuation(handler_call_details)
        return grpc.unary_unary_rpc_method_handler(self._forward)

    async def _forward(self, raw: bytes, context: Any) -> bytes:
        self._next += 1
        try:
            return await self._siblings.ask(self._next % len(self._siblings), self._path, raw, context)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE and not error.trailing_metadata():
                raise UnavailableError("bulk", error.details() or "no answer") from error  # it is not there at all
            return await _abort(error, context)


class Overflow:
    """Send page views to a sibling with room."""

    def __init__(self, siblings: Siblings) -> None:
        self._siblings = siblings
        self._full_until = [0.0] * len(siblings)
        self._next = os.getpid()

    async def ask(self, path: str, raw: bytes, context: Any) -> bytes | None:
        """Return the answer of the first sibling that has room, None if none has. A sibling's error becomes the caller's."""
        self._next += 1
        for number in range(len(self._siblings)):
            sibling = (self._next + number) % len(self._siblings)
            if time.monotonic() < self._full_until[sibling]:
                continue
            try:
                return await self._siblings.ask(sibling, path, raw, context)
            except grpc.aio.AioRpcError as error:
                if error.code() not in NO_ROOM:
                    return await _abort(error, context)
                self._full_until[sibling] = time.monotonic() + FULL_S
        return None


async def _abort(error: grpc.aio.AioRpcError, context: Any) -> bytes:
    """End a call with the error that a sibling gave. Never returns."""
    await context.abort(error.code(), error.details() or "", tuple(error.trailing_metadata() or ()))
    raise error
