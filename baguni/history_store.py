"""Histories in Redis: one sorted set a user, the members being events and the scores their times.

A sorted set is exactly a history: a set, ordered by time and then by the member's bytes, of which the newest are kept.
So applying an event twice, or late, or in another order, changes nothing that it should not. One Lua call per user and
batch adds, trims, raises the version if anything changed, and renews the expiry.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import redis
import redis.asyncio

from baguni.errors import UnavailableError
from baguni.history import MAX_EVENTS, History, HistoryEvent, decode_event, encode_event

_TTL_S = 400 * 86_400  # a user who comes back within a year is known
_KEY = "baguni:{%s}:history"  # braces: a user's keys share one slot in a Redis cluster
_VERSION_KEY = "baguni:{%s}:version"

# KEYS: history, version. ARGV: max events, ttl in s, then score and member of each event.
# The kept set is compared before and after: an event that is trimmed at once is no change.
_APPLY = """
local added, is_new = 0, {}
for i = 3, #ARGV, 2 do
  if redis.call('ZADD', KEYS[1], 'NX', ARGV[i], ARGV[i + 1]) == 1 then
    added = added + 1
    is_new[ARGV[i + 1]] = true
  end
end
local version = tonumber(redis.call('GET', KEYS[2]) or '0')
if added > 0 then
  local over = redis.call('ZCARD', KEYS[1]) - tonumber(ARGV[1])
  if over > 0 then
    for _, member in ipairs(redis.call('ZRANGE', KEYS[1], 0, over - 1)) do
      if is_new[member] then added = added - 1 end
    end
    redis.call('ZREMRANGEBYRANK', KEYS[1], 0, over - 1)
  end
  if added > 0 then version = redis.call('INCR', KEYS[2]) end
  redis.call('EXPIRE', KEYS[1], ARGV[2])
  redis.call('EXPIRE', KEYS[2], ARGV[2])
end
return version
"""


class HistoryWriter:
    """Applies events; for the consumer, which is synchronous."""

    def __init__(self, client: redis.Redis, max_events: int = MAX_EVENTS, ttl_s: int = _TTL_S) -> None:
        self._client = client
        self._apply = client.register_script(_APPLY)
        self._limits = (max_events, ttl_s)

    def apply(self, events: Mapping[str, Sequence[HistoryEvent]]) -> dict[str, int]:
        """Add events to users' histories in one round trip; returns each user's version. Safe to repeat."""
        try:
            pipeline = self._client.pipeline(transaction=False)
            for user_id, user_events in events.items():
                pairs = [part for event in user_events for part in (event.time_ms, encode_event(event))]
                keys = [_KEY % user_id, _VERSION_KEY % user_id]
                self._apply(keys=keys, args=[*self._limits, *pairs], client=pipeline)
            return dict(zip(events, pipeline.execute(), strict=True))
        except redis.RedisError as error:
            raise UnavailableError("redis", str(error)) from error

    def forget(self, user_ids: Sequence[str]) -> None:
        """Delete users' histories and versions; a user without one is no error."""
        try:
            keys = [key % user_id for user_id in user_ids for key in (_KEY, _VERSION_KEY)]
            pipeline = self._client.pipeline(transaction=False)
            for key in keys:
                pipeline.delete(key)
            pipeline.execute()
        except redis.RedisError as error:
            raise UnavailableError("redis", str(error)) from error


class HistoryReader:
    """Reads histories; for the gateway, which is asynchronous."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._client = client

    async def read_newer(self, user_id: str, version: int | None) -> History | None:
        """A user's history, or None if it still has this version."""
        if version is not None:
            try:
                if int(await self._client.get(_VERSION_KEY % user_id) or 0) == version:
                    return None
            except redis.RedisError as error:
                raise UnavailableError("redis", str(error)) from error
        return (await self.read([user_id]))[0]

    async def read(self, user_ids: Sequence[str]) -> list[History]:
        """Histories in the order of `user_ids`, in one round trip; a user without one has an empty history."""
        try:
            pipeline = self._client.pipeline(transaction=False)
            for user_id in user_ids:
                pipeline.zrange(_KEY % user_id, 0, -1)
                pipeline.get(_VERSION_KEY % user_id)
            replies = await pipeline.execute()
        except redis.RedisError as error:
            raise UnavailableError("redis", str(error)) from error
        return [
            History(tuple(decode_event(member) for member in members), int(version or 0))
            for members, version in zip(replies[::2], replies[1::2], strict=True)
        ]
