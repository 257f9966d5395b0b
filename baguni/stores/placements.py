"""What is clicked where, in Redis: a sorted set a placement, clicks halving in weight every week.

Weights grow with time instead of shrinking, so that nothing stored has to change (forward decay: Cormode, Shkapenyuk,
Srivastava & Xu 2009, doi:10.1109/ICDE.2009.65). Counting is best effort: a batch that is delivered twice counts twice.

A name of a placement is whatever a shop sends, such as a path or a session. So the configured placements are kept, and of all
others the MAX_PLACEMENTS with the most clicks, over all consumers.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import cast

import msgpack
import redis
import redis.asyncio

from baguni.stores.redis_client import lua, shared_redis_errors

HALF_LIFE_MS = 7 * 86_400_000
EPOCH_MS = 1_577_836_800_000  # 2020; a float's range lasts for 19 years of half-lives from here in either direction
WINDOW_MS = 300_000
MAX_PLACEMENTS = 200  # beyond the configured ones; of 1,000 items each they take 20 MB
_MAX_ITEMS = 1_000  # of a placement; the others have next to no clicks
_TTL_S = 90 * 86_400
_SNAPSHOT_TTL_S = 3_600  # how long a list can be paged through
_KEY = "baguni:clicked:{%s}"  # braces: a placement's keys share one slot in a Redis cluster
_PLACEMENTS_KEY = "baguni:clicked:placements"
_SNAPSHOT_KEY = "baguni:clicked:{%s}:%d"

_COUNT = lua("baguni.stores", "count_clicks")
_READ = lua("baguni.stores", "read_clicks")


class PlacementWriter:
    """Counts clicks; for the consumer, which is synchronous."""

    def __init__(self, client: redis.Redis, always_kept: Iterable[str] = (), most: int = MAX_PLACEMENTS) -> None:
        self._count = client.register_script(_COUNT)
        self._limits = (_KEY, _MAX_ITEMS, _TTL_S, most, msgpack.packb(sorted(set(always_kept))))

    def count(self, clicks: Mapping[str, Iterable[tuple[str, int]]]) -> int:
        """Count (item id, time in ms) of each placement, in one round trip. Returns the number of clicks that were left out,
        because too many other placements have more."""
        weighed = []
        for placement, clicked in clicks.items():
            weights = [(_weight(time_ms), item_id) for item_id, time_ms in clicked]
            pairs = [part for weight, item_id in weights for part in (repr(weight), item_id)]
            weighed.append((placement, repr(sum(weight for weight, _ in weights)), pairs))
        with shared_redis_errors():
            reply = self._count(keys=[_PLACEMENTS_KEY], args=[*self._limits, msgpack.packb(weighed)])
        return int(cast("int", reply))


class PlacementReader:
    """Reads what was counted; for the gateway, which is asynchronous."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._read = client.register_script(_READ)

    async def clicks(self, placement: str, time_ms: int) -> dict[str, float]:
        """Item id → clicks at the placement, each worth a half after a week, most first. Everybody who asks for a moment of
        the same WINDOW_MS gets the same, within an hour: the pages of a list agree. So it is for moments of now; for any other,
        which only a caller can choose, the counts are read as they are and nothing is stored."""
        window = time_ms // WINDOW_MS
        is_now = abs(window - int(time.time() * 1000) // WINDOW_MS) <= 1
        with shared_redis_errors():
            keys = [_KEY % placement, _SNAPSHOT_KEY % (placement, window)]
            reply = await self._read(keys=keys, args=[_SNAPSHOT_TTL_S, int(is_now)])
        now = _weight(window * WINDOW_MS)
        found = zip(reply[::2], reply[1::2], strict=True)
        return {item_id.decode(): float(weight) / now for item_id, weight in found if item_id}


def _weight(time_ms: int) -> float:
    """Return the weight of a click at this time; a time far from ours counts as the nearest one that a float can tell apart."""
    half_lives = (time_ms - EPOCH_MS) / HALF_LIFE_MS
    return float(2.0 ** min(max(half_lives, -1_000), 1_000))
