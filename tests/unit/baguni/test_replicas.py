"""Which servers a Triton's address stands for."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from baguni.errors import UnavailableError
from baguni.inference import replicas

V4, V6 = socket.AF_INET, socket.AF_INET6


def resolve(monkeypatch: pytest.MonkeyPatch, *found: tuple[int, str]) -> None:
    """A name server's answer, as the standard library gives it; a headless service's name is in none here."""
    answer: list[tuple[Any, ...]] = [(family, socket.SOCK_STREAM, 6, "", (address, 8001)) for family, address in found]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answer)


def test_every_address_of_a_name_is_a_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve(monkeypatch, (V4, "10.0.0.9"), (V4, "10.0.0.3"))
    assert replicas("triton:8001") == ["10.0.0.3:8001", "10.0.0.9:8001"]


def test_a_host_with_addresses_of_both_families_is_one_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve(monkeypatch, (V6, "::1"), (V4, "127.0.0.1"))
    assert replicas("localhost:8001") == ["127.0.0.1:8001"]


def test_a_cluster_may_have_the_newer_family_only(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve(monkeypatch, (V6, "fd00::7"))
    assert replicas("triton:8001") == ["[fd00::7]:8001"]


def test_an_address_stands_for_itself() -> None:
    assert replicas("127.0.0.1:7451") == ["127.0.0.1:7451"]


def test_a_name_that_nobody_knows_is_named() -> None:
    with pytest.raises(UnavailableError, match=r"no-such-triton\.invalid:8001"):
        replicas("no-such-triton.invalid:8001")
