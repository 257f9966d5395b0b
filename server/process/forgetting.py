"""Make one process of the gateway forget users who asked for it: in its caches within seconds, in its captured requests within
REWRITE_S. Captured requests that are too old go the same way. Requests of a user who has come back since the deletion stay: a
process that starts reads the whole list.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Collection, Iterable, Mapping

from baguni.domain.errors import UnavailableError
from baguni.stores.forgotten import Entry, ForgottenFollower
from baguni.stores.personal_data import NotSearchedError
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
        self._to_capture: dict[str, float] = {}  # user id → the time up to which requests are removed, in ms
        self._again: deque[tuple[float, Mapping[str, float]]] = deque()
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
            new = _until_ms(entries)
            self._forget_cached(new)
            self._remove_captured(new)
            self._again.append((now + AGAIN_S, new))
            self._position = entries[-1].position
        while self._again and self._again[0][0] <= now:
            _, old = self._again.popleft()
            self._forget_cached(old)
            self._remove_captured(old)
        if now - self._rewritten_s >= (REWRITE_S if self._to_capture else EXPIRE_S):
            await asyncio.to_thread(self._capture.forget, dict(self._to_capture))
            self._to_capture.clear()
            self._rewritten_s = now
        if not self._to_capture and (self._told != self._position or now - self._told_s >= TELL_S):
            await self._follower.tell(self._position)
            self._told, self._told_s = self._position, now

    def _remove_captured(self, until_ms: Mapping[str, float]) -> None:
        """Add users to those whose captured requests the next pass removes."""
        for user_id, their_ms in until_ms.items():
            self._to_capture[user_id] = max(their_ms, self._to_capture.get(user_id, 0))

    def _forget_cached(self, user_ids: Collection[str]) -> None:
        if num := self._users.forget_everywhere(user_ids):
            log.info("forgotten users=%d", num)


def _until_ms(entries: Iterable[Entry]) -> dict[str, float]:
    """Return the time in ms up to which each user's captured requests are removed: until requests that had begun have ended."""
    return {entry.user_id: entry.until_ms + AGAIN_S * 1000 for entry in entries}


def personal_data(user_id: str, erase: bool) -> list[str]:
    """Return what the files of captured requests on this machine have of a user, and remove it if asked to. A file that a
    gateway writes is left to that gateway, which removes it within REWRITE_S. Raises NotSearchedError."""
    folder = ServerSettings().capture_dir
    if folder is None:
        raise NotSearchedError("BAGUNI_CAPTURE_DIR is not set")
    if not folder.is_dir():
        raise NotSearchedError(f"the folder {folder} does not exist here")
    found = [f"{path}: {count} captured requests" for path, count in captured_of(folder, user_id)]
    if erase and found:
        remove_from_unused(folder, Removal({user_id: math.inf}))
    return found
