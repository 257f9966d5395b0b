"""Starting, watching and stopping the local stack. supervisord keeps the processes; this asks it to.

STATE/run/supervisord.conf, supervisord.pid, …   STATE/logs/<process>.log   STATE/redis, milvus, triton, releases
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
import xmlrpc.client
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from kafka import KafkaAdminClient
from kafka.admin import NewTopic
from kafka.errors import TopicAlreadyExistsError
from supervisor.xmlrpc import SupervisorTransport

from baguni.domain.errors import BaguniError, InvalidInputError, NotFoundError
from baguni.domain.events import DEAD_LETTER_TOPIC, DELETION_TOPIC, EXPOSURE_TOPIC, ITEM_TOPIC, USER_TOPICS
from baguni.domain.signed_tokens import new_key
from deploy.local.programs import Program, applications, port_is_free, servers
from deploy.local.settings import StackSettings

MARK = "BAGUNI_STACK_ROOT"  # in the environment of every process of a stack: how `stop` finds the last of them
LOG_LINES_SHOWN = 15
MAX_EXITS = 3  # of a process while it starts


@dataclass(frozen=True)
class ProcessStatus:
    """One line of `baguni status`."""

    name: str
    state: str
    pid: int
    uptime_s: float
    address: str
    log: Path


class LocalStack:
    """The processes of one state directory."""

    def __init__(self, settings: StackSettings) -> None:
        self.settings = settings
        self.run_dir, self.log_dir = settings.root / "run", settings.root / "logs"

    def start_servers(self, on_ready: Callable[[str], None] = lambda name: None) -> None:
        """Start Redis, broker, Milvus and Triton, wait until each is ready, and create the topics."""
        if not self.settings.servers_python.is_file():
            raise NotFoundError(f"{self.settings.servers_python} does not exist: run `make setup` first")
        if not self.is_up():
            self._check_ports()
            self._make_token_key()
            self._start_supervisor()
        self._start(servers(self.settings), on_ready)
        self._create_topics()

    def start_applications(self, on_ready: Callable[[str], None] = lambda name: None) -> None:
        """Start the gateway and the consumers; a release must be active."""
        for marker in self.run_dir.glob("*.ready"):
            marker.unlink()
        self._start(applications(self.settings), on_ready)

    def stop(self) -> None:
        """Stop everything; returns when no process of the stack is left, whatever had become of the supervisor."""
        if self.is_up():
            with contextlib.suppress(OSError, xmlrpc.client.Error):  # it is gone already: what is left is ended below
                self._stop_applications()
                self._call("shutdown")
            self._wait_until(lambda: not self._processes(), 30)
        for process in self._processes():
            process.kill()
        psutil.wait_procs(self._processes(), timeout=10)

    def is_up(self) -> bool:
        """Whether the supervisor answers."""
        try:
            return bool(self._call("getState")["statename"] == "RUNNING")
        except (OSError, xmlrpc.client.Error):
            return False

    def status(self) -> list[ProcessStatus]:
        """Every process, in starting order; empty when the stack is down."""
        if not self.is_up():
            return []
        addresses = {program.name: program.address for program in self._programs()}
        found: dict[str, Any] = {info["name"]: info for info in self._call("getAllProcessInfo")}
        return [
            ProcessStatus(
                name,
                str(found[name]["statename"]).lower(),
                int(found[name]["pid"]),
                found[name]["now"] - found[name]["start"] if found[name]["pid"] else 0,
                address,
                self.log_dir / f"{name}.log",
            )
            for name, address in addresses.items()
        ]

    def restart(self, name: str) -> None:
        """Stop one process and start it again, and wait until it is ready."""
        if self._state(name) in ("RUNNING", "STARTING"):
            self.stop_process(name)
        self._start([program for program in self._programs() if program.name == name], lambda _: None)

    def stop_process(self, name: str) -> None:
        """Stop one process and leave it stopped."""
        self._call("stopProcess", name)

    def _make_token_key(self) -> None:
        """Keep one key over restarts, so that pages and clicks of before go on."""
        file = self.settings.token_file
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch(mode=0o600)
            file.write_text(new_key())

    def _stop_applications(self) -> None:
        """Stop what asks the servers while these still answer: otherwise each waits for its timeouts before it ends."""
        names = [program.name for program in applications(self.settings)]
        running = [name for name in names if self._state(name) in ("RUNNING", "STARTING")]
        for name in running:
            self._call("stopProcess", name, False)
        self._wait_until(lambda: all(self._state(name) != "STOPPING" for name in running), 30)

    def _programs(self) -> list[Program]:
        return [*servers(self.settings), *applications(self.settings)]

    def _start(self, programs: Sequence[Program], on_ready: Callable[[str], None]) -> None:
        for program in programs:
            if self._state(program.name) not in ("RUNNING", "STARTING"):
                self._call("startProcess", program.name, False)
        waiting = list(programs)
        exits: dict[str, set[int]] = {program.name: set() for program in programs}  # when they happened
        deadline = time.monotonic() + self.settings.start_timeout_s
        while waiting:
            for program in list(waiting):
                info = self._call("getProcessInfo", program.name)
                state = str(info["statename"])
                if state == "EXITED":  # it is started again: its port may have been taken in the very moment
                    exits[program.name].add(int(info["stop"]))
                if state == "FATAL" or len(exits[program.name]) >= MAX_EXITS or time.monotonic() > deadline:
                    raise BaguniError(self._failure(program, state))
                if state == "RUNNING" and program.is_ready():
                    waiting.remove(program)
                    on_ready(program.name)
            time.sleep(0.1)

    def _state(self, name: str) -> str:
        return str(self._call("getProcessInfo", name)["statename"])

    def _failure(self, program: Program, state: str) -> str:
        log = self.log_dir / f"{program.name}.log"
        lines = log.read_text(errors="replace").splitlines()[-LOG_LINES_SHOWN:] if log.is_file() else []
        return "\n  ".join([f"{program.name} did not become ready (it is {state.lower()}); the end of {log}:", *lines])

    def _check_ports(self) -> None:
        for name, port in self.settings.ports.items():
            if not port_is_free(port):
                raise InvalidInputError(
                    f"port {port}, needed for {name.removesuffix('_port')}, is taken: choose another with "
                    f"BAGUNI_STACK_{name.upper()}=PORT, or see who has it with `ss -ltnp`",
                    name,
                )

    def _start_supervisor(self) -> None:
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self.log_dir.mkdir(parents=True, exist_ok=True)
        config = self.run_dir / "supervisord.conf"
        config.write_text(self._config())
        environment = {**os.environ, MARK: str(self.settings.root)}
        command = [sys.executable, "-W", "ignore", "-m", "supervisor.supervisord", "-c", str(config)]
        subprocess.run(command, env=environment, check=True, timeout=30)
        if not self._wait_until(self.is_up, 10):
            raise BaguniError(f"the supervisor did not start; see {self.log_dir / 'supervisord.log'}")

    def _config(self) -> str:
        sections = [
            f"[unix_http_server]\nfile={self._socket}\nchmod=0700",
            f"[supervisord]\nlogfile={self.log_dir}/supervisord.log\npidfile={self.run_dir}/supervisord.pid\n"
            f"directory={Path.cwd()}\nlogfile_maxbytes=10MB",
            "[rpcinterface:supervisor]\n"
            "supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface",
        ]
        sections += [self._program_section(program) for program in self._programs()]
        return "\n\n".join(sections) + "\n"

    def _program_section(self, program: Program) -> str:
        # supervisord's own syntax: % starts a substitution, so it is doubled; odd words are quoted
        words = " ".join(f'"{word}"' if " " in word or not word else word for word in program.command)
        environment = ",".join(f'{name}="{value}"' for name, value in program.environment.items())
        return "\n".join(
            [
                f"[program:{program.name}]",
                f"command={words}".replace("%", "%%"),
                f"environment={environment}".replace("%", "%%"),
                "autostart=false",
                "autorestart=true",
                "startsecs=0",
                "startretries=3",
                "stopasgroup=true",
                "killasgroup=true",
                "stopwaitsecs=20",
                "redirect_stderr=true",
                f"stdout_logfile={self.log_dir}/{program.name}.log",
                "stdout_logfile_maxbytes=20MB",
                "stdout_logfile_backups=1",
            ]
        )

    def _create_topics(self) -> None:
        client = KafkaAdminClient(bootstrap_servers=self.settings.endpoints().kafka_bootstrap)
        try:
            for topic in (*USER_TOPICS, ITEM_TOPIC, EXPOSURE_TOPIC, DEAD_LETTER_TOPIC):
                try:
                    configs = {"retention.ms": "-1"} if topic == DELETION_TOPIC else {}
                    client.create_topics([NewTopic(topic, 4, 1, topic_configs=configs)])
                except TopicAlreadyExistsError:
                    continue
        finally:
            client.close()

    @property
    def _socket(self) -> Path:
        return self.run_dir / "supervisor.sock"

    def _call(self, method: str, *arguments: Any) -> Any:
        """One call to the supervisor over its Unix socket."""
        transport = SupervisorTransport(None, None, f"unix://{self._socket}")
        try:
            proxy = xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport)
            return getattr(proxy.supervisor, method)(*arguments)
        finally:
            if transport.connection is not None:
                if transport.connection.sock is not None:  # its own close leaves the socket to the garbage collector
                    transport.connection.sock.close()
                transport.close()

    def _processes(self) -> list[psutil.Process]:
        """Every process that carries this stack's mark, by its environment: children of children too."""
        found = []
        for process in psutil.process_iter():
            try:
                is_ours = process.pid != os.getpid() and process.environ().get(MARK) == str(self.settings.root)
                if is_ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
        return found

    @staticmethod
    def _wait_until(condition: Callable[[], bool], timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if condition():
                return True
            time.sleep(0.1)
        return condition()
