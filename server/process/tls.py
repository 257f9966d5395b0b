"""The gateway's certificates, read again when they change: a renewed one needs no restart."""

from __future__ import annotations

import logging
from pathlib import Path

import grpc

from baguni.domain.errors import InvalidInputError
from server.settings import ServerSettings

log = logging.getLogger(__name__)


class Certificates:
    """Key, certificate chain and, for mutual TLS, the authority that signs clients' certificates, as PEM files."""

    def __init__(self, key: Path, chain: Path, client_authority: Path | None) -> None:
        self._files = [file for file in (key, chain, client_authority) if file is not None]
        self._is_mutual = client_authority is not None
        self._changed = self._changes()
        self._current = self._read()

    def credentials(self) -> grpc.ServerCredentials:
        """Return credentials for a secure port; each handshake uses the files as they are then."""
        return grpc.dynamic_ssl_server_credentials(
            self._current,
            self._changed_configuration,  # type: ignore[arg-type]
            require_client_authentication=self._is_mutual,
        )

    def _changed_configuration(self) -> grpc.ServerCertificateConfiguration | None:
        """gRPC asks at each handshake; None: as before."""
        try:
            changed = self._changes()
            if changed == self._changed:
                return None
            self._current, self._changed = self._read(), changed
        except InvalidInputError as error:
            log.error("certificates stay as they were: %s", error)
            return None
        log.info("certificates read again")
        return self._current

    def _changes(self) -> list[int]:
        try:
            return [file.stat().st_mtime_ns for file in self._files]
        except OSError as error:
            raise InvalidInputError(f"TLS file: {error}", "tls") from error

    def _read(self) -> grpc.ServerCertificateConfiguration:
        try:
            key, chain, *authority = [file.read_bytes() for file in self._files]
        except OSError as error:
            raise InvalidInputError(f"TLS file: {error}", "tls") from error
        for content, file, mark in ((key, self._files[0], b"PRIVATE KEY"), (chain, self._files[1], b"CERTIFICATE")):
            if mark not in content:
                raise InvalidInputError(f"{file} holds no PEM {mark.decode().lower()}", "tls")
        return grpc.ssl_server_certificate_configuration([(key, chain)], authority[0] if authority else None)


def certificates(settings: ServerSettings) -> Certificates | None:
    """Those of the settings; None for plain text. Raises InvalidInputError for half of them, or for files that are none."""
    key, chain, authority = settings.tls_key, settings.tls_certificate, settings.tls_client_ca
    if key is None and chain is None and authority is None:
        return None
    if key is None or chain is None:
        missing = "BAGUNI_TLS_KEY" if key is None else "BAGUNI_TLS_CERTIFICATE"
        raise InvalidInputError(f"{missing} is not set, expected a PEM file: TLS needs key and certificate", "tls")
    return Certificates(key, chain, authority)
