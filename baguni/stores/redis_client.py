"""How every process connects to Redis, and what Redis' errors mean.

What replies other than a value mean here, and what follows:

    READONLY                    the server is a replica: it was the primary once   close the client's connections, unavailable
    MASTERDOWN                  it is a replica that has lost its primary          the same
    NOREPLICAS                  it has lost its replicas, which may have made      the same
                                another server the primary
    LOADING, NOAUTH             it has started anew, or its password is another    close this connection, unavailable
    OOM, MISCONF, BUSY          the primary itself is in need                      unavailable
    CLUSTERDOWN, MOVED          it is a cluster of shards, which is not supported  unavailable
    WRONGTYPE, errors of Lua    the value or the arguments are wrong               refused, see `REFUSALS`

Redis-py closes the connection itself after LOADING and NOAUTH. Whatever is unavailable is asked again by the caller.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import resources
from typing import Any

import redis
import redis.asyncio
import redis.asyncio.connection
import redis.connection
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from baguni.domain.errors import RefusedError, UnavailableError

TIMEOUT_S, CONNECT_TIMEOUT_S = 2.0, 1.0
# One more attempt, at once, replaces a connection that went stale. Longer patience is the caller's.
RETRIES = 1
# Errors that report what is stored or asked, not Redis' state. Scripts and pipelines put words around the code. Everything else
# counts as unavailable: to wait for what never comes is seen and mended, to set good records aside is not.
REFUSALS = re.compile(
    r"\bWRONGTYPE\b|is not an integer|is not a valid float|user_script:\d+: (attempt to |bad argument|assertion failed)"
)

# Errors of a server that may have ceased to be the primary. It keeps its connections, so only a client that closes them finds
# the primary where the address leads by now. Redis-py takes the code out of some messages; those have a class.
DEMOTED = re.compile(r"\b(READONLY|MASTERDOWN|NOREPLICAS)\b")
DEMOTED_CLASSES = (redis.exceptions.ReadOnlyError, redis.exceptions.MasterDownError)


class _Demotions:
    """Counts how often the server of one client's connections was found demoted."""

    count = 0


class _Outdated:
    """Compares the demotions that a connection has seen with its client's."""

    def __init__(self, demotions: _Demotions) -> None:
        self._demotions, self._seen = demotions, demotions.count

    def note_demotion(self) -> None:
        """Outdate the client's other connections, unless they are newer than this one."""
        if self._seen == self._demotions.count:
            self._demotions.count += 1
        self._seen = self._demotions.count

    def take(self) -> bool:
        """Return whether a demotion was noted since this was last asked."""
        seen, self._seen = self._seen, self._demotions.count
        return seen != self._seen


class _FollowingConnection(redis.connection.AbstractConnection):
    """Closes itself, and later the other connections of its client, when its server is demoted."""

    def __init__(self, *args: Any, demotions: _Demotions, **kwargs: Any) -> None:
        self._outdated = _Outdated(demotions)
        super().__init__(*args, **kwargs)

    def connect(self) -> None:
        """Connect unless it is connected, as the pool asks before each use."""
        if self._outdated.take():
            self.disconnect()  # type: ignore[no-untyped-call]
        super().connect()  # type: ignore[no-untyped-call]

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        """Return the server's reply. Raises ConnectionError, which redis-py tries again, for a demoted server."""
        try:
            return super().read_response(*args, **kwargs)
        except redis.ResponseError as error:
            if not is_demoted(error):
                raise
            self._outdated.note_demotion()
            self.disconnect()  # type: ignore[no-untyped-call]
            raise redis.ConnectionError(f"the server may not be the primary any more: {error}") from error


class _AsyncFollowingConnection(redis.asyncio.connection.AbstractConnection):
    """The same for asyncio."""

    def __init__(self, *args: Any, demotions: _Demotions, **kwargs: Any) -> None:
        self._outdated = _Outdated(demotions)
        super().__init__(*args, **kwargs)

    async def connect(self) -> None:
        """Connect unless it is connected, as the pool asks before each use."""
        if self._outdated.take():
            await self.disconnect()
        await super().connect()  # type: ignore[no-untyped-call]

    async def read_response(self, *args: Any, **kwargs: Any) -> Any:
        """Return the server's reply. Raises ConnectionError, which redis-py tries again, for a demoted server."""
        try:
            return await super().read_response(*args, **kwargs)
        except redis.ResponseError as error:
            if not is_demoted(error):
                raise
            self._outdated.note_demotion()
            await self.disconnect()
            raise redis.ConnectionError(f"the server may not be the primary any more: {error}") from error


def is_demoted(error: redis.ResponseError) -> bool:
    """Return whether an error reports that the server may not be the primary any more."""
    return isinstance(error, DEMOTED_CLASSES) or DEMOTED.search(str(error)) is not None


@cache
def _following(following: type, connection_class: type) -> type:
    """Return a connection class, that of TCP, TLS or a socket's file, which follows the primary."""
    return type(f"Following{connection_class.__name__}", (following, connection_class), {})


class _Pool(redis.ConnectionPool):
    def __init__(self, connection_class: type = redis.Connection, **kwargs: Any) -> None:
        super().__init__(_following(_FollowingConnection, connection_class), demotions=_Demotions(), **kwargs)


class _AsyncPool(redis.asyncio.ConnectionPool):
    def __init__(self, connection_class: type = redis.asyncio.Connection, **kwargs: Any) -> None:
        super().__init__(_following(_AsyncFollowingConnection, connection_class), demotions=_Demotions(), **kwargs)


def connect(url: str, timeout_s: float = TIMEOUT_S) -> redis.Redis:
    """Return a synchronous client; it connects at the first call."""
    pool = _Pool.from_url(
        url,
        socket_timeout=timeout_s,
        socket_connect_timeout=CONNECT_TIMEOUT_S,
        retry=Retry(NoBackoff(), RETRIES),
    )
    return redis.Redis.from_pool(pool)


def connect_async(url: str, timeout_s: float = TIMEOUT_S) -> redis.asyncio.Redis:
    """Return an asynchronous client; it connects at the first call."""
    pool = _AsyncPool.from_url(
        url,
        socket_timeout=timeout_s,
        socket_connect_timeout=CONNECT_TIMEOUT_S,
        retry=AsyncRetry(NoBackoff(), RETRIES),
    )
    return redis.asyncio.Redis.from_pool(pool)


def lua(package: str, name: str) -> str:
    """Return the source of a script that lies beside a package's modules."""
    return resources.files(package).joinpath(f"{name}.lua").read_text()


@contextmanager
def redis_errors() -> Iterator[None]:
    """Raise RefusedError where Redis refuses what it was asked, UnavailableError for every other error of redis-py."""
    try:
        yield
    except redis.ResponseError as error:
        kind = RefusedError if REFUSALS.search(str(error)) else UnavailableError
        raise kind("redis", str(error)) from error
    except redis.RedisError as error:
        raise UnavailableError("redis", str(error)) from error


@contextmanager
def shared_redis_errors() -> Iterator[None]:
    """The same for keys that all records or requests share: a refusal is the fault of none of them, so it counts as
    UnavailableError."""
    try:
        with redis_errors():
            yield
    except RefusedError as error:
        raise UnavailableError("redis", str(error)) from error
