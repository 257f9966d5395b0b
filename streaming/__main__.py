"""`python -m streaming user` or `python -m streaming item`: one consumer process, until SIGTERM."""

from __future__ import annotations

import gc
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterable

from baguni.domain.errors import BaguniError, UnavailableError
from baguni.domain.events import ITEM_TOPIC, USER_TOPICS, Event
from baguni.domain.release import Release, ReleaseStore
from baguni.logs import indented, log_to_stderr
from baguni.releases.item_updates import ItemServers, ItemUpdates, Rejections, carry_over
from baguni.stores.forgotten import ForgottenUsers
from baguni.stores.history_store import HistoryWriter
from baguni.stores.live_items import LiveItemWriter
from baguni.stores.placements import PlacementWriter
from baguni.stores.redis_client import connect
from streaming.attribution import Attribution
from streaming.consumer import ConsumerParts, EventConsumer, stop_on_signals
from streaming.dead_letters import DeadLetters, Quarantine
from streaming.metrics import Metrics
from streaming.settings import StreamingSettings
from streaming.user_updates import UserUpdates

log = logging.getLogger("streaming")
POINTER_CHECK_S = 2.0
BROKER_RETRY_S = 1.0
USER_GROUP = "baguni-users"
ITEM_GROUPS = "baguni-items"
GC_THRESHOLD, SWITCH_INTERVAL_S = 100_000, 0.0005


class Consumers:
    """The consumers of this process: what they share, and the wish to stop."""

    def __init__(self, settings: StreamingSettings, stopping: threading.Event) -> None:
        self._settings, self._stopping = settings, stopping
        client = connect(settings.redis_url)
        dead_letters = DeadLetters(settings.kafka_bootstrap, Quarantine(client))
        self._parts = ConsumerParts(client, dead_letters, Metrics())
        self._parts.metrics.serve(settings.metrics_address)

    def consume_user_events(self) -> None:
        """Orders, clicks and carts → histories."""
        client, metrics = self._parts.redis, self._parts.metrics
        names = self._settings.placement_names
        writer, placements = HistoryWriter(client, self._settings.max_events), PlacementWriter(client, names)
        attribution = Attribution(metrics, self._settings.token_signer(), names)
        updates = UserUpdates(writer, placements, ForgottenUsers(client), metrics, attribution)
        batch_records = self._settings.batch_records
        while not self._stopping.is_set():
            self._consume(
                lambda: EventConsumer(
                    self._settings, USER_TOPICS, USER_GROUP, updates.apply, self._parts, batch_records
                ),
                self._stopping.is_set,
            )

    def consume_item_events(self) -> None:
        """Items → Milvus and gateways, for the release that is active. Each release has a consumer group of its own: a new one
        reads the topic from its start, since any record of it may be newer than the release's catalogue. The groups are one
        family: what one has set aside, the next does not set aside again."""
        store = ReleaseStore(self._settings.releases)
        before: str | None = None
        while not self._stopping.is_set():
            release_id = store.active_id()
            if release_id is None:
                self._stopping.wait(POINTER_CHECK_S)
                continue
            log.info("following release=%s", release_id)
            updates = ReleaseUpdates(store.get(release_id, verify=False), before, self._settings, self._parts)
            before = release_id
            until = UntilSwitch(store, release_id, self._stopping)
            try:
                self._consume(lambda updates=updates: self._item_consumer(updates), until)  # type: ignore[misc]
            finally:
                updates.close()

    def close(self) -> None:
        """Close the connections."""
        self._parts.dead_letters.close()
        self._parts.redis.close()

    def _item_consumer(self, updates: ReleaseUpdates) -> EventConsumer:
        group, batch_records = f"{ITEM_GROUPS}-{updates.release_id}", self._settings.item_batch_records
        return EventConsumer(
            self._settings, [ITEM_TOPIC], group, updates.apply, self._parts, batch_records, updates.forget, ITEM_GROUPS
        )

    def _consume(self, make: Callable[[], EventConsumer], should_stop: Callable[[], bool]) -> None:
        try:
            consumer = make()
        except UnavailableError as error:
            log.warning("waiting retry_s=%.1f error=%s", BROKER_RETRY_S, error)
            self._stopping.wait(BROKER_RETRY_S)
            return
        consumer.run(should_stop)


class ReleaseUpdates:
    """ItemUpdates of one release, opened at the first batch: opening needs servers, and the consumer knows how to wait.

    `before` is the release that this process kept up to date until now, if any. Activation carried its changes over, except
    those of the last seconds."""

    def __init__(self, release: Release, before: str | None, settings: StreamingSettings, parts: ConsumerParts) -> None:
        self._release, self._before, self._settings, self._redis = release, before, settings, parts.redis
        self._metrics = parts.metrics
        self._servers: ItemServers | None = None
        self._updates: ItemUpdates | None = None

    def apply(self, events: Iterable[Event]) -> Rejections:
        """See ItemUpdates.apply."""
        if self._updates is None:
            self._servers = self._servers or ItemServers.opened(self._release, self._settings, self._redis)
            self._servers.index.check()
            updates = ItemUpdates(self._release, self._servers, self._metrics.count_left_out)
            if self._before not in (None, self._release.release_id):
                num_items = carry_over(LiveItemWriter(self._redis, str(self._before)), updates)
                log.info("carried over items=%d from=%s", num_items, self._before)
            self._updates = updates
        return self._updates.apply(events)

    @property
    def release_id(self) -> str:
        """The id of the release that is kept up to date."""
        return self._release.release_id

    def forget(self) -> None:
        """Forget what was read of Redis."""
        self.close()
        self._servers = self._updates = None

    def close(self) -> None:
        """Close the connections."""
        if self._servers is not None:
            self._servers.close()


class UntilSwitch:
    """True once told to stop, or once another release is active; looks at the pointer every few seconds."""

    def __init__(self, store: ReleaseStore, release_id: str, stopping: threading.Event) -> None:
        self._store, self._release_id, self._stopping = store, release_id, stopping
        self._next_look = time.monotonic()

    def __call__(self) -> bool:
        if self._stopping.is_set():
            return True
        if time.monotonic() < self._next_look:
            return False
        self._next_look = time.monotonic() + POINTER_CHECK_S
        return self._store.active_id() != self._release_id


def main() -> None:
    """Run the consumer that the command line names."""
    names = ("user", "item")
    if len(sys.argv) != 2 or sys.argv[1] not in names:
        sys.exit(f"usage: python -m streaming {'|'.join(names)}")
    log_to_stderr(logging.INFO, "%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("kafka").setLevel(logging.WARNING)
    # A batch makes many objects and no cycles: looking for some takes a quarter of the time. And what waits for Redis while
    # the next events are parsed must not wait 5 ms for its turn.
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    settings = StreamingSettings()
    if settings.ready_file is not None:
        settings.ready_file.unlink(missing_ok=True)  # of the process before this one
    consumers = Consumers(settings, stop_on_signals())
    try:
        consumers.consume_user_events() if sys.argv[1] == "user" else consumers.consume_item_events()
    except BaguniError as error:
        sys.exit(f"Error: {indented(str(error))}")
    finally:
        consumers.close()


if __name__ == "__main__":
    main()
