"""`GenerateTopItems` as the online processes answer it: they hand it to the processes that are there for it, unread, so that a
batch of beam searches never shares an event loop with a page view.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc

from baguni.channels import KEEPALIVE
from baguni.errors import UnavailableError
from server.gate import BULK_METHOD

OPTIONS = [("grpc.use_local_subchannel_pool", 1), *KEEPALIVE.items()]
PASSED_ON = ("request-id", "traceparent", "tracestate")


class BulkForwarder(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Sends bulk requests to Unix sockets, one after the other in turn."""

    def __init__(self, service: str, sockets: Sequence[str], default_deadline_s: float) -> None:
        self._default_deadline_s = default_deadline_s
        self._path = f"/{service}/{BULK_METHOD}"
        self._channels = [grpc.aio.insecure_channel(socket, options=OPTIONS) for socket in sockets]
        self._calls = [channel.unary_unary(self._path, None, None) for channel in self._channels]
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

    async def close(self) -> None:
        """Close the channels."""
        for channel in self._channels:
            await channel.close(None)

    async def _forward(self, raw: bytes, context: Any) -> bytes:
        self._next += 1
        call = self._calls[self._next % len(self._calls)]
        metadata = [(key, value) for key, value in context.invocation_metadata() if key in PASSED_ON]
        try:
            remaining_s = context.time_remaining()
            timeout_s = self._default_deadline_s if remaining_s is None else remaining_s
            return bytes(await call(raw, timeout=timeout_s, metadata=metadata))
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE and not error.trailing_metadata():
                raise UnavailableError("bulk", error.details() or "no answer") from error  # it is not there at all
            await context.abort(error.code(), error.details() or "", tuple(error.trailing_metadata() or ()))
            raise
