"""An HTTP server for metrics and probes: a few small answers, each in a thread. It answers whatever other connections do: those
that send nothing, send half a request or never read their answer are closed.
"""

from __future__ import annotations

import logging
import socket
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

log = logging.getLogger(__name__)
MAX_PORT = 65_535

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
"""A WSGI application."""


@dataclass(frozen=True)
class Limits:
    """Connections that are open at a time, and seconds without a byte after which one is closed."""

    max_connections: int = 64
    silence_s: float = 10.0


def serve_http(application: Application, host: str, port: int, limits: Limits | None = None) -> WSGIServer:
    """Serve an application in a thread until `shutdown()` and `server_close()`. Raises OSError if it cannot listen there,
    ValueError for a port that is none."""
    if not 0 <= port <= MAX_PORT:
        raise ValueError(f"port is {port}, expected 0 to {MAX_PORT}")
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    server = _Server((host, port), family, limits or Limits())
    server.set_app(application)
    threading.Thread(target=server.serve_forever, name=f"http:{server.server_port}", daemon=True).start()
    return server


class _Server(ThreadingMixIn, WSGIServer):
    """Answer connections in threads. When all are taken, the oldest connection is closed: it is the one that hangs."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], family: socket.AddressFamily, limits: Limits) -> None:
        self.address_family, self._limits = family, limits
        self._room = threading.BoundedSemaphore(limits.max_connections)
        self._open: list[socket.socket] = []  # oldest first, without those that were told to end
        self._lock = threading.Lock()
        super().__init__(address, _Quiet)

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection, with a limit to its silence."""
        request, address = super().get_request()
        request.settimeout(self._limits.silence_s)
        return request, address

    def process_request(self, request: Any, client_address: Any) -> None:
        """Make room, then answer in a thread. Without room, because many are being answered, close the connection."""
        if not self._room.acquire(blocking=False):
            self._end_oldest()
            if not self._room.acquire(timeout=self._limits.silence_s):
                self.shutdown_request(request)
                return
        with self._lock:
            self._open.append(request)
        try:
            super().process_request(request, client_address)
        except BaseException:  # the machine has no thread left
            self._leave(request)
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, and make room."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._leave(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log what went wrong with a connection; nothing of one that was silent, or is gone."""
        if not isinstance(sys.exception(), OSError):
            log.exception("http connection failed client=%s", client_address)

    def _end_oldest(self) -> None:
        with self._lock:
            oldest = self._open.pop(0) if self._open else None
        if oldest is not None:
            with suppress(OSError):
                oldest.shutdown(socket.SHUT_RDWR)  # wakes its thread, which then closes it

    def _leave(self, request: Any) -> None:
        with self._lock, suppress(ValueError):
            self._open.remove(request)
        self._room.release()


class _Quiet(WSGIRequestHandler):
    """A handler without a line for each scrape."""

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""
