"""Items that changed since their release was built: how the item consumer tells every gateway, through Redis.

A hash holds each changed item whole; a sorted set says in which order they changed, so that a gateway asks only for what
is new since it last asked. Both are bounded by the number of items that ever changed, and belong to one release.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
import redis
import redis.asyncio
from numpy.typing import NDArray

from baguni.catalog import Item
from baguni.errors import UnavailableError

_KEY = "baguni:{items:%s}"  # braces: the three keys share one slot in a Redis cluster

# KEYS: items, changes, sequence. ARGV: item_id and payload of each item.
_WRITE = """
for i = 1, #ARGV, 2 do
  local sequence = redis.call('INCR', KEYS[3])
  redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
  redis.call('ZADD', KEYS[2], sequence, ARGV[i])
end
return redis.call('GET', KEYS[3])
"""


@dataclass(frozen=True)
class LiveItem:
    """An item as it is now. `codes` include the suffix; `time_ms` is the event's, so that older ones can be refused."""

    item: Item
    codes: tuple[int, ...]
    item_vector: NDArray[np.float32]
    content_vector: NDArray[np.float32]
    time_ms: int
    removed: bool = False


class LiveItemWriter:
    """Synchronous, for the item consumer."""

    def __init__(self, client: redis.Redis, release_id: str) -> None:
        self._client = client
        self._write = client.register_script(_WRITE)
        self._keys = _keys(release_id)

    def write(self, items: Sequence[LiveItem]) -> None:
        """Publish items, in their order, at once."""
        arguments = [part for live in items for part in (live.item.item_id, _encode(live))]
        try:
            self._write(keys=self._keys, args=arguments)
        except redis.RedisError as error:
            raise UnavailableError("redis", str(error)) from error

    def read_all(self) -> dict[str, LiveItem]:
        """Every changed item by id: where a consumer that starts again goes on from."""
        try:
            stored = cast("dict[bytes, bytes]", self._client.hgetall(self._keys[0]))
        except redis.RedisError as error:
            raise UnavailableError("redis", str(error)) from error
        return {item_id.decode(): _decode(payload) for item_id, payload in stored.items()}


class LiveItemReader:
    """Asynchronous, for the gateway: call `changes` again and again."""

    def __init__(self, client: redis.asyncio.Redis, release_id: str) -> None:
        self._client = client
        self._items_key, self._changes_key, _ = _keys(release_id)
        self._last_sequence = 0

    async def changes(self) -> list[LiveItem]:
        """Items that changed since the last call, in order."""
        try:
            changed: Any = await self._client.zrangebyscore(
                self._changes_key, f"({self._last_sequence}", "+inf", withscores=True
            )
            if not changed:
                return []
            payloads: Any = await self._client.hmget(self._items_key, [item_id for item_id, _ in changed])
        except redis.RedisError as error:
            raise UnavailableError("redis", str(error)) from error
        self._last_sequence = int(changed[-1][1])
        return [_decode(payload) for payload in payloads if payload is not None]


def _keys(release_id: str) -> list[str]:
    base = _KEY % release_id
    return [base, f"{base}:changes", f"{base}:sequence"]


def _encode(live: LiveItem) -> str:
    return json.dumps(
        {
            "item": {**asdict(live.item), "attributes": dict(live.item.attributes)},
            "codes": live.codes,
            "item_vector": _pack(live.item_vector),
            "content_vector": _pack(live.content_vector),
            "time_ms": live.time_ms,
            "removed": live.removed,
        },
        ensure_ascii=False,
    )


def _decode(payload: bytes) -> LiveItem:
    fields = json.loads(payload)
    item = fields["item"]
    return LiveItem(
        Item(**{**item, "category_path": tuple(item["category_path"])}),
        tuple(fields["codes"]),
        _unpack(fields["item_vector"]),
        _unpack(fields["content_vector"]),
        fields["time_ms"],
        fields["removed"],
    )


def _pack(vector: NDArray[np.float32]) -> str:
    return base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode()


def _unpack(text: str) -> NDArray[np.float32]:
    return np.frombuffer(base64.b64decode(text), "<f4").astype(np.float32)
