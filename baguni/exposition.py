"""Where Prometheus reads what a process tells, and how names that come from outside become labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, make_wsgi_app

from baguni.domain.errors import UnavailableError
from baguni.http_server import Limits, serve_http

OTHER = "other"
MAX_LABEL = 256  # characters
FREQUENT, COUNTED = 20, 1_000  # times that a name comes before it is frequent; names that are counted at a time


def expose(registry: CollectorRegistry, address: str, limits: Limits | None = None) -> None:
    """Let Prometheus read a registry at HOST:PORT; nowhere if that is empty. Raises UnavailableError if the port is taken."""
    if not address:
        return
    host, _, port = address.rpartition(":")
    try:
        serve_http(make_wsgi_app(registry), host.strip("[]"), int(port), limits)
    except (OSError, ValueError) as error:
        raise UnavailableError("metrics", f"cannot listen on {address!r}, expected HOST:PORT: {error}") from error


def label(name: str) -> str:
    """Return a name from outside as the value of a label: short, and one that Prometheus' text format can hold, which has no
    lone surrogates."""
    return name[:MAX_LABEL].encode(errors="replace").decode()


class BoundedNames:
    """Names from outside as the values of a label: at most `most` of them as they are, OTHER beyond.

    Configured names always count. Half of the places are for the first names, the others for names that are frequent: made-up
    ones that come once each displace nobody. How often names come is estimated in bounded memory (Misra & Gries 1982).
    """

    def __init__(self, most: int, configured: Iterable[str] = ()) -> None:
        self._most, self._seen = most, {OTHER, *configured}
        self._counts: Counter[str] = Counter()

    def __call__(self, name: str) -> str:
        """The label's value."""
        name = label(name)
        if name in self._seen:
            return name
        room = self._most + 1 - len(self._seen)  # OTHER is no name
        if room > self._most // 2 or (room > 0 and self._is_frequent(name)):
            self._seen.add(name)
            return name
        return OTHER

    def _is_frequent(self, name: str) -> bool:
        self._counts[name] += 1
        if self._counts[name] >= FREQUENT:
            del self._counts[name]
            return True
        if len(self._counts) > COUNTED:
            self._counts = Counter({each: count - 1 for each, count in self._counts.items() if count > 1})
        return False
