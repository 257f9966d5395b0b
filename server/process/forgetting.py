"""Make one process of the gateway forget users who asked for it: in its caches within seconds, in its captured requests within
REWRITE_S. Captured requests that are too old go the same way.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Collection

from baguni.domain.errors import UnavailableError
from baguni.stores.forgotten import ForgottenFollower
from server.lists.users import UserCache
from server.settings import ServerSettings
from server.telemetry.capture import Capture, Removal, captured_of, remove_from_unused

log = logging.getLogger(__name__)
LOOK_S = 2.0
REWRITE_S = 20.0  # between two passes over captured requests, which are files of some MB
EXPIRE_S = 600.0  # the same, where only age matters
TELL_S = 60.0
AGAIN_S = 90.0  # a request that had read the history before it was deleted has ended by then


class Forgetting:
    """Makes one process forget, and keeps whom it still has to forget."""

    def __init__(self, follower: ForgottenFollower, users: UserCache, capture: Capture) -> None:
        self._follower, self._users, self._capture = follower, users, capture
        self._to_capture: set[str] = set()
        self._again: deque[tuple[float, frozenset[str]]] = deque()
        self._rewritten_s = self._told_s = -math.inf
        self._position = self._told = 0

    async def follow(self) -> None:
        """Forget whoever is on the list, for ever."""
        while True:
            try:
                await self._step()
            except UnavailableError as error:
                log.warning("users to forget not read error=%s", error)
            await asyncio.sleep(LOOK_S)

    async def _step(self) -> None:
        now = time.monotonic()
        entries = await self._follower.new()
        if entries:
            new = frozenset(entry.user_id for entry in entries)
            self._forget_cached(new)
            self._to_capture |= new
            self._again.append((now + AGAIN_S, new))
            self._position = entries[-1].position
        while self._again and self._again[0][0] <= now:
            _, ids = self._again.popleft()
            self._forget_cached(ids)
            self._to_capture |= ids
        if now - self._rewritten_s >= (REWRITE_S if self._to_capture else EXPIRE_S):
            await asyncio.to_thread(self._capture.forget, frozenset(self._to_capture))
            self._to_capture.clear()
            self._rewritten_s = now
        if not self._to_capture and (self._told != self._position or now - self._told_s >= TELL_S):
            await self._follower.tell(self._position)
            self._told, self._told_s = self._position, now

    def _forget_cached(self, user_ids: Collection[str]) -> None:
        if num := self._users.forget_everywhere(user_ids):
            log.info("forgotten users=%d", num)


def personal_data(user_id: str, erase: bool) -> list[str]:
    """Return what the files of captured requests on this machine have of a user, and remove it if asked to. A file that a
    gateway writes is left to that gateway, which removes it within REWRITE_S."""
    folder = ServerSettings().capture_dir
    if folder is None or not folder.is_dir():
        return []
    found = [f"{path}: {count} captured requests" for path, count in captured_of(folder, user_id)]
    if erase and found:
        remove_from_unused(folder, Removal(frozenset([user_id])))
    return found
