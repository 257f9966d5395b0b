"""A gRPC server with nothing of ours, to compare with: python -m tests.faults.bare_server prints its port and answers any unary
method after a random time of up to 4 ms.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any

import grpc

LONGEST_S = 0.004


class AnyMethod(grpc.GenericRpcHandler):
    """Answers every method with the same 200 bytes."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Return the handler of a method."""
        return grpc.unary_unary_rpc_method_handler(self._answer)  # type: ignore[arg-type]

    @staticmethod
    async def _answer(request: bytes, context: Any) -> bytes:
        await asyncio.sleep(random.random() * LONGEST_S)
        return b"x" * 200


async def serve() -> None:
    """Serve for ever."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((AnyMethod(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve())
