"""Calls between the processes of a gateway, over a Unix socket as in production."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest

from server.process.siblings import Siblings

METHOD = "/baguni.v1.RecommendationService/GenerateTopItems"
LARGEST = 256 * 50 * 256 * 4  # bytes of the ids in the largest answer: users, items, characters, bytes of a character


class _Context:
    """A call without a deadline."""

    def time_remaining(self) -> None: ...

    def invocation_metadata(self) -> tuple[Any, ...]:
        return ()


@pytest.mark.parametrize("num_bytes", [0, (4 << 20) + 1, LARGEST + (1 << 20)])
def test_an_answer_of_any_size_is_passed_on(tmp_path: Path, num_bytes: int) -> None:
    """The default of gRPC is 4 MB: a batch with long ids failed in the process that asked for it."""

    async def scenario() -> int:
        async def answer(raw: bytes, context: Any) -> bytes:
            return raw * num_bytes

        server, socket = grpc.aio.server(), f"unix:{tmp_path}/bulk"
        handler = grpc.unary_unary_rpc_method_handler(answer)
        server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler(METHOD.split("/")[1], {METHOD.split("/")[2]: handler})]
        )
        server.add_insecure_port(socket)
        await server.start()
        siblings = Siblings([socket], 60.0)
        try:
            return len(await siblings.ask(0, METHOD, b"x", _Context()))
        finally:
            await siblings.close()
            await server.stop(None)

    assert asyncio.run(scenario()) == num_bytes
