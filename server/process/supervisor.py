"""Start the processes of one gateway, restart those that end, stop them together; and serve their metrics and health over HTTP
on one port:

    /metrics         the sum over all processes, for Prometheus
    /livez           200 while the supervisor runs
    /readyz          200 while a process answers page views; /readyz/bulk the same for bulk
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIServer

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry, make_wsgi_app, multiprocess
from prometheus_client.mmap_dict import MmapedDict

from baguni.domain.errors import InvalidInputError, UnavailableError
from baguni.domain.signed_tokens import new_key
from baguni.http_server import serve_http
from server.process.listening import split_address
from server.settings import ServerSettings

log = logging.getLogger("server.process.supervisor")
CHECK_S, HEARTBEAT_S = 0.2, 1.0
UNREACHABLE = "UNREACHABLE"
HEALTH_TIMEOUT_S = 1.0
FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 5.0  # before a process is started again; each end doubles it
SOUND_S = 30.0  # one that ran that long begins with the first wait again
LONGEST_SOCKET = 107  # bytes of a Unix socket's path, by the kernel
KILL_AFTER_S = 5.0  # beyond the drain


@dataclass
class Process:
    """One process; `due`: when to start it, if it does not run. Times are those of the monotonic clock."""

    name: str
    running: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    wait_s: float = FIRST_WAIT_S
    due: float = 0.0
    seen: float = 0.0  # when it last answered; 0 until it first has

    def silent_s(self, now: float) -> float:
        """Return for how long it has not answered: since it last did, or since it was started."""
        return now - (self.seen or self.started)


class Supervisor:
    """Keep the processes of the settings running."""

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._processes = [Process(name) for name in (*settings.bulk_names, *settings.online_names)]
        self._counters = settings.run_dir.resolve() / "metrics"
        self._scraping = threading.Lock()
        self._token_keys = settings.token_keys.get_secret_value() or _random_key()

    def run(self, stopping: threading.Event) -> None:
        """Run until told to stop; then let every process end what it has begun. Raises UnavailableError if the metrics port is
        taken."""
        self._prepare()
        exporter = self._export()
        for process in self._processes:
            threading.Thread(target=self._listen, args=(process, stopping), name=process.name, daemon=True).start()
        try:
            while not stopping.is_set():
                for process in self._processes:
                    self._look_after(process)
                stopping.wait(CHECK_S)
        finally:
            self._stop()
            exporter.shutdown()
            exporter.server_close()
            log.info("stopped")

    def _listen(self, process: Process, stopping: threading.Event) -> None:
        """Ask a process for its health again and again: one that hangs does not answer."""
        while not stopping.wait(HEARTBEAT_S):
            try:
                self._ask(process)
            except Exception:  # a healthy process would be killed for a heartbeat that ended
                log.exception("asking for health failed unforeseen process=%s", process.name)

    def _ask(self, process: Process) -> str:
        """Return the health of a process, and note that it answered."""
        running = process.running
        health = _health(self._settings.socket_of(process.name))
        if health != UNREACHABLE and running is process.running:  # not of one that was replaced meanwhile
            process.seen = time.monotonic()
        return health

    def states(self) -> dict[str, str]:
        """Process name → SERVING, NOT_SERVING or UNREACHABLE."""
        return {process.name: self._ask(process) for process in self._processes}

    def _prepare(self) -> None:
        run_dir = self._settings.run_dir
        for process in self._processes:
            path = self._settings.socket_of(process.name).removeprefix("unix:")
            if len(path.encode()) > LONGEST_SOCKET:
                raise InvalidInputError(
                    f"run_dir: {path} has more than {LONGEST_SOCKET} bytes, expected less", "run_dir"
                )
        run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        run_dir.chmod(0o700)
        shutil.rmtree(self._counters, ignore_errors=True)
        self._counters.mkdir()

    def _look_after(self, process: Process) -> None:
        now = time.monotonic()
        if process.running is None:
            if now >= process.due:
                self._start(process)
            return
        code = process.running.poll()
        if code is None:
            silent_s = process.silent_s(now)
            if silent_s <= (self._settings.hang_s if process.seen else self._settings.start_s):
                return
            log.error("killed process=%s: it has not answered for %.1f s", process.name, silent_s)
            process.running.kill()
            code = process.running.wait()
        self._add_counts_of(process.running.pid)
        process.wait_s = FIRST_WAIT_S if now - process.started > SOUND_S else min(2 * process.wait_s, LONGEST_WAIT_S)
        process.running, process.due = None, now + process.wait_s
        log.error("ended process=%s code=%d again_in_s=%.1f", process.name, code, process.wait_s)

    def _add_counts_of(self, pid: int) -> None:
        """Add the counts of a process that has ended to those of all before it: a file for each would fill the folder."""
        with self._scraping:
            multiprocess.mark_process_dead(pid, str(self._counters))  # type: ignore[no-untyped-call]
            for kind in ("counter", "histogram"):
                ended = self._counters / f"{kind}_{pid}.db"
                if not ended.is_file():
                    continue
                try:
                    _add_counts(ended, self._counters / f"{kind}_ended.db")
                except Exception as error:  # killed while the file grew, or no descriptor is left
                    log.warning("counts lost file=%s error=%r", ended.name, error)
                ended.unlink(missing_ok=True)

    def _start(self, process: Process) -> None:
        environment = {
            **os.environ,
            "PROMETHEUS_MULTIPROC_DIR": str(self._counters),
            "BAGUNI_TOKEN_KEYS": self._token_keys,
        }
        command = [sys.executable, "-m", "server.worker", process.name]
        now = time.monotonic()
        try:
            process.running = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment)
        except OSError as error:  # no memory, no descriptor, too many processes: the others go on serving
            process.wait_s = min(2 * process.wait_s, LONGEST_WAIT_S)
            process.due = now + process.wait_s
            log.error("not started process=%s error=%s again_in_s=%.1f", process.name, error, process.wait_s)
            return
        process.started, process.seen = now, 0.0
        log.info("started process=%s pid=%d", process.name, process.running.pid)

    def _stop(self) -> None:
        running = [process.running for process in self._processes if process.running is not None]
        for each in running:
            each.terminate()
        deadline = time.monotonic() + self._settings.drain_s + KILL_AFTER_S
        for each in running:
            try:
                each.wait(max(deadline - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                log.error("killed pid=%d: it did not end", each.pid)
                each.kill()
                each.wait()

    def _export(self) -> WSGIServer:
        host, port = split_address(self._settings.metrics_address)
        try:
            return serve_http(self._application(), host, port)
        except OSError as error:
            raise UnavailableError("gateway", f"cannot serve metrics on {host}:{port}: {error}") from error

    def _application(self) -> Callable[..., Iterable[bytes]]:
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry, str(self._counters))  # type: ignore[no-untyped-call]
        metrics = make_wsgi_app(registry)
        ready_for = {"/readyz": self._settings.online_names, "/readyz/bulk": self._settings.bulk_names}

        def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            path = environ.get("PATH_INFO", "")
            if path == "/metrics":
                with self._scraping:
                    return list(metrics(environ, start_response))
            if path == "/livez":
                return _reply(start_response, "200 OK", {"live": True})
            if path not in ready_for:
                return _reply(start_response, "404 Not Found", {"expected": ["/metrics", "/livez", *ready_for]})
            states = self.states()
            needed = ready_for[path] or ready_for["/readyz"]
            is_ready = any(states[name] == "SERVING" for name in needed)
            return _reply(start_response, "200 OK" if is_ready else "503 Service Unavailable", states)

        return answer


def _add_counts(ended: Path, total: Path) -> None:
    """Add the values of one file of prometheus_client to those of another, which is made if it is not there."""
    values = list(MmapedDict.read_all_values_from_file(ended))  # type: ignore[no-untyped-call]
    with closing(MmapedDict(str(total))) as sums:  # type: ignore[no-untyped-call]
        for key, value, time_s, _ in values:
            sums.write_value(key, sums.read_value(key)[0] + value, time_s)  # type: ignore[no-untyped-call]


def _random_key() -> str:
    """Return a key for the processes of this gateway, and warn."""
    log.warning(
        "token_keys is not set: tokens are valid in this gateway alone, until it ends, and no click can be attributed to its "
        "page. Set BAGUNI_TOKEN_KEYS to one random text for gateways and user consumers"
    )
    return new_key()


def _reply(start_response: Callable[..., Any], status: str, content: object) -> Iterable[bytes]:
    start_response(status, [("Content-Type", "application/json")])
    return [json.dumps(content).encode() + b"\n"]


def _health(socket: str) -> str:
    with grpc.insecure_channel(socket, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        try:
            reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=HEALTH_TIMEOUT_S)
        except grpc.RpcError:
            return UNREACHABLE
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status))
