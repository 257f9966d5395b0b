"""How gRPC connections to the servers behave: one that broke is found out, a server that comes back is found soon, and of
several servers behind one address each gets its share.

An address is HOST:PORT, whose name may have several addresses (a headless service of Kubernetes has), or "ipv4:A:PORT,B:PORT".
"""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence

from baguni.domain.errors import UnavailableError

RECONNECT = {"grpc.initial_reconnect_backoff_ms": 100, "grpc.max_reconnect_backoff_ms": 1_000}
"""gRPC alone waits ever longer: up to two minutes for a server that was away that long."""

# A connection that a router has forgotten is found out.
KEEPALIVE = {"grpc.keepalive_time_ms": 30_000, "grpc.keepalive_timeout_ms": 5_000}
UNLIMITED = {"grpc.max_send_message_length": -1, "grpc.max_receive_message_length": -1}


def balanced(
    service: str,
    attempts: int,
    backoff_s: tuple[float, float] = (0.01, 0.05),
    retried: Sequence[str] = ("UNAVAILABLE",),
    **more: object,
) -> dict[str, str]:
    """Calls go to each server in turn; one that finds its server gone is tried with another. Only for a service whose calls may
    be made twice; `service`: its full name; `backoff_s`: the first and the longest; `retried`: status codes; `more` of gRPC's
    service config."""
    first_s, longest_s = backoff_s
    retry = {
        "maxAttempts": attempts,
        "initialBackoff": f"{first_s}s",
        "maxBackoff": f"{longest_s}s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": list(retried),
    }
    config = {
        "loadBalancingConfig": [{"round_robin": {}}],
        "methodConfig": [{"name": [{"service": service}], "retryPolicy": retry}],
        **more,
    }
    return {"grpc.service_config": json.dumps(config)}


def replicas(address: str) -> list[str]:
    """The servers behind an address, each with one of its own. Raises UnavailableError for a name that nobody knows."""
    if address.startswith("ipv4:"):
        return address.removeprefix("ipv4:").split(",")
    host, _, port = address.removeprefix("dns:///").rpartition(":")
    try:
        found = socket.getaddrinfo(host, port, socket.AF_INET, socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise UnavailableError(address, f"the name has no address, expected HOST:PORT: {error}") from error
    addresses = sorted({f"{info[4][0]}:{port}" for info in found})
    return addresses if len(addresses) > 1 else [address]
