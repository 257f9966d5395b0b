"""How far a group has applied each partition, by what is in Redis beside what was applied.

Kafka's committed offset says what was applied once; Redis may have lost the last of it since, in a restart or a failover. So
Redis keeps the positions too, written after what they stand for: whatever it comes back with, everything before its
position is there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import cast

import redis
from kafka import TopicPartition

from baguni.errors import UnavailableError

# KEYS: positions. ARGV: partition, where the batch began, where it ended, for each. Returns the partitions of which something
# before the batch is missing; these stay as they are. A position never goes back here: that would be a member that was away.
_ADVANCE = """
local missing = {}
for i = 1, #ARGV, 3 do
  local stored = tonumber(redis.call('HGET', KEYS[1], ARGV[i]) or '-1')
  if stored < tonumber(ARGV[i + 1]) then
    missing[#missing + 1] = ARGV[i]
  elseif stored < tonumber(ARGV[i + 2]) then
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 2])
  end
end
return missing
"""


class Positions:
    """The positions of one consumer group. Every call raises UnavailableError if Redis is away."""

    def __init__(self, client: redis.Redis, group_id: str) -> None:
        self._client, self._key = client, f"baguni:positions:{group_id}"
        self._advance = client.register_script(_ADVANCE)

    def read(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int | None]:
        """The next offset of each partition, None where Redis knows of none."""
        if not partitions:
            return {}
        try:
            stored = cast("list[bytes | None]", self._client.hmget(self._key, [_field(p) for p in partitions]))
        except redis.RedisError as error:
            raise UnavailableError("redis", str(error)) from error
        return {partition: None if at is None else int(at) for partition, at in zip(partitions, stored, strict=True)}

    def place(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Begin at these offsets, whatever was known."""
        try:
            if offsets:
                self._client.hset(self._key, mapping={_field(partition): at for partition, at in offsets.items()})
        except redis.RedisError as error:
            raise UnavailableError("redis", str(error)) from error

    def advance(self, steps: Mapping[TopicPartition, tuple[int, int]]) -> list[TopicPartition]:
        """Note that what lies between two offsets of each partition is applied. Returns the partitions of which Redis has lost
        something before that."""
        arguments = [part for partition, (start, end) in steps.items() for part in (_field(partition), start, end)]
        try:
            missing = {bytes(field).decode() for field in self._advance(keys=[self._key], args=arguments)}
        except redis.RedisError as error:
            raise UnavailableError("redis", str(error)) from error
        return [partition for partition in steps if _field(partition) in missing]


def _field(partition: TopicPartition) -> str:
    return f"{partition.topic}:{partition.partition}"
