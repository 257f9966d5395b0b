"""Metrics and probes are answered whatever other connections do, and none is kept for ever."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from typing import Any
from urllib.request import urlopen
from wsgiref.simple_server import WSGIServer

import pytest
from prometheus_client import CollectorRegistry, Counter

from baguni.domain.errors import UnavailableError
from baguni.exposition import expose
from baguni.http_server import Limits, serve_http
from deploy.local.settings import free_port
from tests.waiting import WAIT_S, eventually

HALVES = [
    b"",
    b"G",
    b"GET /metrics",
    b"GET /metrics HTTP/1.1\r\n",
    b"GET /metrics HTTP/1.1\r\nHost: a\r\nX",
    b"\x16\x03\x01",
]
FOREVER = Limits(max_connections=3, silence_s=3_600)
SHORT = Limits(max_connections=50, silence_s=0.2)
Serve = Callable[..., WSGIServer]


@pytest.fixture
def serve() -> Iterator[Serve]:
    with ExitStack() as stack:

        def start(limits: Limits, application: Any = None, host: str = "127.0.0.1") -> WSGIServer:
            server = stack.enter_context(serve_http(application or answer, host, 0, limits))
            stack.callback(server.shutdown)
            return server

        yield start


def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    start_response("200 OK", [])
    return [b"x" * int(environ["QUERY_STRING"] or 1)]


def ask(port: int) -> bytes:
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=WAIT_S) as reply:
        return bytes(reply.read())


def half_open(stack: ExitStack, port: int, sent: bytes) -> socket.socket:
    connection = stack.enter_context(closing(socket.create_connection(("127.0.0.1", port), timeout=WAIT_S)))
    connection.sendall(sent)
    return connection


def is_closed(connection: socket.socket) -> bool:
    with suppress(ConnectionError):
        return connection.recv(1) == b""
    return True


def is_answered_or_closed(connection: socket.socket) -> bool:
    with suppress(ConnectionError):
        return connection.recv(1) in (b"H", b"")
    return True


@pytest.mark.parametrize("sent", HALVES)
def test_connections_that_say_no_more_are_closed(serve: Serve, sent: bytes) -> None:
    """Each kept a thread and a descriptor for ever."""
    before = threading.active_count()
    port = serve(SHORT).server_port
    with ExitStack() as stack:
        silent = [half_open(stack, port, sent) for _ in range(8)]
        assert ask(port) == b"x"
        assert all(is_closed(connection) for connection in silent)
    eventually(lambda: threading.active_count() <= before + 1)  # the one that accepts


@pytest.mark.parametrize("sent", HALVES)
def test_a_crowd_of_silent_connections_delays_nobody(serve: Serve, sent: bytes) -> None:
    before = threading.active_count()
    port = serve(FOREVER).server_port
    with ExitStack() as stack:
        silent = [half_open(stack, port, sent) for _ in range(10)]
        for _ in range(5):
            assert ask(port) == b"x"
        assert all(is_closed(connection) for connection in silent[:8])
        assert threading.active_count() <= before + 1 + FOREVER.max_connections


def test_connections_that_send_a_byte_now_and_then_delay_nobody(serve: Serve) -> None:
    """No byte is late, so that silence alone would never end them."""
    port = serve(Limits(max_connections=3, silence_s=3_600)).server_port
    with ExitStack() as stack:
        slow = [half_open(stack, port, b"GET /metr") for _ in range(3)]
        for _ in range(3):
            for connection in slow:
                with suppress(ConnectionError):
                    connection.sendall(b"i")
            assert ask(port) == b"x"


def test_a_connection_that_does_not_read_its_answer_is_closed(serve: Serve) -> None:
    before = threading.active_count()
    port = serve(SHORT).server_port
    with ExitStack() as stack:
        half_open(stack, port, b"GET /?100000000 HTTP/1.1\r\n\r\n")
        eventually(lambda: threading.active_count() == before + 1, seen=threading.active_count)


def test_no_more_than_the_limit_are_answered_at_a_time(serve: Serve) -> None:
    running, most, lock = 0, 0, threading.Lock()

    def slow(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.05)
        with lock:
            running -= 1
        return answer(environ, start_response)

    port = serve(Limits(max_connections=4, silence_s=WAIT_S), slow).server_port
    with ExitStack() as stack:
        asked = [half_open(stack, port, b"GET / HTTP/1.1\r\n\r\n") for _ in range(20)]
        assert all(is_answered_or_closed(connection) for connection in asked)
    assert most <= 4


def test_an_address_that_is_none_or_taken_is_named() -> None:
    registry = CollectorRegistry()
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        for address in (
            f"127.0.0.1:{taken.getsockname()[1]}",
            "nowhere",
            "127.0.0.1:x",
            "127.0.0.1:99999",
            ":9",
            "a b:9",
        ):
            with pytest.raises(UnavailableError, match="expected HOST:PORT"):
                expose(registry, address)


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "::1"])
def test_what_a_process_counts_can_be_read_beside_silent_connections(host: str) -> None:
    registry, port = CollectorRegistry(), free_port()
    Counter("baguni_things", "x", registry=registry).inc(3)
    expose(registry, f"{host}:{port}", SHORT)
    with ExitStack() as stack:
        address = (host.strip("[]"), port)
        silent = [stack.enter_context(closing(socket.create_connection(address, WAIT_S))) for _ in range(60)]
        url = f"http://{'[::1]' if ':' in host else host}:{port}/metrics"
        with urlopen(url, timeout=WAIT_S) as reply:
            assert b"baguni_things_total 3.0" in reply.read()
        assert all(is_closed(connection) for connection in silent)
