"""Where the other processes are: the settings that every process shares. Each process adds its own in its own class."""

from __future__ import annotations

from pathlib import Path

from pydantic_settings import BaseSettings, SettingsConfigDict


class Endpoints(BaseSettings):
    """Addresses, from the environment: BAGUNI_TRITON_URL, BAGUNI_REDIS_URL and so on."""

    model_config = SettingsConfigDict(env_prefix="BAGUNI_", frozen=True, extra="ignore")

    gateway_address: str = "127.0.0.1:7450"
    triton_url: str = "127.0.0.1:7451"
    milvus_uri: str = "http://127.0.0.1:7452"
    kafka_bootstrap: str = "127.0.0.1:7453"
    redis_url: str = "redis://127.0.0.1:7454/0"
    releases: Path = Path(".baguni/releases")
    triton_repository: Path = Path(".baguni/triton")
    compute_capability: str = ""  # of the GPU that Triton has, if it is not on this machine: "8.9"
