"""Check whether the gateway may listen on its address."""

from __future__ import annotations

import ipaddress
import socket

from baguni.domain.errors import InvalidInputError, UnavailableError


def check_address(address: str, is_guarded: bool) -> None:
    """Raise InvalidInputError for what is no "host:port", or is open to other machines while nobody is asked who they are;
    UnavailableError if the port is taken: its owner and we would both listen, each for some of the callers."""
    host, port = split_address(address)
    if not is_guarded and not _is_of_this_machine(host):
        raise InvalidInputError(
            f"gateway_address {address} can be reached from other machines and anybody could call it: name the callers with "
            "BAGUNI_CALLERS, or set BAGUNI_ALLOW_ANONYMOUS=true where something else guards it",
            "gateway_address",
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that end do not matter
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UnavailableError("gateway", f"cannot listen on {address}: {error.strerror}") from error


def split_address(address: str) -> tuple[str, int]:
    """Host and port. Raises InvalidInputError."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65_535:
        raise InvalidInputError(f"address is {address!r}, expected host:port, such as 127.0.0.1:7450", "address")
    return host.strip("[]"), int(port)


def _is_of_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
