"""Settings of the gateway, from the environment: BAGUNI_ENCODE_TIMEOUT_S and so on."""

from __future__ import annotations

from pydantic import Field

from baguni.settings import Endpoints


class ServerSettings(Endpoints):
    """Every call out has the lesser of its own limit and what is left of the caller's deadline."""

    default_deadline_s: float = Field(default=2.0, gt=0)  # for callers that set none
    default_bulk_deadline_s: float = Field(default=60.0, gt=0)
    history_timeout_s: float = Field(default=0.3, gt=0)
    encode_timeout_s: float = Field(default=1.0, gt=0)
    search_timeout_s: float = Field(default=0.5, gt=0)
    score_timeout_s: float = Field(default=0.5, gt=0)
    embedding_age_s: float = Field(default=300.0, ge=0)  # how long an unchanged history need not be encoded again
    remembered_users: int = Field(default=4_096, ge=1)
    breaker_failures: int = Field(default=5, ge=1)  # in a row, before calls to a part fail at once
    breaker_open_s: float = Field(default=1.0, gt=0)
    max_in_flight: int = Field(default=24, ge=1)  # requests answered at a time; more are refused at once
    max_lag_s: float = Field(default=0.05, gt=0)  # how late the event loop may be before requests are refused
    metrics_address: str = "127.0.0.1:7460"  # where Prometheus reads
    # Candidates from the vector search, before rules; a page that needs more gets more.
    num_retrieved: int = Field(default=50, ge=1, le=15_000)
    max_list: int = Field(default=1_000, ge=1)  # items that paging can reach
    pointer_check_s: float = Field(default=1.0, gt=0)
    live_items_check_s: float = Field(default=0.3, gt=0)
    drain_s: float = Field(default=5.0, ge=0)
