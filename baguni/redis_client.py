"""How every process connects to Redis, and what Redis' errors mean."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from baguni.errors import RefusedError, UnavailableError

TIMEOUT_S, CONNECT_TIMEOUT_S = 2.0, 1.0
# One more attempt, at once, replaces a connection that went stale. Longer patience is the caller's.
RETRIES = 1
# How replies begin that are about Redis' state, not about what it was asked. redis-py removes some of them.
TEMPORARY = (
    "ASK",
    "BUSY",
    "CLUSTERDOWN",
    "CROSSSLOT",
    "LOADING",
    "MASTERDOWN",
    "MISCONF",
    "MOVED",
    "NOAUTH",
    "NOPERM",
    "NOREPLICAS",
    "NOSCRIPT",
    "OOM",
    "READONLY",
    "TRYAGAIN",
    "UNKILLABLE",
    "WRONGPASS",
)
TEMPORARY_ERRORS = (
    redis.exceptions.ReadOnlyError,
    redis.exceptions.OutOfMemoryError,
    redis.exceptions.NoScriptError,
    redis.exceptions.NoPermissionError,
    redis.exceptions.ClusterError,
)


def connect(url: str, timeout_s: float = TIMEOUT_S) -> redis.Redis:
    """Return a synchronous client; it connects at the first call."""
    return redis.Redis.from_url(
        url,
        socket_timeout=timeout_s,
        socket_connect_timeout=CONNECT_TIMEOUT_S,
        retry=Retry(NoBackoff(), RETRIES),
    )


def connect_async(url: str, timeout_s: float = TIMEOUT_S) -> redis.asyncio.Redis:
    """Return an asynchronous client; it connects at the first call."""
    return redis.asyncio.Redis.from_url(
        url,
        socket_timeout=timeout_s,
        socket_connect_timeout=CONNECT_TIMEOUT_S,
        retry=AsyncRetry(NoBackoff(), RETRIES),
    )


@contextmanager
def redis_errors() -> Iterator[None]:
    """Raise RefusedError where Redis refuses what it was asked, UnavailableError for every other error of redis-py."""
    try:
        yield
    except redis.ResponseError as error:
        if isinstance(error, TEMPORARY_ERRORS) or str(error).startswith(TEMPORARY):
            raise UnavailableError("redis", str(error)) from error
        raise RefusedError("redis", str(error)) from error
    except redis.RedisError as error:
        raise UnavailableError("redis", str(error)) from error
