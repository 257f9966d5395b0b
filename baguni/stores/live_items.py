"""Items that changed since their release was built, in Redis: item consumers write them for every gateway and for each other.

One hash contains each changed item whole, another the time of its event. A sorted set contains the order of the changes, so
that a reader asks only for what is new since its last call. Another hash contains the owner of each new Semantic ID. All belong
to one release, and their size is bounded by the number of items that ever changed.
"""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import numpy as np
import redis
import redis.asyncio
from numpy.typing import NDArray

from baguni.domain.catalog import Item
from baguni.stores.redis_client import lua, shared_redis_errors

log = logging.getLogger(__name__)
ITEMS_A_CALL = 500  # of some kB each: Redis answers nobody else meanwhile

_WRITE = lua("baguni.stores", "write_live_items")

_CHANGES = lua("baguni.stores", "read_live_items")

_CLAIM = lua("baguni.stores", "claim_suffix")


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
    """Synchronous, for the item consumers."""

    def __init__(self, client: redis.Redis, release_id: str) -> None:
        self._write = client.register_script(_WRITE)
        self._changes = client.register_script(_CHANGES)
        self._claim = client.register_script(_CLAIM)
        self._keys = _Keys(release_id)
        self._place = _Place()

    def write(self, items: Sequence[LiveItem], known_ms: Mapping[str, int] = MappingProxyType({})) -> dict[str, int]:
        """Publish items, in their order, at once; one of which a later event was published is left out. `known_ms`: the time of
        the event that the caller knew of each item before. Return the time of the event that was there (-1 = none) of each
        item of which it was another one: somebody else has changed it meanwhile."""
        arguments: list[str | int] = []
        for live in items:
            item_id = live.item.item_id
            arguments += [item_id, known_ms.get(item_id, -1), live.time_ms, _encode(live)]
        with shared_redis_errors():
            reply = cast("list[bytes]", self._write(keys=[*self._keys.changing, self._keys.times], args=arguments))
        return {item_id.decode(): int(time_ms) for item_id, time_ms in zip(reply[::2], reply[1::2], strict=True)}

    def changes(self) -> list[LiveItem]:
        """Return the items that anyone changed since the last call, in order; the first call, and the first after a restart
        or a failover of Redis, returns all of them."""
        found: list[LiveItem] = []
        is_last = False
        while not is_last:
            with shared_redis_errors():
                reply = self._changes(keys=self._keys.changing, args=[*self._place, ITEMS_A_CALL])
            self._place, changed, is_last = _changed(cast("list[bytes]", reply), self._place)
            found += changed
        return found

    def claim(
        self, item_id: str, content_codes: Sequence[int], num_suffixes: int, taken: Collection[int], wanted: int = -1
    ) -> tuple[int, ...] | None:
        """Return a Semantic ID for a new item: the content codes and a suffix that is neither in `taken` nor another item's, or
        None if all are. It is `wanted` if that is free, else the lowest. An item that asks again in the same way is given the
        same ID."""
        arguments: list[str | int] = [item_id, ",".join(map(str, content_codes)), num_suffixes, wanted, *taken]
        with shared_redis_errors():
            suffix = int(cast("int", self._claim(keys=[self._keys.claims], args=arguments)))
        return None if suffix < 0 else (*content_codes, suffix)


class LiveItemReader:
    """Asynchronous, for the gateway: call `changes` again and again."""

    def __init__(self, client: redis.asyncio.Redis, release_id: str) -> None:
        self._changes = client.register_script(_CHANGES)
        self._keys = _Keys(release_id)
        self._place = _Place()

    async def changes(self) -> list[LiveItem]:
        """Return the items that changed since the last call, in order; all of them after a restart or a failover of Redis."""
        found: list[LiveItem] = []
        is_last = False
        while not is_last:
            with shared_redis_errors():
                reply: Any = await self._changes(keys=self._keys.changing, args=[*self._place, ITEMS_A_CALL])
            self._place, changed, is_last = _changed(reply, self._place)
            found += changed
        return found


class _Place(NamedTuple):
    """The place up to which a reader has read: the server's epoch, and the last sequence."""

    epoch: str = ""
    sequence: int = 0


class _Keys:
    """Redis keys of one release; the braces keep them in one slot of a Redis cluster."""

    def __init__(self, release_id: str) -> None:
        self.items = f"baguni:{{items:{release_id}}}"
        self.changes = f"{self.items}:changes"
        self.sequence = f"{self.items}:sequence"
        self.claims = f"{self.items}:claims"
        self.times = f"{self.items}:times"

    @property
    def changing(self) -> list[str]:
        """The keys of `_CHANGES`."""
        return [self.items, self.changes, self.sequence]


def _changed(reply: Sequence[bytes], place: _Place) -> tuple[_Place, list[LiveItem], bool]:
    """Return the place after a reply, its items, and whether no other reply follows. `place`: before it."""
    epoch, sequences, payloads = reply[0].decode(), reply[1::2], reply[2::2]
    changed = []
    for sequence, payload in zip(sequences, payloads, strict=True):
        try:
            changed.append(_decode(payload))
        except Exception as error:  # nothing that stands in Redis may stop the items after it
            log.error("an item's entry cannot be read: left out sequence=%r error=%r", sequence, error)
    last = int(sequences[-1]) if sequences else place.sequence if epoch == place.epoch else 0
    return _Place(epoch, last), changed, len(sequences) < ITEMS_A_CALL


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


def _decode(payload: bytes | None) -> LiveItem:
    if not payload:
        raise ValueError("the entry has no payload")
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
