"""How every process connects to Redis, and what Redis' errors mean."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources

import redis
import redis.asyncio
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
