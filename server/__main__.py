"""`python -m server`: the gateway, until SIGTERM. It starts the processes that answer and speaks for all of them."""

from __future__ import annotations

import logging
import signal
import sys
import threading

from baguni.domain.errors import BaguniError
from server.edge.callers import Callers
from server.process.listening import check_address
from server.process.supervisor import Supervisor
from server.process.tls import certificates
from server.settings import ServerSettings
from server.telemetry.tracing import log_to_stderr

log = logging.getLogger("server")


def check(settings: ServerSettings) -> None:
    """Raise BaguniError for settings with which no process could serve, before any is started."""
    secured, callers = certificates(settings), Callers(settings.callers)
    check_address(settings.gateway_address, is_guarded=not callers.is_open or settings.allow_anonymous)
    if not callers.is_open and secured is None:
        log.warning(
            "bearer tokens are read in plain text: set BAGUNI_TLS_KEY and BAGUNI_TLS_CERTIFICATE, or let a proxy do it"
        )


def main() -> None:
    """Check the settings, start the processes, wait for the end."""
    settings, stopping = ServerSettings(), threading.Event()
    log_to_stderr(settings.log_format)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    try:
        check(settings)
        Supervisor(settings).run(stopping)
    except BaguniError as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main()
