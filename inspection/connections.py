"""What the page reads from: the gateway, Redis, Triton and the release store. Nothing here writes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TypeVar

import numpy as np
from nicegui import run
from numpy.typing import NDArray

from baguni.clients.gateway import ClientSettings
from baguni.domain.errors import NotFoundError, UnavailableError
from baguni.domain.history import History
from baguni.domain.release import Release, ReleaseStore
from baguni.stores.history_store import HistoryReader, HistoryWriter
from baguni.stores.redis_client import connect, connect_async
from inspection.models import ReleaseModels
from inspection.neighbours import space_vectors
from inspection.placed_orders import OrderLog
from inspection.projection import Plane, project
from inspection.retrieval import Encoded

REMEMBERED_RELEASES = 4
ENCODED_AT_ONCE = 64
REMEMBERED_USERS = 20_000
T = TypeVar("T")


class Connections:
    """One a process. `orders`: what users really ordered, where a data folder was given."""

    def __init__(self, settings: ClientSettings, orders: OrderLog | None = None) -> None:
        self.orders = orders
        self.gateway = settings.gateway()
        self.store = ReleaseStore(settings.releases)
        self._redis_url, self._triton_url = settings.redis_url, settings.triton_url
        self._histories: HistoryReader | None = None
        self._release = lru_cache(REMEMBERED_RELEASES)(lambda release_id: self.store.get(release_id, verify=False))
        self._models = lru_cache(REMEMBERED_RELEASES)(
            lambda release_id: ReleaseModels(self._release(release_id), self._triton_url)
        )
        self._vectors = lru_cache(2 * REMEMBERED_RELEASES)(
            lambda release_id, collaborative: space_vectors(self._release(release_id), collaborative)
        )
        self._planes = lru_cache(2 * REMEMBERED_RELEASES)(
            lambda release_id, collaborative: project(self._vectors(release_id, collaborative))
        )
        self._encoded: dict[tuple[str, str, int], Encoded | None] = {}

    def release(self, release_id: str | None = None) -> Release:
        """A release, the active one if none is named. Raises NotFoundError."""
        chosen = release_id or self.store.active_id()
        if chosen is None:
            raise NotFoundError(f"no release is active in {self.store.root}: `baguni release activate RELEASE`")
        return self._release(chosen)

    def models(self, release_id: str) -> ReleaseModels:
        """A release's models in Triton."""
        return self._models(release_id)

    def vectors(self, release_id: str, collaborative: bool) -> NDArray[np.float32]:
        """Directions of a release's items in a space."""
        return self._vectors(release_id, collaborative)

    def plane(self, release_id: str, collaborative: bool) -> Plane:
        """A space of a release on a plane."""
        return self._planes(release_id, collaborative)

    async def history(self, user_id: str) -> History:
        """What is stored of a user."""
        return (await self._reader().read([user_id]))[0]

    async def newer_history(self, user_id: str, version: int) -> History | None:
        """What is stored of a user, None if it still has this version."""
        return await self._reader().read_newer(user_id, version)

    def some_users(self, count: int) -> list[str]:
        """Users with a history, at most `count`, in the order of their ids."""
        with connect(self._redis_url) as client:
            store = HistoryWriter(client)
            found = list(itertools.islice(store.user_ids(), count))
            known = (
                [user for user, history in zip(found, store.read(found), strict=True) if len(history)] if found else []
            )
        return sorted(known, key=_natural)

    def encoded_users(
        self, release_id: str, count: int, progress: Callable[[float], None]
    ) -> list[tuple[str, Encoded]]:
        """Users with a history, at most `count`, each just after their newest event. A user who has not changed is not encoded
        again. `progress` is told the part that is done."""
        models, user_ids = self.models(release_id), self.some_users(count)
        found: list[tuple[str, Encoded]] = []
        for start in range(0, len(user_ids), ENCODED_AT_ONCE):
            some = user_ids[start : start + ENCODED_AT_ONCE]
            users = self._encoded_as_stored(models, some)
            found += [(user_id, user) for user_id, user in zip(some, users, strict=True) if user is not None]
            progress((start + len(some)) / len(user_ids))
        return found

    def _encoded_as_stored(self, models: ReleaseModels, user_ids: Sequence[str]) -> list[Encoded | None]:
        with connect(self._redis_url) as client:
            histories = HistoryWriter(client).read(user_ids)
        keys = [
            (models.release.release_id, user_id, history.version)
            for user_id, history in zip(user_ids, histories, strict=True)
        ]
        remembered = dict(self._encoded)
        missing = [place for place, key in enumerate(keys) if key not in remembered]
        if missing:
            moments = [just_after(histories[place]) for place in missing]
            users = models.encode([histories[place].events for place in missing], moments)
            new = {keys[place]: user for place, user in zip(missing, users, strict=True)}
            remembered |= new
            self._encoded = new if len(remembered) > REMEMBERED_USERS else remembered
        return [remembered[key] for key in keys]

    def _reader(self) -> HistoryReader:
        """Made in the event loop that uses it."""
        if self._histories is None:
            self._histories = HistoryReader(connect_async(self._redis_url))
        return self._histories


async def blocking(call: Callable[[], T]) -> T:
    """Run it beside the event loop. Raises UnavailableError where the page is stopping."""
    done = await run.io_bound(call)
    if done is None:
        raise UnavailableError("page", "it is stopping")
    return done


def just_after(history: History) -> int:
    """A minute after the newest event, in ms: for a log that is being replayed, the moment at which its user asks."""
    return history.events[-1].time_ms + 60_000 if history.events else 0


def _natural(user_id: str) -> tuple[int, str]:
    return len(user_id), user_id
