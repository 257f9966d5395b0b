"""Where Prometheus reads what a process tells."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, start_http_server

from baguni.errors import UnavailableError


def expose(registry: CollectorRegistry, address: str) -> None:
    """Let Prometheus read a registry at HOST:PORT; nowhere if that is empty. Raises UnavailableError if the port is taken."""
    if not address:
        return
    host, _, port = address.rpartition(":")
    try:
        start_http_server(int(port), host, registry)
    except (OSError, ValueError) as error:
        raise UnavailableError("metrics", f"cannot listen on {address!r}, expected HOST:PORT: {error}") from error
