"""Settings of campaigns, from the environment: BAGUNI_CRM_STATE and so on."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr

from baguni.clients.gateway import ClientSettings


class CrmSettings(ClientSettings):
    """Where campaigns keep what they did, and the keys of what they send to."""

    crm_state: Path = Path(".baguni/crm")
    crm_braze_key: SecretStr = SecretStr("")
    crm_batch_users: int = Field(default=256, ge=1, le=256)  # of a GenerateTopItems
    crm_calls: int = Field(default=2, ge=1)  # of GenerateTopItems at a time
    crm_backoff_s: float = Field(default=0.5, gt=0)  # before a sink is asked again; doubled each time
    crm_content_token: SecretStr = SecretStr("")  # that Connected Content must show; empty: none
    metrics_address: str = ""  # HOST:PORT where Prometheus reads `baguni crm serve`; empty: nowhere
