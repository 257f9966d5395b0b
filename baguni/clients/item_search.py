"""Search a release's collections. pymilvus connects and makes the request once; filling in the vectors and reading ids and
scores from the reply is done here, without an object for each hit, in half of pymilvus' time.
"""

# V = vector dim, D = dim of a collection, I = items found

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np
from pymilvus import AsyncMilvusClient
from pymilvus.client.prepare import Prepare
from pymilvus.client.ts_utils import construct_guarantee_ts
from pymilvus.client.utils import check_status
from pymilvus.grpc_gen.common_pb2 import PlaceholderGroup, PlaceholderType, PlaceholderValue
from pymilvus.grpc_gen.milvus_pb2 import SearchRequest

from baguni.clients.milvus import (
    CHANNEL,
    CONNECT_TIMEOUT_S,
    CONSISTENCY,
    METRIC,
    collection_names,
    milvus_errors,
    silence_pymilvus,
)
from baguni.coalescing import Coalescer
from baguni.domain.errors import RefusedError, UnavailableError
from baguni.domain.scoring import Float32, Int64
from baguni.telemetry import trace_headers

# A graph is walked with so many candidates. With hardly more than are asked for, a large one misses some: ADR 23.
EF_A_HIT, MIN_EF, MAX_EF = 2, 400, 32_768  # the last is Milvus'
MAX_VECTORS = 16  # of a call: more do not make a search cheaper
NUM_RUNNING = 2  # calls that could be one: a call that hangs does not stop the others
MAX_HITS = 16_384  # Milvus' own limit of a search
REMEMBERED_REQUESTS = 256
REMEMBERED_LENGTH = 2_000  # characters of an expression; requests with longer ones are made anew each time


class Hits(NamedTuple):
    """A search's result, best first: the [I] items' keys (`baguni.domain.item_keys`) and scores."""

    key_I: Int64
    score_I: Float32


class Key(NamedTuple):
    """Properties that searches must share to be one call."""

    collection: str
    limit: int
    expression: str


class AsyncItemIndex:
    """Search a release's collections; asynchronous, one for each process and event loop. Searches that wait at the same time
    are sent in one call, which costs Milvus less (ADR 26). Every call raises UnavailableError if Milvus does
    not answer in time, RefusedError if it does not take the expression. `max_vectors`: of a call; `num_running`: calls at a
    time of searches that could be one."""

    def __init__(
        self, uri: str, release_id: str, max_vectors: int = MAX_VECTORS, num_running: int = NUM_RUNNING
    ) -> None:
        self._items, self._content = collection_names(release_id)
        silence_pymilvus()
        # It connects at the first search.
        self._client = AsyncMilvusClient(uri, timeout=CONNECT_TIMEOUT_S, grpc_options=dict(CHANNEL))
        self._coalescer: Coalescer[Key, Float32, Hits] = Coalescer("milvus", self._send, max_vectors, num_running)

    async def search_items(self, vector_V: Float32, limit: int, expression: str, timeout_s: float) -> Hits:
        """Return the nearest items in the collaborative space by inner product, best first, among those for which `expression`
        holds."""
        vector_D = np.append(vector_V, np.float32(0))  # beside the dimension that makes items one length
        return await self._search(self._items, vector_D, limit, expression, timeout_s)

    async def search_content(self, vector_V: Float32, limit: int, expression: str, timeout_s: float) -> Hits:
        """Return the nearest items in the content space by cosine, best first."""
        return await self._search(self._content, vector_V, limit, expression, timeout_s)

    async def close(self) -> None:
        """Cancel what waits, and close the channel."""
        await self._coalescer.close()
        await self._client.close()

    async def _search(self, name: str, vector_D: Float32, limit: int, expression: str, timeout_s: float) -> Hits:
        if limit > MAX_HITS:
            raise RefusedError("milvus", f"limit is {limit}, expected at most {MAX_HITS}")
        if not np.isfinite(vector_D).all():  # here, because it would fail the others of a joint call
            raise RefusedError("milvus", "the vector has a value that is not finite")
        hits = await self._coalescer.call(Key(name, limit_class(limit), expression), vector_D, timeout_s)
        return Hits(hits.key_I[:limit], hits.score_I[:limit])

    async def _send(self, key: Key, vectors: Sequence[Float32], timeout_s: float) -> list[Hits]:
        """Search for several vectors in one call."""
        with milvus_errors():
            async with asyncio.timeout(timeout_s):  # connecting included, which has no timeout of its own
                connection = await self._client._get_connection()
                request = SearchRequest()
                make = _remembered if len(key.expression) <= REMEMBERED_LENGTH else _request
                request.CopyFrom(make(key.collection, len(vectors[0]), key.limit, key.expression))
                request.nq = len(vectors)
                request.placeholder_group = _placeholders(vectors)
                metadata = list((trace_headers() or {}).items())
                reply = await connection._async_stub.Search(request, timeout=timeout_s, metadata=metadata)
            check_status(reply.status)
        found = reply.results
        keys, scores = np.array(found.ids.int_id.data[:], np.int64), np.array(found.scores[:], np.float32)
        counts = list(found.topks) if len(keys) else [0] * len(vectors)
        if len(counts) != len(vectors):
            raise UnavailableError("milvus", f"{len(counts)} results, expected {len(vectors)}")
        ends = accumulate(counts, initial=0)
        return [Hits(keys[start:end], scores[start:end]) for start, end in pairwise(ends)]


def limit_class(limit: int) -> int:
    """Return the number of hits to ask for: users differ in how many items they know, and only equal limits share a call.

    >>> [limit_class(limit) for limit in (1, 64, 65, 200, 1_000, 16_000)]
    [64, 64, 96, 256, 1024, 16384]
    """
    least = 64
    while least < limit:
        least = least * 3 // 2 if least & (least - 1) == 0 else least // 3 * 4
    return min(least, MAX_HITS)


def _request(name: str, dim: int, limit: int, expression: str) -> SearchRequest:
    """Return the request that pymilvus would send, with zeros for the vector."""
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


def _placeholders(vectors: Sequence[Float32]) -> bytes:
    values = [np.asarray(vector_D, "<f4").tobytes() for vector_D in vectors]
    placeholder = PlaceholderValue(tag="$0", type=PlaceholderType.FloatVector, values=values)
    return bytes(PlaceholderGroup(placeholders=[placeholder]).SerializeToString())
