"""Where the other processes are: the settings that every process shares. Each process adds its own in its own class."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from pydantic import SecretStr
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
)

from baguni.domain.signed_tokens import TokenSigner, new_key

log = logging.getLogger(__name__)


class Endpoints(BaseSettings):
    """Addresses, from the environment: BAGUNI_TRITON_URL, BAGUNI_REDIS_URL and so on; or, where one holds a secret, from a file
    such as `baguni_redis_url` in the folder that BAGUNI_SECRETS_DIR names."""

    model_config = SettingsConfigDict(env_prefix="BAGUNI_", frozen=True, extra="ignore")

    gateway_address: str = "127.0.0.1:7450"  # where the gateway listens, and clients ask
    triton_url: str = "127.0.0.1:7451"  # Triton's gRPC port; of several a name that has them all, or ipv4:A:PORT,B:PORT
    milvus_uri: str = "http://127.0.0.1:7452"  # a server, or a file for the embedded Milvus
    kafka_bootstrap: str = "127.0.0.1:7453"  # one or more brokers, with commas
    redis_url: str = "redis://127.0.0.1:7454/0"  # histories; may hold a password
    releases: Path = Path(".baguni/releases")  # the release store
    releases_url: str = ""  # where releases are pushed to and pulled from: s3://BUCKET/PREFIX, or a folder
    triton_repository: Path = Path(".baguni/triton")  # the folder that Triton loads models from
    token_keys: SecretStr = SecretStr("")  # sign exposure and page tokens: keys with commas, the newest first
    # Where lists are shown, with commas: these are always labels of metrics and their clicks are always counted; others if
    # there is room.
    placements: str = ""
    compute_capability: str = ""  # of the GPU that Triton has, if it is not on this machine: "8.9"

    def environment(self) -> dict[str, str]:
        """The variables that say the same to another process."""
        plain = {
            name: value.get_secret_value() if isinstance(value, SecretStr) else str(value)
            for name, value in self.model_dump().items()
        }
        return {f"BAGUNI_{name.upper()}": value for name, value in plain.items()}

    @property
    def placement_names(self) -> list[str]:
        """The configured placements."""
        return [name.strip() for name in self.placements.split(",") if name.strip()]

    def token_signer(self) -> TokenSigner:
        """Return what signs and verifies tokens. Without configured keys it has a random key, which no other process knows."""
        if self.token_keys.get_secret_value():
            return TokenSigner.from_setting(self.token_keys)
        log.warning(
            "token_keys is not set: tokens are valid in this process alone, until it ends. Set BAGUNI_TOKEN_KEYS to one random "
            "text for gateways and user consumers"
        )
        return TokenSigner([new_key()])

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments before the environment before files."""
        files = SecretsSettingsSource(settings_cls, secrets_dir=os.environ.get("BAGUNI_SECRETS_DIR"))
        return init_settings, env_settings, files
