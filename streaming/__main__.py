"""`python -m streaming user` or `python -m streaming item`: one consumer process, until SIGTERM."""

from __future__ import annotations

import logging
import sys
import threading
import time

import redis

from baguni.events import ITEM_TOPIC, USER_TOPICS
from baguni.history_store import HistoryWriter
from baguni.inference import SyncInferenceClient
from baguni.item_index import ItemIndex
from baguni.live_items import LiveItemWriter
from baguni.release import ReleaseStore
from streaming.consumer import EventConsumer, stop_on_signals
from streaming.dead_letters import DeadLetters
from streaming.item_updates import ItemUpdates
from streaming.settings import StreamingSettings
from streaming.user_updates import UserUpdates

POINTER_CHECK_S = 2.0
REDIS_TIMEOUT_S = 5.0


def consume_user_events(settings: StreamingSettings, stopping: threading.Event) -> None:
    """Orders, clicks and carts → histories."""
    client = redis.Redis.from_url(settings.redis_url, socket_timeout=REDIS_TIMEOUT_S)
    dead_letters = DeadLetters(settings.kafka_bootstrap)
    updates = UserUpdates(HistoryWriter(client, settings.max_events))
    try:
        EventConsumer(settings, USER_TOPICS, "baguni-users", updates.apply, dead_letters).run(stopping.is_set)
    finally:
        dead_letters.close()
        client.close()


def consume_item_events(settings: StreamingSettings, stopping: threading.Event) -> None:
    """Items → Milvus and gateways, for whichever release is active. A group per release: a new one reads the topic from
    its start, since what changed after it was built may stand anywhere in it."""
    store = ReleaseStore(settings.releases)
    dead_letters = DeadLetters(settings.kafka_bootstrap)
    client = redis.Redis.from_url(settings.redis_url, socket_timeout=REDIS_TIMEOUT_S)
    try:
        while not stopping.is_set():
            release_id = store.active_id()
            if release_id is None:
                stopping.wait(POINTER_CHECK_S)
                continue
            release = store.get(release_id, verify=False)
            inference = SyncInferenceClient(settings.triton_url, release_id, release.signature)
            index = ItemIndex(settings.milvus_uri, release_id)
            updates = ItemUpdates(release, inference, index, LiveItemWriter(client, release_id))
            group = f"baguni-items-{release_id}"
            consumer = EventConsumer(settings, [ITEM_TOPIC], group, updates.apply, dead_letters)
            consumer.run(_until_switch(store, release_id, stopping))
            inference.close()
            index.close()
    finally:
        dead_letters.close()
        client.close()


class _until_switch:  # noqa: N801 - reads as a condition where it is used
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
    consumers = {"user": consume_user_events, "item": consume_item_events}
    if len(sys.argv) != 2 or sys.argv[1] not in consumers:
        sys.exit(f"usage: python -m streaming {'|'.join(consumers)}")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
    logging.getLogger("kafka").setLevel(logging.WARNING)
    consumers[sys.argv[1]](StreamingSettings(), stop_on_signals())


if __name__ == "__main__":
    main()
