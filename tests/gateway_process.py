"""A gateway of a test's own, over servers that others share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from baguni.settings import Endpoints
from deploy.local.settings import free_port
from tests.waiting import COMMAND_S, eventually


@dataclass(frozen=True)
class GatewayProcess:
    """The supervisor's process, and where it listens."""

    process: psutil.Process
    address: str
    metrics_address: str
    log: Path

    def workers(self) -> dict[str, psutil.Process]:
        """Name → process."""
        found: dict[str, psutil.Process] = {}
        for child in self.process.children():
            with suppress(psutil.Error):  # it has ended meanwhile
                words = child.cmdline()
                if words and child.status() != psutil.STATUS_ZOMBIE:  # one that has just begun has none
                    found[words[-1]] = child
        return found

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of the supervisor's HTTP port."""
        try:
            with urllib.request.urlopen(f"http://{self.metrics_address}{path}", timeout=10) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    def states(self) -> dict[str, str]:
        """Name → health."""
        body = self.get("/readyz")[1]
        return dict(json.loads(body)) if body.startswith("{") else {}

    def wait_until_ready(self) -> None:
        """Return when every process serves."""

        def all_serve() -> bool:
            assert self.process.is_running(), self.log.read_text()
            return set(self.states().values()) == {"SERVING"}

        eventually(
            all_serve, "every process of the gateway serves", lambda: (self.states(), self.log.read_text()[-3000:])
        )


def environment(endpoints: Endpoints, folder: Path, **settings: object) -> dict[str, str]:
    """The variables of a gateway over these servers."""
    port, metrics_port = free_port(), free_port()
    chosen = {
        "gateway_address": f"127.0.0.1:{port}",
        "metrics_address": f"127.0.0.1:{metrics_port}",
        "run_dir": folder / "run",
        **settings,
    }
    own = {f"BAGUNI_{name.upper()}": str(value) for name, value in chosen.items()}
    return {**os.environ, **endpoints.environment(), **own}


@contextmanager
def gateway_process(endpoints: Endpoints, folder: Path, **settings: object) -> Iterator[GatewayProcess]:
    """A gateway that serves; stopped at the end. `settings` are those of ServerSettings; upper-case names stay as they are."""
    plain = {name: value for name, value in settings.items() if name.islower()}
    variables = environment(endpoints, folder, **plain)
    variables.update({name: str(value) for name, value in settings.items() if name.isupper()})
    log = folder / "gateway.log"
    with log.open("wb") as output:
        process = psutil.Popen([sys.executable, "-m", "server"], env=variables, stdout=output, stderr=subprocess.STDOUT)
    started = GatewayProcess(process, variables["BAGUNI_GATEWAY_ADDRESS"], variables["BAGUNI_METRICS_ADDRESS"], log)
    try:
        started.wait_until_ready()
        yield started
    finally:
        workers = []
        with suppress(psutil.NoSuchProcess):  # where the test has ended it
            workers = process.children()
            process.terminate()
            process.wait(COMMAND_S)
        psutil.wait_procs(workers, 10)
