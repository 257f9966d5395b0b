"""Searching a release's collections. pymilvus connects and says what a search looks like on the wire. Filling in its
vector and reading ids and scores from its reply is done here: no object a hit, and half of pymilvus' time.
"""

# V = vector dim, D = V + 1

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from pymilvus import AsyncMilvusClient
from pymilvus.client.prepare import Prepare
from pymilvus.client.ts_utils import construct_guarantee_ts
from pymilvus.client.utils import check_status
from pymilvus.grpc_gen.common_pb2 import PlaceholderGroup, PlaceholderType, PlaceholderValue
from pymilvus.grpc_gen.milvus_pb2 import SearchRequest

from baguni.clients.channels import RECONNECT
from baguni.clients.milvus import (
    CONNECT_TIMEOUT_S,
    CONSISTENCY,
    METRIC,
    collection_names,
    milvus_errors,
    silence_pymilvus,
)
from baguni.telemetry import trace_headers

# A graph is walked with so many candidates. With hardly more than are asked for, a large one misses some: ADR 23.
EF_A_HIT, MIN_EF, MAX_EF = 2, 400, 32_768  # the last is Milvus'
REMEMBERED_REQUESTS, REMEMBERED_LENGTH = (
    256,
    2_000,
)  # of a collection, a limit and an expression of so many characters each


@dataclass(frozen=True)
class Hits:
    """A search's result, best first."""

    item_ids: list[str]
    scores: list[float]

    def __len__(self) -> int:
        return len(self.item_ids)


class AsyncItemIndex:
    """Asynchronous: searching a release's collections. One a process and event loop. Every call raises UnavailableError if
    Milvus does not answer in time."""

    def __init__(self, uri: str, release_id: str) -> None:
        self._items, self._content = collection_names(release_id)
        silence_pymilvus()
        # It connects at the first search.
        self._client = AsyncMilvusClient(uri, timeout=CONNECT_TIMEOUT_S, grpc_options=dict(RECONNECT))

    async def search_items(self, vector_V: NDArray[np.float32], limit: int, expression: str, timeout_s: float) -> Hits:
        """Nearest in the collaborative space by inner product, best first, among items for which `expression` holds."""
        vector_D = np.append(vector_V, np.float32(0))  # beside the dimension that makes items one length
        return await self._search(self._items, vector_D, limit, expression, timeout_s)

    async def search_content(
        self, vector_V: NDArray[np.float32], limit: int, expression: str, timeout_s: float
    ) -> Hits:
        """Nearest in the content space by cosine, best first."""
        return await self._search(self._content, vector_V, limit, expression, timeout_s)

    async def close(self) -> None:
        """Close the channel."""
        await self._client.close()

    async def _search(
        self, name: str, vector_V: NDArray[np.float32], limit: int, expression: str, timeout_s: float
    ) -> Hits:
        with milvus_errors():
            async with asyncio.timeout(timeout_s):  # connecting included, which has no timeout of its own
                connection = await self._client._get_connection()
                request = SearchRequest()
                make = _remembered if len(expression) <= REMEMBERED_LENGTH else _request
                request.CopyFrom(make(name, len(vector_V), limit, expression))
                request.placeholder_group = _placeholders(vector_V)
                metadata = list((trace_headers() or {}).items())
                reply = await connection._async_stub.Search(request, timeout=timeout_s, metadata=metadata)
            check_status(reply.status)
        return Hits(list(reply.results.ids.str_id.data), list(reply.results.scores))


def _request(name: str, dim: int, limit: int, expression: str) -> SearchRequest:
    """What pymilvus would send, with zeros for the vector."""
    consistency = {"consistency_level": CONSISTENCY}
    construct_guarantee_ts(name, consistency)  # changes it in place: level and timestamp as numbers
    return Prepare.search_requests_with_expr(
        collection_name=name,
        data=[np.zeros(dim, np.float32)],
        anns_field="vector",
        param={"metric_type": METRIC, "params": {"ef": min(max(EF_A_HIT * limit, MIN_EF), MAX_EF)}},
        limit=limit,
        expr=expression,
        use_default_consistency=False,
        **consistency,
    )


_remembered = lru_cache(maxsize=REMEMBERED_REQUESTS)(_request)


def _placeholders(vector_V: NDArray[np.float32]) -> bytes:
    value = np.asarray(vector_V, "<f4").tobytes()
    placeholder = PlaceholderValue(tag="$0", type=PlaceholderType.FloatVector, values=[value])
    return bytes(PlaceholderGroup(placeholders=[placeholder]).SerializeToString())
