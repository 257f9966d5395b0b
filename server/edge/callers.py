"""Who may call what, and how often. Callers stand in a TOML file:

    [shop-backend]
    token_sha256 = "9f86d081884c7d65…"       # of the bearer token; the token itself is nowhere on this machine
    certificate_names = ["shop.internal"]    # or, with mutual TLS, the client certificate's common or alternative names
    permissions = ["online"]                 # online: Recommend, SimilarItems; bulk: GenerateTopItems; admin: reflection
    requests_per_s = 500                     # absent: as often as it likes
    burst = 100                              # at once, after a while without; absent: a second's worth

Without a file everybody may do everything. The file is read again when it changes.
"""

from __future__ import annotations

import hashlib
import logging
import time
import tomllib
from collections.abc import Callable, Iterable
from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from baguni.domain.errors import BaguniError, InvalidInputError

log = logging.getLogger(__name__)
BEARER = "bearer "


class UnauthenticatedError(BaguniError):
    """Raised for a caller without a token, or with an unknown one."""


class ForbiddenError(BaguniError):
    """Raised for a known caller that may not call this method."""


class RateLimitedError(BaguniError):
    """Raised for a caller that exceeds its rate."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Permission(StrEnum):
    """The methods and the rate of a caller."""

    ONLINE = "online"
    BULK = "bulk"
    ADMIN = "admin"


class Caller(BaseModel):
    """An entry of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    token_sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    certificate_names: tuple[str, ...] = ()
    permissions: frozenset[Permission] = Field(min_length=1)
    requests_per_s: float | None = Field(default=None, gt=0)
    burst: float | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _can_be_recognised(self) -> Caller:
        if self.token_sha256 is None and not self.certificate_names:
            raise ValueError("has neither token_sha256 nor certificate_names, expected one of them")
        return self


class TokenBucket:
    """`per_s` requests a second in the long run, `burst` at once. `clock` is monotonic, in seconds."""

    def __init__(self, per_s: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s, self._burst, self._clock = per_s, burst, clock
        self._tokens, self._filled = burst, clock()

    def take(self) -> float:
        """0 if one more request is within the rate, else after how many seconds one will be."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._filled) * self._per_s)
        self._filled = now
        if self._tokens < 1:
            return (1 - self._tokens) / self._per_s
        self._tokens -= 1
        return 0.0


class Callers:
    """Everybody in the file. `share`: which part of each rate is this process's."""

    def __init__(self, path: Path | None, share: float = 1.0) -> None:
        self._path, self._share = path, share
        self._changed_ns = 0
        self._by_token: dict[str, tuple[str, Caller]] = {}
        self._by_certificate: dict[str, tuple[str, Caller]] = {}
        self._buckets: dict[str, TokenBucket] = {}
        if path is not None:
            self._read(path)

    @property
    def is_open(self) -> bool:
        """Return whether everybody may call everything."""
        return self._path is None

    def admit(self, authorization: str, certificate_names: Iterable[str], permission: Permission) -> str:
        """Return the caller's name. Raises UnauthenticatedError, ForbiddenError or RateLimitedError."""
        if self.is_open:
            return ""
        name, caller = self._recognise(authorization, certificate_names)
        if permission not in caller.permissions:
            has = ", ".join(sorted(caller.permissions))
            raise ForbiddenError(f"caller {name} may not do this: it needs the permission {permission}, and has {has}")
        bucket = self._buckets.get(name)
        if bucket is not None and (wait_s := bucket.take()) > 0:
            raise RateLimitedError(f"caller {name} asks more often than its {caller.requests_per_s:g} a second", wait_s)
        return name

    def reload(self) -> None:
        """Read the file again if it has changed. One that cannot be read changes nothing."""
        if self._path is None:
            return
        try:
            if self._path.stat().st_mtime_ns != self._changed_ns:
                self._read(self._path)
                log.info("callers read again count=%d", len(set(self._names())))
        except (OSError, InvalidInputError) as error:
            log.error("callers stay as they were: %s", error)

    def _recognise(self, authorization: str, certificate_names: Iterable[str]) -> tuple[str, Caller]:
        if authorization[: len(BEARER)].lower() == BEARER:
            # Looked up by its hash: how long that takes says nothing of the tokens.
            known = self._by_token.get(token_hash(authorization[len(BEARER) :]))
            if known is None:
                raise UnauthenticatedError("the bearer token is not known")
            return known
        for name in certificate_names:
            if name in self._by_certificate:
                return self._by_certificate[name]
        raise UnauthenticatedError("expected the metadata `authorization: Bearer TOKEN`, or a known client certificate")

    def _read(self, path: Path) -> None:
        changed_ns = path.stat().st_mtime_ns if path.exists() else 0  # before it is read: a change since is found
        callers = read_callers(path)
        self._changed_ns = changed_ns
        self._by_token = {c.token_sha256: (name, c) for name, c in callers.items() if c.token_sha256}
        self._by_certificate = {owned: (name, c) for name, c in callers.items() for owned in c.certificate_names}
        limited = {name: c for name, c in callers.items() if c.requests_per_s}
        self._buckets = {name: self._bucket(caller) for name, caller in limited.items()}

    def _bucket(self, caller: Caller) -> TokenBucket:
        per_s = (caller.requests_per_s or 1.0) * self._share
        return TokenBucket(per_s, max(1.0, (caller.burst or caller.requests_per_s or 1.0) * self._share))

    def _names(self) -> list[str]:
        return [name for known in (self._by_token, self._by_certificate) for name, _ in known.values()]


def read_callers(path: Path) -> dict[str, Caller]:
    """Return the file's callers by name. Raises InvalidInputError that names what is wrong."""
    try:
        callers = TypeAdapter(dict[str, Caller]).validate_python(tomllib.loads(path.read_text()))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidInputError(f"callers {path}: {error}", "callers") from error
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_url=False))
        raise InvalidInputError(f"callers {path}: {problems}", "callers") from error
    owners: dict[str, str] = {}
    for name, caller in callers.items():
        for mark in filter(None, (caller.token_sha256, *caller.certificate_names)):
            if mark in owners:
                raise InvalidInputError(f"callers {path}: {owners[mark]} and {name} share {mark[:12]}", "callers")
            owners[mark] = name
    return callers


def token_hash(token: str) -> str:
    """Return the form of a token in the file."""
    return hashlib.sha256(token.encode()).hexdigest()
