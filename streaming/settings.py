"""Settings of the consumers, from the environment: BAGUNI_MAX_EVENTS and so on."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from baguni.domain.events import MAX_FUTURE_S
from baguni.domain.history import MAX_EVENTS
from baguni.settings import Endpoints


class StreamingSettings(Endpoints):
    """Addresses and limits. `ready_file` is touched every few seconds while there is progress, for whoever supervises."""

    max_events: int = Field(default=MAX_EVENTS, ge=1)
    batch_records: int = Field(default=2_000, ge=1)  # one round trip to Redis, one commit
    item_batch_records: int = Field(default=64, ge=1)  # two calls of the encoders, so that a stop need not wait long
    session_timeout_ms: int = Field(default=6_000, ge=1_000)  # a crashed consumer's partitions move after this long
    # How long the broker holds a fetch that finds nothing. Kafka answers as soon as there is a record, so waiting costs no
    # freshness and saves a tenth of a core; a broker that lets records wait for the end of it needs 20.
    fetch_wait_ms: int = Field(default=500, ge=1)
    instance_id: str = ""  # a name that a restart comes back with, such as a pod's: it keeps its partitions meanwhile
    max_dead_share: float = Field(
        default=0.5, ge=0, le=1
    )  # of the last records; beyond it the consumer stops. 1: never
    max_future_s: float = Field(default=MAX_FUTURE_S, ge=0)  # how far a producer's clock may be ahead of ours
    metrics_address: str = ""  # HOST:PORT where Prometheus reads; empty: nowhere
    ready_file: Path | None = None
    group_suffix: str = ""
