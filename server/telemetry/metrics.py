"""The gateway's metrics for Prometheus. No label is a user, an item or anything else without a bound."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from baguni.domain.events import LOOKED_AT
from baguni.exposition import BoundedNames

SECONDS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
MAX_PLACEMENTS = 50  # that are told apart
REMEMBERED = 256  # series


class Metrics:
    """The gateway's metrics, in a registry of their own."""

    def __init__(self, placements: Iterable[str] = ()) -> None:
        self.registry = registry = CollectorRegistry()
        self.request_s = Histogram(
            "baguni_request_duration_seconds",
            "From an RPC's arrival to its answer.",
            ["method", "code"],
            buckets=SECONDS,
            registry=registry,
        )
        self.stage_s = Histogram(
            "baguni_stage_duration_seconds",
            "What a stage of a request waits for its server.",
            ["stage"],
            buckets=SECONDS,
            registry=registry,
        )
        self.degraded = Counter(
            "baguni_degraded", "Lists that not everything answered for, by tier.", ["tier"], registry=registry
        )
        self.searches = Counter(
            "baguni_searches",
            "Searches for a user's nearest items, by the path that answered: milvus; the gateway itself, because the settings "
            "want it (exact), Milvus failed (fallback) or cannot evaluate the rules (refused), or filters leave few items "
            "(filtered); the user's last search (cached); none. An unchanged user's list needs no search (remembered).",
            ["path"],
            registry=registry,
        )
        self.refused = Counter(
            "baguni_refused", "Requests refused before they were read, by reason.", ["reason"], registry=registry
        )
        self.handed_over = Counter(
            "baguni_handed_over",
            "Requests that another process of this gateway answered, because this one had no room.",
            registry=registry,
        )
        self.exposures = Counter(
            "baguni_exposures", "Pages that were served: told to Kafka, or dropped.", ["outcome"], registry=registry
        )
        self._pages = Counter(
            "baguni_pages", "Pages of lists that were served to shoppers.", ["placement", "release"], registry=registry
        )
        self._page_items = Counter(
            "baguni_page_items", "Items on these pages.", ["placement", "release"], registry=registry
        )
        self._placement = BoundedNames(MAX_PLACEMENTS, placements)
        self._page_of = lru_cache(maxsize=REMEMBERED)(
            lambda *labels: (self._pages.labels(*labels), self._page_items.labels(*labels))
        )
        self.captured = Counter(
            "baguni_captured", "Requests written down for replay, or dropped.", ["outcome"], registry=registry
        )
        self.restarts = Counter(
            "baguni_background_restarts",
            "Times that a task beside the requests failed or ended and was started again.",
            ["task"],
            registry=registry,
        )
        self.feature_errors = Counter(
            "baguni_feature_errors", "Evaluations of an experiment's feature that failed.", registry=registry
        )
        self.arms_not_served = Counter(
            "baguni_experiment_arms_not_served",
            "Pages of users in an experiment whose release was not open: the active one answered.",
            ["release"],
            registry=registry,
        )
        self.in_flight = Gauge(
            "baguni_requests_in_flight", "Requests being answered.", registry=registry, multiprocess_mode="livesum"
        )
        self.loop_lag_s = Gauge(
            "baguni_event_loop_lag_seconds",
            "How late the event loop is; of several processes the latest.",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._release = Gauge(
            "baguni_release_info",
            "Processes that serve the release.",
            ["release"],
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._serving: str | None = None

    def served(self, request_id: str, release_id: str, placement: str, num_items: int) -> None:
        """Count a served page. Pages of the inspection page are not counted: no shopper saw them."""
        if not request_id.startswith(LOOKED_AT):
            pages, items = self._page_of(self._placement(placement), release_id)
            pages.inc()
            items.inc(num_items)

    def serves(self, release_id: str) -> None:
        """Report the one release that this process serves."""
        if self._serving is not None:
            self._release.labels(self._serving).set(0)
        self._release.labels(release_id).set(1)
        self._serving = release_id
