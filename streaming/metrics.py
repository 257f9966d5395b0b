"""What a consumer says of itself to Prometheus. No label is a user, an item or anything else without an end."""

from __future__ import annotations

from contextlib import suppress

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from baguni.exposition import expose

LAG_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 60.0, 600.0, 3600.0, 86_400.0)
BYTES = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16_384, 32_768)


class Metrics:
    """All of them, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.records = Counter("baguni_records", "Records that were applied.", ["topic"], registry=registry)
        self.changes = Counter(
            "baguni_history_changes",
            "What became of what was to change in histories: new, late, duplicate, forgotten.",
            ["outcome"],
            registry=registry,
        )
        self.attributed = Counter(
            "baguni_attributed_events",
            "New clicks, carts and orders that say which page led to them, by what they are and the page's placement and "
            "release.",
            ["action", "placement", "release"],
            registry=registry,
        )
        self.unreadable_tokens = Counter(
            "baguni_unreadable_exposure_tokens",
            "New events whose exposure token is no gateway's: they count for no page.",
            registry=registry,
        )
        self.left_out_clicks = Counter(
            "baguni_left_out_clicks",
            "New clicks that count for no placement, because too many other placements have more.",
            registry=registry,
        )
        self.dead_letters = Counter(
            "baguni_dead_letters", "Records that will never parse, by reason.", ["reason"], registry=registry
        )
        self.dead_letters_again = Counter(
            "baguni_dead_letters_again",
            "Malformed records that were read again, and had been set aside before.",
            registry=registry,
        )
        self.left_out_attributes = Counter(
            "baguni_left_out_attributes",
            "Attributes that were left out of items, because the release does not declare them or declares another type.",
            ["attribute", "problem"],
            registry=registry,
        )
        self.quarantined = Counter(
            "baguni_quarantined",
            "Records of which only the coordinates are kept: nobody can read them, or the dead-letter topic refuses them.",
            registry=registry,
        )
        self.tombstones = Counter(
            "baguni_tombstones", "Records without a value, as compaction leaves them.", ["topic"], registry=registry
        )
        self.cut_orders = Counter(
            "baguni_cut_orders", "Orders with more lines than a history keeps.", registry=registry
        )
        self.damaged_histories = Counter(
            "baguni_damaged_histories", "Stored histories that could not be read and were set aside.", registry=registry
        )
        self.visible_lag_s = Histogram(
            "baguni_event_visible_lag_seconds",
            "From an event's own time to when Recommend sees it, by what happened; of each batch the longest.",
            ["kind"],
            buckets=LAG_S,
            registry=registry,
        )
        self.consumer_lag = Gauge(
            "baguni_consumer_lag_records",
            "Records of a partition that are not applied yet.",
            ["topic", "partition"],
            registry=registry,
        )
        self.rewinds = Counter(
            "baguni_rewinds", "Partitions read again because Redis had lost what was applied.", registry=registry
        )
        self.waits = Counter(
            "baguni_consumer_waits", "Times that a server was away, and waited for.", ["part"], registry=registry
        )
        self.history_bytes = Histogram(
            "baguni_history_bytes",
            "The stored size of a history that was changed; of each batch the largest.",
            buckets=BYTES,
            registry=registry,
        )

    def count_left_out(self, attribute: str, problem: str) -> None:
        """Count an attribute that was left out of an item; the names must be bounded."""
        self.left_out_attributes.labels(attribute, problem).inc()

    def gave_up(self, topic: str, partition: int) -> None:
        """The partition is another consumer's: its lag is no longer ours to tell, and would stand for ever."""
        with suppress(KeyError):  # nothing was told of it yet
            self.consumer_lag.remove(topic, partition)

    def serve(self, address: str) -> None:
        """Let Prometheus read them at HOST:PORT; nowhere if that is empty. Raises UnavailableError if the port is taken."""
        expose(self.registry, address)
