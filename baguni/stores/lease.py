"""One process at a time changes what is served: a lease in Redis, with a number that grows from holder to holder.

A holder that was cut off from Redis loses the lease after LEASE_S; what it writes then carries an older number, and is refused.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import cast

import redis

from baguni.domain.errors import BaguniError, UnavailableError
from baguni.stores.redis_client import connect, lua, shared_redis_errors

KEY = "baguni:lease:serving"
LEASE_S, RENEW_S, LOOK_S = 30.0, 5.0, 0.5
WAIT_S = 1_800.0  # for another holder: an activation of a million items takes a quarter of an hour

_TAKE = lua("baguni.stores", "take_lease")
_KEEP = lua("baguni.stores", "keep_lease")


class LeaseError(BaguniError):
    """Another process changes what is served, or has begun to since."""


class Lease:
    """A held lease. `number` is larger than that of every holder before."""

    def __init__(self, client: redis.Redis, number: int, holder: str) -> None:
        self.number = number
        self._client, self._value = client, f"{number} {holder}"
        self._keep = client.register_script(_KEEP)
        self._sure_until = time.monotonic() + LEASE_S

    def check(self) -> None:
        """Raise LeaseError unless the lease is certainly still held."""
        if time.monotonic() > self._sure_until:
            raise LeaseError(f"the lease was lost: Redis was not reached for {LEASE_S:g} s; nothing more was changed")

    def renew(self) -> None:
        """Hold it for another LEASE_S. Raises LeaseError if another process holds it by now."""
        started = time.monotonic()
        with shared_redis_errors():
            is_held = self._keep(keys=[KEY], args=[self._value, int(LEASE_S * 1000)])
        if not is_held:
            self._sure_until = 0.0
            raise LeaseError("the lease was lost to another process; nothing more was changed")
        self._sure_until = started + LEASE_S

    def give_up(self) -> None:
        """Let the next one have it."""
        with suppress(UnavailableError), shared_redis_errors():
            self._keep(keys=[KEY], args=[self._value, 0])


@contextmanager
def held(
    redis_url: str, what: str, on_wait: Callable[[str], None] = lambda holder: None, wait_s: float = WAIT_S
) -> Iterator[Lease]:
    """Hold the lease while the body runs; wait for another holder, who is named to `on_wait`. `what` is being done, for the one
    who waits. Raises LeaseError if it is not free within `wait_s`, UnavailableError if Redis does not answer."""
    holder = f"{what}, by process {os.getpid()} of {socket.gethostname()}"
    client = connect(redis_url)
    stopping = threading.Event()
    try:
        lease = _taken(client, holder, on_wait, wait_s)
        thread = threading.Thread(target=_renew, args=(lease, stopping), name="lease", daemon=True)
        thread.start()
        try:
            yield lease
        finally:
            stopping.set()
            thread.join()
            lease.give_up()
    finally:
        client.close()


def _taken(client: redis.Redis, holder: str, on_wait: Callable[[str], None], wait_s: float) -> Lease:
    take, deadline = client.register_script(_TAKE), time.monotonic() + wait_s
    while True:
        with shared_redis_errors():
            reply = cast("int | bytes", take(keys=[KEY, f"{KEY}:number"], args=[holder, int(LEASE_S * 1000)]))
        if isinstance(reply, int):
            return Lease(client, reply, holder)
        other = reply.decode(errors="replace").partition(" ")[2]
        if time.monotonic() > deadline:
            raise LeaseError(f"another process changes what is served: {other}; it has not ended within {wait_s:g} s")
        on_wait(f"wait for {other}")
        time.sleep(LOOK_S)


def _renew(lease: Lease, stopping: threading.Event) -> None:
    while not stopping.wait(RENEW_S):
        with suppress(UnavailableError):  # tried again, until it is over
            try:
                lease.renew()
            except LeaseError:
                return
