"""The release being served. Everything that belongs to one release is held by one object, and a request takes that
object once, at its start: so no answer mixes two releases, and a switch is one assignment.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import NamedTuple

import redis.asyncio

from baguni.clients.inference import InferenceClient
from baguni.clients.item_index import ItemIndex
from baguni.clients.item_search import AsyncItemIndex
from baguni.domain.errors import BaguniError, UnavailableError
from baguni.domain.release import Release, ReleaseStore
from baguni.stores.live_items import LiveItemReader
from baguni.stores.served import ServedTeller, process_name
from server.release.items import ItemTable
from server.settings import ServerSettings

log = logging.getLogger(__name__)
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0  # before a refused release is tried again


@dataclass(frozen=True, eq=False)
class Serving:
    """One release with its connections."""

    release: Release
    items: ItemTable
    inference: InferenceClient
    index: AsyncItemIndex
    live_items: LiveItemReader

    @property
    def release_id(self) -> str:
        """Return the release's id."""
        return self.release.release_id

    async def close(self) -> None:
        """Close the connections."""
        await self.inference.close()
        await self.index.close()


class _Wait(NamedTuple):
    """Seconds for which a refused release is left alone, and the end of that time by the monotonic clock."""

    seconds: float
    until: float


class ActiveRelease:
    """Follow the store's pointer, and keep the releases open that experiments want beside it."""

    def __init__(
        self,
        settings: ServerSettings,
        store: ReleaseStore,
        client: redis.asyncio.Redis,
        wanted_beside: Callable[[], Collection[str]] = frozenset,
    ) -> None:
        self._settings, self._store, self._redis, self._wanted_beside = settings, store, client, wanted_beside
        self._serving: Serving | None = None
        self._beside: dict[str, Serving] = {}
        self._refused: dict[str, str] = {}
        self._waits: dict[str, _Wait] = {}
        self._opening: set[str] = set()
        self._teller = ServedTeller(client, process_name())
        self._closing: set[asyncio.Task[None]] = set()
        self._requests: Counter[Serving] = Counter()

    @contextmanager
    def held(self, release_id: str | None = None) -> Iterator[Serving]:
        """Yield the release that answers a request: the one asked for if it is open, else the active one. It stays open until
        the request is done, whatever is switched meanwhile. Raises UnavailableError before the first release is served."""
        serving = self._beside.get(release_id, self._serving) if release_id else self._serving
        if serving is None:
            raise UnavailableError("release", "no release is being served yet")
        self._requests[serving] += 1
        try:
            yield serving
        finally:
            self._requests[serving] -= 1
            self._close_if_idle(serving)

    async def follow(self, on_change: Callable[[str], Awaitable[None]]) -> None:
        """Switch whenever the pointer moves, for ever; a release that cannot be served leaves the present one."""
        while True:
            wanted: str | None = None
            with self._refusals("the pointer"):
                wanted = self._store.active_id()
            served = self._serving.release_id if self._serving else None
            if wanted is not None and wanted != served and self._is_due(wanted):
                with self._refusals(wanted):
                    await self._switch(wanted)
                    await on_change(wanted)
            await self._follow_beside()
            await asyncio.sleep(self._settings.pointer_check_s)

    async def tell_what_is_served(self) -> None:
        """Tell Redis, for ever, which releases are needed here, so that nobody takes them away: those that are served, are
        about to be, or have requests."""
        while True:
            in_use = [*self._open(), *(serving for serving, requests in self._requests.items() if requests > 0)]
            try:
                await self._teller.tell({serving.release_id for serving in in_use} | self._opening)
            except BaguniError as error:
                log.warning("redis is not told what is served: %s", error)
            await asyncio.sleep(self._settings.pointer_check_s)

    async def _opened(self, release_id: str) -> Serving:
        self._opening.add(release_id)
        try:
            return await open_serving(self._settings, self._store, self._redis, release_id)
        finally:
            self._opening.discard(release_id)

    async def _follow_beside(self) -> None:
        """Open the releases that experiments want, close those that they do not want any more."""
        wanted = set(self._wanted_beside())
        for release_id in filter(self._is_due, wanted - self._beside.keys()):
            with self._refusals(release_id):
                self._beside[release_id] = await self._opened(release_id)
                log.info("serving beside release=%s", release_id)
        for release_id in self._beside.keys() - wanted:
            self._close_if_idle(self._beside.pop(release_id))

    @contextmanager
    def _refusals(self, what: str) -> Iterator[None]:
        """Log why a release cannot be served, once; try it again later each time, since looking at it means to hash it."""
        try:
            yield
            self._refused.pop(what, None)
            self._waits.pop(what, None)
        except Exception as error:  # a release is made elsewhere, perhaps by a newer version: the present one stays
            if self._refused.get(what) != str(error):
                foreseen = isinstance(error, BaguniError | OSError)
                log.error("release refused: %s: %r", what, error, exc_info=None if foreseen else error)
            self._refused[what] = str(error)
            wait_s = min(2 * self._waits[what].seconds, LONGEST_WAIT_S) if what in self._waits else FIRST_WAIT_S
            self._waits[what] = _Wait(wait_s, time.monotonic() + wait_s)

    def _is_due(self, release_id: str) -> bool:
        return release_id not in self._waits or time.monotonic() >= self._waits[release_id].until

    async def follow_items(self) -> None:
        """Take over changed items, for ever."""
        while True:
            await asyncio.sleep(self._settings.live_items_check_s)
            for serving in self._open():
                try:
                    serving.items.apply(await serving.live_items.changes())
                except UnavailableError as error:
                    log.warning("live items: %s", error)

    async def close(self) -> None:
        """Close the connections of the release being served."""
        with suppress(BaguniError):
            await self._teller.tell(())
        for task in self._closing:
            task.cancel()
        for serving in self._open():
            await serving.close()

    def _open(self) -> list[Serving]:
        return [*([self._serving] if self._serving else []), *self._beside.values()]

    async def _switch(self, release_id: str) -> None:
        serving = await self._opened(release_id)
        old, self._serving = self._serving, serving
        log.info("serving release=%s items=%d", release_id, len(serving.items))
        if old is not None:
            self._close_if_idle(old)

    def _close_if_idle(self, serving: Serving) -> None:
        """Close a release that was switched away from, once nothing uses it."""
        if serving in self._open() or self._requests[serving] > 0:
            return
        del self._requests[serving]
        task = asyncio.create_task(serving.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


async def open_serving(
    settings: ServerSettings, store: ReleaseStore, client: redis.asyncio.Redis, release_id: str
) -> Serving:
    """Open a release and check that Triton and Milvus hold this one and no other. Raises ReleaseMismatchError, NotFoundError or
    UnavailableError."""
    release = await asyncio.to_thread(store.get, release_id)
    inference = InferenceClient(settings.triton_url, release_id, release.signature)
    try:
        await inference.check()
        await asyncio.to_thread(_check_index, settings.milvus_uri, release_id)
        items = await asyncio.to_thread(ItemTable, release)
        live_items = LiveItemReader(client, release_id)
        changes = await live_items.changes()
        await asyncio.to_thread(items.apply, changes)  # nobody reads the table yet, and there may be many
    except BaguniError:
        await inference.close()
        raise
    return Serving(release, items, inference, AsyncItemIndex(settings.milvus_uri, release_id), live_items)


def _check_index(uri: str, release_id: str) -> None:
    index = ItemIndex(uri, release_id)
    try:
        index.check()
    finally:
        index.close()
