"""Errors of Redis: a refusal is about what was asked, everything else is an outage, whatever words stand around it."""

from __future__ import annotations

import pytest
import redis

from baguni.domain.errors import RefusedError, UnavailableError
from baguni.stores.redis_client import is_demoted, redis_errors, shared_redis_errors

WRAPPED = [
    "{}",
    "Command # 1 (EVALSHA abc 1 key) of pipeline caused error: {}",
    "Error running script (call to f_abc): @user_script:33: @user_script: 33: -{}",
    "{} script: abc, on @user_script:33.",
    "Transaction discarded because of: {}",
    "ERR Error running script (call to f_abc): @user_script:33: @user_script: 33: -{}",
]
DEMOTED = [
    "READONLY You can't write against a read only replica.",
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
    "NOREPLICAS Not enough good replicas to write.",
]
OUTAGES = [
    "OOM command not allowed when used memory > 'maxmemory'.",
    "MISCONF Redis is configured to save RDB snapshots",
    "BUSY Redis is busy running a script.",
    "CLUSTERDOWN The cluster is down",
    "MOVED 3999 127.0.0.1:6381",
    "NOPERM this user has no permissions to run the 'set' command",
    "NOAUTH Authentication required.",
    "something that nobody has seen",
]
REFUSALS = [
    "WRONGTYPE Operation against a key holding the wrong kind of value",
    "ERR value is not an integer or out of range",
    "ERR hash value is not an integer",
    "@user_script:12: user_script:12: attempt to compare nil with number",
    "@user_script:12: user_script:12: assertion failed!",
]


@pytest.mark.parametrize("wrapped", WRAPPED)
@pytest.mark.parametrize("message", OUTAGES + DEMOTED)
def test_an_outage_is_never_a_refusal(message: str, wrapped: str) -> None:
    with pytest.raises(UnavailableError), redis_errors():
        raise redis.ResponseError(wrapped.format(message))


@pytest.mark.parametrize("wrapped", WRAPPED)
@pytest.mark.parametrize("message", DEMOTED + OUTAGES + REFUSALS)
def test_a_server_is_left_only_when_another_may_be_the_primary(message: str, wrapped: str) -> None:
    assert is_demoted(redis.ResponseError(wrapped.format(message))) == (message in DEMOTED)


@pytest.mark.parametrize("wrapped", WRAPPED)
@pytest.mark.parametrize("message", REFUSALS)
def test_a_refusal_is_one_unless_everybody_shares_the_key(message: str, wrapped: str) -> None:
    error = redis.ResponseError(wrapped.format(message))
    with pytest.raises(RefusedError), redis_errors():
        raise error
    with pytest.raises(UnavailableError), shared_redis_errors():
        raise error


@pytest.mark.parametrize(
    "error", [redis.ConnectionError("gone"), redis.TimeoutError("late"), redis.exceptions.BusyLoadingError()]
)
def test_a_server_that_does_not_answer_is_unavailable(error: redis.RedisError) -> None:
    with pytest.raises(UnavailableError), redis_errors():
        raise error
