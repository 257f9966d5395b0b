"""How far a group has applied each partition, by what is in Redis beside what was applied.

Kafka's committed offset says what was applied once; Redis may have lost the last of it since, in a restart or a failover. So
Redis keeps the positions too, written after what they stand for: whatever it comes back with, everything before its
position is there. A position is of a topic's id, not of its name alone: of a topic that was made anew nothing is known.

Groups of one family read the same topics one after the other, such as those of one release after another. Redis also keeps how
far any of them has come, since everything before that is applied or set aside by one of them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple, cast

import redis
from kafka import TopicPartition

from baguni.stores.redis_client import lua, shared_redis_errors

_ADVANCE = lua("streaming", "advance_positions")


class Place(NamedTuple):
    """A partition of the topic that had this id; the id is empty where a broker gives none."""

    partition: TopicPartition
    topic_id: str


class Positions:
    """The positions of one consumer group; without a `family` the group is alone in its own. Every call raises UnavailableError
    if Redis is away."""

    def __init__(self, client: redis.Redis, group_id: str, family: str = "") -> None:
        self._client, self._key = client, f"baguni:positions:{group_id}"
        self._passed_key = f"baguni:passed:{family or group_id}"
        self._advance = client.register_script(_ADVANCE)

    def read(self, places: Collection[Place]) -> dict[TopicPartition, int | None]:
        """The next offset of each partition, None where Redis knows of none."""
        return self._stored(self._key, places)

    def passed(self, places: Collection[Place]) -> dict[TopicPartition, int]:
        """Return the offset of each partition before which some group of the family has applied or set aside every record, 0
        where Redis does not know one."""
        return {partition: offset or 0 for partition, offset in self._stored(self._passed_key, places).items()}

    def place(self, offsets: Mapping[Place, int]) -> None:
        """Begin at these offsets, whatever was known."""
        values = {_field(place.partition): f"{at} {place.topic_id}" for place, at in offsets.items()}
        with shared_redis_errors():
            if values:
                self._client.hset(self._key, mapping=cast("dict[Any, Any]", values))

    def run_id(self) -> str:
        """Return the id of the Redis that answers now: a failover, or a restart, makes it another one."""
        with shared_redis_errors():
            return str(self._client.info("server")["run_id"])

    def advance(self, steps: Mapping[Place, tuple[int, int]], written_to: str = "") -> list[TopicPartition]:
        """Note that what lies between two offsets of each partition is applied, to the Redis with the run id `written_to`.
        Returns the partitions of which Redis has lost something: of all of them, if it is another one by now."""
        arguments = [part for place, step in steps.items() for part in (_field(place.partition), place.topic_id, *step)]
        with shared_redis_errors():
            missing = {
                bytes(field).decode()
                for field in self._advance(keys=[self._key, self._passed_key], args=[written_to, *arguments])
            }
        return [place.partition for place in steps if _field(place.partition) in missing]

    def total(self) -> int:
        """The sum of all positions: how many records of topics that were never cut short are applied."""
        with shared_redis_errors():
            return sum(int(value.split()[0]) for value in cast("list[bytes]", self._client.hvals(self._key)))

    def _stored(self, key: str, places: Collection[Place]) -> dict[TopicPartition, int | None]:
        if not places:
            return {}
        with shared_redis_errors():
            fields = [_field(place.partition) for place in places]
            stored = cast("list[bytes | None]", self._client.hmget(key, fields))
        return {place.partition: _offset(value, place) for place, value in zip(places, stored, strict=True)}


def _field(partition: TopicPartition) -> str:
    return f"{partition.topic}:{partition.partition}"


def _offset(stored: bytes | None, place: Place) -> int | None:
    at, _, topic_id = (stored or b"").decode(errors="replace").partition(" ")
    return int(at) if at.isdecimal() and topic_id == place.topic_id else None
