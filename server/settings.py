"""Settings of the gateway, from the environment: BAGUNI_ENCODE_TIMEOUT_S and so on."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from baguni.domain.events import EXPOSURE_TOPIC
from baguni.settings import Endpoints


class ServerSettings(Endpoints):
    """Every call out has the lesser of its own limit and what is left of the caller's deadline."""

    processes: int = Field(default=1, ge=1)  # that answer Recommend and SimilarItems on one port
    bulk_processes: int = Field(default=1, ge=0)  # that answer GenerateTopItems for these; 0: they do it themselves
    run_dir: Path = Path(".baguni/run/gateway")  # sockets and counters of the processes; nobody else may read it
    log_format: Literal["text", "json"] = "text"
    tls_key: Path | None = None  # PEM; with tls_certificate, the port speaks TLS
    tls_certificate: Path | None = None
    tls_client_ca: Path | None = None  # clients need a certificate of this authority: mutual TLS
    callers: Path | None = None  # who may call what, see callers.py
    allow_anonymous: bool = False  # listen beyond this machine without callers
    max_request_bytes: int = Field(default=1 << 20, ge=1 << 10)  # the largest lists that are allowed, five times over
    exposure_topic: str = EXPOSURE_TOPIC  # in Kafka, of the pages that were served; empty: nowhere
    experiments: str = ""  # GrowthBook's features: a path, or https://HOST/api/features/CLIENT_KEY; empty: none
    experiments_refresh_s: float = Field(default=60.0, gt=0)  # how often the endpoint is asked, beside its event stream
    capture_dir: Path | None = None  # where requests are written down for `baguni release replay`; without it, nowhere
    capture_slow_s: float = Field(default=0.5, ge=0)  # what takes longer is written down, and said in the log
    capture_share: float = Field(default=0.0, ge=0, le=1)  # of all
    capture_bytes: int = Field(default=64 << 20, ge=1 << 10)  # of a process's file; the one before it is kept
    capture_days: float = Field(default=7.0, gt=0)  # then a request that was written down is removed: it names a user
    default_deadline_s: float = Field(default=2.0, gt=0)  # for callers that set none
    default_bulk_deadline_s: float = Field(default=60.0, gt=0)
    history_timeout_s: float = Field(default=0.3, gt=0)
    encode_timeout_s: float = Field(default=1.0, gt=0)
    search_timeout_s: float = Field(default=0.5, gt=0)
    score_timeout_s: float = Field(default=0.5, gt=0)
    embedding_age_s: float = Field(default=300.0, ge=0)  # how long an unchanged history need not be encoded again
    remembered_users: int = Field(default=4_096, ge=1)
    remembered_lists: int = Field(default=4, ge=0)  # for each of them; 0: every list is made anew
    breaker_failures: int = Field(default=5, ge=1)  # in a row, before calls to a part fail at once
    breaker_open_s: float = Field(default=1.0, gt=0)
    hang_s: float = Field(default=6.0, gt=1)  # a process that has not answered for so long is killed and replaced
    start_s: float = Field(default=180.0, gt=0)  # the same for one that has not answered since it was started
    max_in_flight: int = Field(default=24, ge=1)  # requests answered at a time by a process; more are refused at once
    max_bulk_in_flight: int = Field(default=4, ge=1)  # the same, of GenerateTopItems
    max_lag_s: float = Field(default=0.05, gt=0)  # how late the event loop may be before requests are refused
    metrics_address: str = "127.0.0.1:7460"  # where Prometheus reads
    # Candidates from the vector search, before rules; a page that needs more gets more.
    num_retrieved: int = Field(default=50, ge=1, le=15_000)
    exact_items: int = Field(default=20_000, ge=0)  # filters that leave so few items are answered without the index
    # Where the nearest items come from: Milvus, the gateway's own memory, or the latter for catalogues up to auto_items.
    search: Literal["milvus", "exact", "auto"] = "milvus"
    auto_items: int = Field(default=20_000, ge=0)
    fallback_items: int = Field(default=200_000, ge=0)  # catalogues up to this size are searched here if Milvus fails
    max_list: int = Field(default=1_000, ge=1)  # items that paging can reach
    pointer_check_s: float = Field(default=1.0, gt=0)
    live_items_check_s: float = Field(default=0.3, gt=0)
    drain_s: float = Field(default=5.0, ge=0)

    @property
    def online_names(self) -> list[str]:
        """Return the names of the processes that share the gateway's port."""
        return [f"online-{number}" for number in range(self.processes)]

    @property
    def bulk_names(self) -> list[str]:
        """Return the names of the processes for bulk."""
        return [f"bulk-{number}" for number in range(self.bulk_processes)]

    def socket_of(self, name: str) -> str:
        """Return the address at which other processes of the gateway reach a process."""
        return f"unix:{self.run_dir.resolve()}/{name}.sock"
