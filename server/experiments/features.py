"""Read features and keep them fresh: from a file, or GrowthBook's SDK endpoint.

What cannot be had or is not valid leaves what was there before; only at the start it is an error.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import aiohttp

from baguni.domain.errors import BaguniError, InvalidInputError, UnavailableError
from server.experiments.choices import NO_EXPERIMENTS, Experiments, parse

log = logging.getLogger(__name__)
FILE_CHECK_S = 1.0
SSE_RETRY_S = 5.0
MAX_PAYLOAD = 10 << 20  # bytes of an answer
TIMEOUT = aiohttp.ClientTimeout(total=10)
PATH = "/api/features/"


class FeatureSource(Protocol):
    """A source of features."""

    async def read(self) -> Experiments | None:
        """Return the features, None if they are those of the last reading. Raises InvalidInputError or UnavailableError."""

    async def wait(self) -> None:
        """Wait until there may be something new."""

    async def listen(self) -> None:
        """Hear of changes for a while, if the source announces any."""

    async def close(self) -> None:
        """Close connections."""


class Features:
    """The experiments of now. `source`: a path, GrowthBook's https://HOST/api/features/CLIENT_KEY, or empty for none.
    `on_error` is called when a feature cannot be evaluated."""

    def __init__(self, source: str, refresh_s: float, on_error: Callable[[], None] = lambda: None) -> None:
        self.experiments = NO_EXPERIMENTS
        self._source, self._on_error = _source(source, refresh_s), on_error

    @property
    def are_followed(self) -> bool:
        """Return whether there is a source."""
        return self._source is not None

    async def start(self) -> None:
        """The first reading. Raises InvalidInputError for a file; what an endpoint lacks is waited for while serving."""
        if self._source is None:
            return
        try:
            self._take(await self._source.read())
        except UnavailableError as error:
            log.warning("no experiments yet error=%s", error)
        except InvalidInputError as error:
            if isinstance(
                self._source, _File
            ):  # it came with the deployment; an endpoint's payload may be mended while we serve
                raise
            log.error("no experiments yet error=%s", error)

    async def follow(self) -> None:
        """Take over what changes, for ever."""
        said = ""
        while self._source is not None:
            await self._source.wait()
            try:
                found = await self._source.read()
                said = ""
            except BaguniError as error:
                if str(error) != said:
                    log.error("experiments stay as they were error=%s", error)
                said = str(error)
                continue
            self._take(found)

    def _take(self, found: Experiments | None) -> None:
        if found is not None:
            found.on_error = self._on_error
            self.experiments = found
            log.info("experiments read")

    async def follow_events(self) -> None:
        """Listen to what the source announces, for ever."""
        while self._source is not None:
            await self._source.listen()

    async def close(self) -> None:
        """Close connections."""
        if self._source is not None:
            await self._source.close()


class _File:
    def __init__(self, path: Path) -> None:
        self._path, self._seen = path, ""

    async def read(self) -> Experiments | None:
        try:
            text = self._path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInputError(f"experiments: {self._path}: {error}") from error
        if text == self._seen:
            return None
        found = parse(text, str(self._path))
        self._seen = text
        return found

    async def wait(self) -> None:
        await asyncio.sleep(FILE_CHECK_S)

    async def listen(self) -> None:
        await asyncio.sleep(SSE_RETRY_S)  # a file announces nothing

    async def close(self) -> None:
        """Close nothing: a file is not kept open."""


class _Endpoint:
    """Asks every `refresh_s` with the ETag of the last answer, and at once when the server's event stream says so."""

    def __init__(self, url: str, refresh_s: float) -> None:
        self._url, self._refresh_s = url, refresh_s
        self._events_url = url.replace(PATH, "/sub/", 1)
        self._etag, self._changed = "", asyncio.Event()
        self._session: aiohttp.ClientSession | None = None
        self._announces = asyncio.Event()

    async def read(self) -> Experiments | None:
        session = self._opened()
        headers = {"If-None-Match": self._etag} if self._etag else {}
        try:
            async with session.get(self._url, headers=headers, timeout=TIMEOUT) as answer:
                if answer.status == 304:
                    return None
                raw = bytearray()
                async for chunk in answer.content.iter_any():
                    raw += chunk
                    if len(raw) > MAX_PAYLOAD:
                        raise InvalidInputError(f"{self._url} answers more than {MAX_PAYLOAD} bytes")
                text = raw.decode(errors="replace")
                if answer.status != 200:
                    raise UnavailableError("growthbook", f"{self._url} answered {answer.status}: {text[:200]}")
                found = parse(text, self._url)
                self._etag = answer.headers.get("ETag", "")
                if answer.headers.get("x-sse-support") == "enabled":
                    self._announces.set()
                return found
        except (aiohttp.ClientError, TimeoutError) as error:
            raise UnavailableError("growthbook", f"{self._url}: {error or 'no answer in time'}") from error

    async def wait(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._refresh_s):
                await self._changed.wait()
        self._changed.clear()

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession()
        return self._session

    async def listen(self) -> None:
        await self._announces.wait()
        with suppress(aiohttp.ClientError, TimeoutError):
            async for _ in self._events():
                self._changed.set()
        await asyncio.sleep(SSE_RETRY_S)

    async def _events(self) -> AsyncIterator[str]:
        """Yield the names of the server's events."""
        without_end = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=120)
        async with self._opened().get(self._events_url, timeout=without_end) as answer:
            async for line in answer.content:
                if line.startswith(b"event:"):
                    yield line.removeprefix(b"event:").strip().decode(errors="replace")


def _source(source: str, refresh_s: float) -> FeatureSource | None:
    if not source:
        return None
    if source.startswith(("http://", "https://")):
        if PATH not in source:
            raise InvalidInputError(
                f"BAGUNI_EXPERIMENTS is {source!r}, expected https://HOST{PATH}CLIENT_KEY, or a path"
            )
        return _Endpoint(source, refresh_s)
    return _File(Path(source))
