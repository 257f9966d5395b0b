"""Where Prometheus reads what a process tells, and how names that come from outside become labels."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, start_http_server

from baguni.errors import UnavailableError

OTHER = "other"


def expose(registry: CollectorRegistry, address: str) -> None:
    """Let Prometheus read a registry at HOST:PORT; nowhere if that is empty. Raises UnavailableError if the port is taken."""
    if not address:
        return
    host, _, port = address.rpartition(":")
    try:
        start_http_server(int(port), host, registry)
    except (OSError, ValueError) as error:
        raise UnavailableError("metrics", f"cannot listen on {address!r}, expected HOST:PORT: {error}") from error


class BoundedNames:
    """Names that have no end otherwise, as the values of a label: the first so many as they are, OTHER beyond."""

    def __init__(self, most: int) -> None:
        self._most, self._seen = most, {OTHER}

    def __call__(self, name: str) -> str:
        """The label's value."""
        if name not in self._seen:
            if len(self._seen) > self._most:
                return OTHER
            self._seen.add(name)
        return name
