"""What the gateway says of itself to Prometheus. No label is a user, an item or anything else without an end."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class Metrics:
    """All of them, in a registry of their own."""

    def __init__(self) -> None:
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
        self.shed = Counter("baguni_shed", "Requests refused because too many were being answered.", registry=registry)
        self.in_flight = Gauge("baguni_requests_in_flight", "Requests being answered.", registry=registry)
        self.loop_lag_s = Gauge("baguni_event_loop_lag_seconds", "How late the event loop is.", registry=registry)
        self.release = Gauge("baguni_release_info", "1 for the release that is served.", ["release"], registry=registry)
