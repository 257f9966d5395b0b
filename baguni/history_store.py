"""Histories in Redis: one value a user, changed by Lua, a few users in each call.

What is stored holds every event that can be among the newest, so adding is what adding to a set is: an event twice, late, or
in another order changes nothing that it should not. The call merges, forgets what is too old to matter, raises the version
if anything changed, and renews the expiry.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from enum import IntEnum
from typing import NamedTuple, cast

import msgpack
import redis
import redis.asyncio

from baguni.errors import UnavailableError
from baguni.history import CLOCK_SKEW_MS, MAX_EVENTS, Change, History
from baguni.packed_history import VERSION_BYTES, PackedChanges, pack_changes, unpack_history, unpack_version

TTL_S = 400 * 86_400  # a user who comes back within a year is known; longer than any topic keeps events
_PREFIX, _SUFFIX = "baguni:{", "}:h"  # braces: a cluster keeps a user's keys in one slot
_KEY = f"{_PREFIX}%s{_SUFFIX}"
_SCAN = 1_000
USERS_A_CALL = 64  # a call is a millisecond or two, in which Redis answers nobody else

# KEYS: histories. ARGV: max events, ttl in s, the clock in s, the clock skew in ms, and changes of each, as `pack_changes`
# makes them. Returns of each the version, a letter for each change: what became of it, see `Outcome`, and the bytes written,
# 0 if nothing changed.
# What is newer than everything stored is appended; anything else takes apart what is stored, as does one append in `slack`.
# Arrays T, A, C: time, action and content of what is stored, oldest first.
_APPLY = """
local ORDERED, CANCELLED, DELETED = 1, 4, 5
local HEAD, HEAD_BYTES = '>I4I4I4I8I8', 28
local cap, ttl, clock, skew = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local slack = math.max(16, math.floor(cap / 8))

local function has(content, id)
  for k = 2, #content do
    if content[k] == id then return true end
  end
  return false
end

local function add(content, others)
  local added = 0
  for k = 2, #others do
    if not has(content, others[k]) then
      content[#content + 1] = others[k]
      added = added + 1
    end
  end
  return added
end

local function size(action, content)
  if action == ORDERED then return #content - 1 end
  return action == CANCELLED and 0 or 1
end

local function once(action, content) -- an order that names an item twice has it once
  if action ~= ORDERED then return content end
  local distinct = {content[1]}
  add(distinct, content)
  return distinct
end

local function change(key, changes)
  local value = redis.call('GET', key)
  local version, count, newest, deleted = 0, 0, 0, 0
  if value then
    local _
    version, count, _, newest, deleted = struct.unpack(HEAD, value)
  end

  local function store(body)
    version = math.max(version + 1, clock)
    local head = struct.pack(HEAD, version, count, cap, newest, deleted)
    redis.call('SET', key, head .. body, 'EX', ttl)
    return #head + #body
  end

  local function append()
    if #changes == 0 or count > cap + slack then return nil end
    local latest, total, pieces = math.max(newest, deleted), count, {}
    for i = 1, #changes, 3 do
      local time, action, content = changes[i], changes[i + 1], once(changes[i + 1], changes[i + 2])
      if time <= latest or action == DELETED then return nil end
      pieces[#pieces + 1] = cmsgpack.pack(time - (i == 1 and newest or latest), action, content)
      latest, total = time, total + size(action, content)
    end
    newest, count = latest, total
    return table.concat(pieces)
  end

  local appended = append()
  if appended then
    local bytes = store((value and string.sub(value, HEAD_BYTES + 1) or '') .. appended)
    return {version, string.rep('n', #changes / 3), bytes}
  end

  local T, A, C = {}, {}, {}
  if value then
    local at, now = HEAD_BYTES, 0
    while at >= 0 and at < #value do
      local fields = {cmsgpack.unpack_limit(value, 300, at)}
      at = fields[1]
      for i = 2, #fields, 3 do
        now = now + fields[i]
        local n = #T + 1
        T[n], A[n], C[n] = now, fields[i + 1], fields[i + 2]
      end
    end
  end

  local latest_change = -1
  local function insert(time, action, content)
    if time <= deleted then return 'f' end
    local place = #T
    while place > 0 and T[place] > time do place = place - 1 end
    local letter = place < #T and 'l' or 'n'
    local same = place
    while same > 0 and T[same] == time do
      if A[same] == action then
        if action ~= ORDERED then
          if C[same] == content then return 'd' end
        elseif C[same][1] == content[1] then
          if add(C[same], content) == 0 then return 'd' end
          latest_change = math.max(latest_change, time)
          return letter
        end
      end
      same = same - 1
    end
    table.insert(T, place + 1, time)
    table.insert(A, place + 1, action)
    table.insert(C, place + 1, once(action, content))
    latest_change = math.max(latest_change, action == CANCELLED and time + skew or time)
    return letter
  end

  local letters, is_changed = {}, false
  for i = 1, #changes, 3 do
    local time, action, letter = changes[i], changes[i + 1], 'd'
    if action ~= DELETED then
      letter = insert(time, action, changes[i + 2])
    elseif time > deleted then
      deleted, letter, is_changed = time, 'n', true
      local kept = 1
      while T[kept] and T[kept] <= deleted do kept = kept + 1 end
      local function rest(from)
        local to = {}
        for k = kept, #from do to[#to + 1] = from[k] end
        return to
      end
      T, A, C = rest(T), rest(A), rest(C)
    end
    letters[#letters + 1] = letter
  end

  -- What is older than the cap-th newest event cannot be among the newest any more.
  local oldest, events, place, bytes = 0, 0, #T, 0
  while place > 0 do
    events = events + size(A[place], C[place])
    if events >= cap then oldest = T[place] break end
    place = place - 1
  end
  if is_changed or latest_change >= oldest then
    local pieces, now = {}, 0
    count = 0
    for i = 1, #T do
      if T[i] >= oldest or (A[i] == CANCELLED and T[i] + skew >= oldest) then
        pieces[#pieces + 1] = cmsgpack.pack(T[i] - now, A[i], C[i])
        now = T[i]
        count = count + size(A[i], C[i])
      end
    end
    newest = now
    bytes = store(table.concat(pieces))
  end
  return {version, table.concat(letters), bytes}
end

local all, replies = cmsgpack.unpack(ARGV[5]), {}
for k = 1, #KEYS do replies[k] = change(KEYS[k], all[k]) end
return replies
"""


class Outcome(IntEnum):
    """What became of a change; the letters of the script's reply."""

    NEW = ord("n")
    LATE = ord("l")  # new, and older than what was there
    DUPLICATE = ord("d")
    FORGOTTEN = ord("f")  # it is older than the deletion of its user


class Applied(NamedTuple):
    """A history's version, what became of its changes, and the bytes that were written, 0 if nothing changed."""

    version: int
    letters: bytes
    size: int
    first: Sequence[int]

    @property
    def outcomes(self) -> dict[int, Outcome]:
        """By the position of the change; adjacent lines of an order share one, at the first."""
        return dict(zip(self.first, map(Outcome, self.letters), strict=True))


class HistoryWriter:
    """Applies changes; for the consumer, which is synchronous."""

    def __init__(self, client: redis.Redis, max_events: int = MAX_EVENTS, ttl_s: int = TTL_S) -> None:
        self._client = client
        self._apply = client.register_script(_APPLY)
        self._max_events, self._ttl_s = max_events, ttl_s

    def apply(self, changes: Mapping[str, Sequence[Change]]) -> dict[str, Applied]:
        """Change users' histories in one round trip. Safe to repeat. Raises UnavailableError."""
        return self._send(_packed(changes))

    def apply_each(self, batches: Iterable[Mapping[str, Sequence[Change]]]) -> Iterator[dict[str, Applied]]:
        """The same for one batch after the other. While Redis works on one, the next is taken from `batches`."""
        with ThreadPoolExecutor(1) as redis_thread:
            before: Future[dict[str, Applied]] | None = None
            for changes in batches:
                sent = redis_thread.submit(self._send, _packed(changes))
                if before is not None:
                    yield before.result()
                before = sent
            if before is not None:
                yield before.result()

    def _send(self, packed: Sequence[tuple[str, PackedChanges]]) -> dict[str, Applied]:
        limits = (self._max_events, self._ttl_s, int(time.time()), CLOCK_SKEW_MS)
        try:
            pipeline = self._client.pipeline(transaction=False)
            for start in range(0, len(packed), USERS_A_CALL):
                some = packed[start : start + USERS_A_CALL]
                arguments = (*limits, msgpack.packb([theirs.flat for _, theirs in some]))
                self._apply(keys=[_KEY % user_id for user_id, _ in some], args=arguments, client=pipeline)
            replies = [reply for some in pipeline.execute() for reply in some]
        except redis.RedisError as error:
            raise UnavailableError("redis", str(error)) from error
        return {
            user_id: Applied(version, letters, size, theirs.first)
            for (user_id, theirs), (version, letters, size) in zip(packed, replies, strict=True)
        }

    def read(self, user_ids: Sequence[str]) -> list[History]:
        """Histories in the order of `user_ids`, in one round trip; a user without one has an empty history."""
        try:
            values = cast("list[bytes | None]", self._client.mget([_KEY % user_id for user_id in user_ids]))
        except redis.RedisError as error:
            raise UnavailableError("redis", str(error)) from error
        return [unpack_history(value) for value in values]

    def user_ids(self) -> Iterator[str]:
        """Everybody of whom something is stored, a tombstone included, in no order; those who come or go meanwhile may be
        among them or not."""
        try:
            for key in self._client.scan_iter(_PREFIX + "*" + _SUFFIX, count=_SCAN):
                yield key.decode().removeprefix(_PREFIX).removesuffix(_SUFFIX)
        except redis.RedisError as error:
            raise UnavailableError("redis", str(error)) from error

    def drop(self, user_ids: Sequence[str]) -> None:
        """Remove what is stored, without a tombstone: events that come again are taken again."""
        try:
            if user_ids:
                self._client.unlink(*[_KEY % user_id for user_id in user_ids])
        except redis.RedisError as error:
            raise UnavailableError("redis", str(error)) from error


def _packed(changes: Mapping[str, Sequence[Change]]) -> list[tuple[str, PackedChanges]]:
    return [(user_id, pack_changes(theirs)) for user_id, theirs in changes.items()]


class HistoryReader:
    """Reads histories; for the gateway, which is asynchronous."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._client = client

    async def read_newer(self, user_id: str, version: int | None) -> History | None:
        """A user's history, or None if it still has this version."""
        if version is not None:
            try:
                stored = cast("bytes", await self._client.getrange(_KEY % user_id, 0, VERSION_BYTES - 1))
            except redis.RedisError as error:
                raise UnavailableError("redis", str(error)) from error
            if unpack_version(stored) == version:
                return None
        return (await self.read([user_id]))[0]

    async def read(self, user_ids: Sequence[str]) -> list[History]:
        """Histories in the order of `user_ids`, in one round trip; a user without one has an empty history."""
        try:
            values = cast("list[bytes | None]", await self._client.mget([_KEY % user_id for user_id in user_ids]))
        except redis.RedisError as error:
            raise UnavailableError("redis", str(error)) from error
        return [unpack_history(value) for value in values]
