"""The local stack's ports and places, from the environment: BAGUNI_STACK_REDIS_PORT and so on."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
from pathlib import Path

from pydantic import SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from baguni.settings import Endpoints

REPOSITORY = Path(__file__).resolve().parent.parent.parent


PORTS = range(20_000, 32_000)  # below those that the kernel gives to outgoing connections
PORTS_VARIABLE = "BAGUNI_STACK_PORTS"  # FIRST-LAST: a part of them, for processes that start stacks beside each other
_given: set[int] = set()  # what listens there may not yet do so


def free_port() -> int:
    """A port of 127.0.0.1 on which nothing listens, and that this process has not given before. One that the kernel gives to
    outgoing connections could be taken before the server is there; Milvus then listens somewhere else without a word."""
    first, last = map(int, os.environ.get(PORTS_VARIABLE, f"{PORTS.start}-{PORTS.stop - 1}").split("-"))
    while True:
        port = first + secrets.randbelow(last - first + 1)  # a seeded choice would be the same in two processes
        if port not in _given:
            with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
                _given.add(port)
                return port


class StackSettings(BaseSettings):
    """Everything listens on 127.0.0.1 only, but Milvus, which knows no such setting. `servers_python` runs the third-party
    servers, whose packages need another NumPy than ours; `python` runs ours."""

    model_config = SettingsConfigDict(env_prefix="BAGUNI_STACK_", frozen=True)

    state_dir: Path = Path(".baguni")
    gateway_port: int = 7450
    gateway_metrics_port: int = 7460
    user_consumer_metrics_port: int = 7462
    item_consumer_metrics_port: int = 7463
    triton_port: int = 7451
    triton_http_port: int = 7461
    triton_metrics_port: int = 7471
    milvus_port: int = 7452
    milvus_metrics_port: int = 7472
    broker_port: int = 7453
    redis_port: int = 7454
    servers_python: Path = REPOSITORY / ".venv-stack/bin/python"
    start_timeout_s: float = 120.0
    fetch_wait_ms: int = 20  # the local broker holds back records while it holds a fetch: see StreamingSettings

    @classmethod
    def on_free_ports(cls, state_dir: Path) -> StackSettings:
        """For a stack beside others."""
        ports = {name: free_port() for name in cls.model_fields if name.endswith("_port")}
        return cls.model_validate({"state_dir": state_dir, **ports})

    @property
    def ports(self) -> dict[str, int]:
        """Setting name → port."""
        return {name: getattr(self, name) for name in type(self).model_fields if name.endswith("_port")}

    @property
    def root(self) -> Path:
        """The state directory as an absolute path."""
        return self.state_dir.resolve()

    @property
    def token_file(self) -> Path:
        """The file that keeps the key of the stack's tokens."""
        return self.root / "token-keys"

    def endpoints(self) -> Endpoints:
        """Where baguni's own processes find everything."""
        return Endpoints(
            gateway_address=f"127.0.0.1:{self.gateway_port}",
            triton_url=f"127.0.0.1:{self.triton_port}",
            milvus_uri=f"http://127.0.0.1:{self.milvus_port}",
            kafka_bootstrap=f"127.0.0.1:{self.broker_port}",
            redis_url=f"redis://127.0.0.1:{self.redis_port}/0",
            releases=self.root / "releases",
            triton_repository=self.root / "triton",
            token_keys=SecretStr(self.token_file.read_text() if self.token_file.is_file() else ""),
        )
