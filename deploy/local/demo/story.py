"""`baguni demo`: from nothing to live recommendations on a year of grocery orders (simulated data).

Train and publish (once), start the stack, load every household's history up to December, ask for lists, then play what
the households really did next into Kafka, and watch their lists follow. Nothing is staged: the December orders were never
trained on, and every number is measured while it runs.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from dataclasses import dataclass

from kafka import KafkaProducer
from rich.console import Console
from rich.progress import track

from baguni.cli.metrics_tables import metrics_tables
from baguni.clients.gateway import GatewayClient
from baguni.domain.errors import BaguniError
from baguni.domain.release import Release, ReleaseStore
from baguni.stores.history_store import HistoryWriter
from baguni.stores.redis_client import connect
from baguni.v1 import recommendation_pb2
from deploy.local.bring_up import bring_up
from deploy.local.demo.campaign import push_campaign
from deploy.local.demo.freshness import (
    LIST_LENGTH,
    MINUTE_MS,
    Freshness,
    clicks,
    ids,
    new_item,
    order_placed,
    recommend,
    send_and_wait,
)
from deploy.local.demo.households import Shown, next_orders
from deploy.local.demo.tables import household_tables, pushed_table, timing_table
from deploy.local.settings import StackSettings
from deploy.local.stack import LocalStack
from trainer.data.dataset import Dataset
from trainer.data.reading import load_dataset
from trainer.data.splits import last_month_start_ms

SHOWN_HOUSEHOLDS = 3
TIMED_HOUSEHOLDS = 30
PUSHED_ITEMS = 3
console = Console()


@dataclass(frozen=True)
class Demo:
    """The measurements of a demo. `was_trained`: the release was made for it; `seconds`: from the first stage to the last."""

    freshness: Freshness
    release: Release
    was_trained: bool
    seconds: float


def run_demo(settings: StackSettings, keep: bool) -> Demo:
    """Run the whole demo. It stops what it started, also when interrupted, unless `keep`."""
    started = time.monotonic()
    stack = LocalStack(settings)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a terminated demo cleans up like an interrupted one
    try:
        release_id, was_trained = _release(settings)
        _heading("Starting the local stack")
        _activate_first(settings, release_id)
        bring_up(settings)
        release = ReleaseStore(settings.endpoints().releases).get(release_id, verify=False)
        done = Demo(_play(settings, release), release, was_trained, time.monotonic() - started)
        console.print(f"\nDone in {done.seconds:.0f} s.")
        if keep:
            _how_to_call(settings)
        return done
    finally:
        if not keep:
            with console.status("stopping the stack …"):
                stack.stop()


def _release(settings: StackSettings) -> tuple[str, bool]:
    """Return the release to show, and whether it was made now, from data, training and export."""
    store = ReleaseStore(settings.endpoints().releases)
    existing = [i for i in store.ids() if store.get(i, verify=False).manifest.get("dataset") == "complete-journey"]
    if existing:
        console.print(f"Using release {existing[-1]} (delete {store.root} to train again).")
        return existing[-1], False
    data, run = settings.root / "complete-journey", settings.root / "training"
    _heading("Preparing Complete Journey")
    _baguni("data", "prepare", "complete-journey", str(data))
    _heading("Fitting Semantic IDs, training both heads, distilling, evaluating")
    _baguni("train", str(data), "--run", str(run), "--no-refit")  # the last month is what households do next
    _heading("Exporting a release")
    _baguni("export", str(data), "--run", str(run), "--releases", str(store.root))
    return store.ids()[-1], True


def _baguni(*arguments: str) -> None:
    if subprocess.run([sys.executable, "-m", "baguni.cli", *arguments]).returncode != 0:
        raise BaguniError(f"`baguni {' '.join(arguments)}` failed")


def _activate_first(settings: StackSettings, release_id: str) -> None:
    store = ReleaseStore(settings.endpoints().releases)
    if store.active_id() != release_id:
        store.point_to(release_id)  # nothing serves yet: `bring_up` loads it before the gateway comes up


def _play(settings: StackSettings, release: Release) -> Freshness:
    endpoints = settings.endpoints()
    dataset = load_dataset(settings.root / "complete-journey")
    orders = next_orders(dataset)
    _heading("Loading histories up to December into Redis")
    _load_histories(dataset, endpoints.redis_url)
    gateway = GatewayClient(endpoints.gateway_address)
    producer = KafkaProducer(bootstrap_servers=endpoints.kafka_bootstrap, acks="all", linger_ms=0)
    try:
        _heading("Recommending, then playing what the households really did next")
        shown = [Shown(order) for order in orders[:SHOWN_HOUSEHOLDS]]
        click_s, order_s = [], []
        timed = orders[:TIMED_HOUSEHOLDS]
        first_lists = {order.user_id: recommend(gateway, order.user_id, order.time_ms) for order in timed}
        for household in shown:
            household.before = ids(first_lists[household.order.user_id])
        user_ids = [household.order.user_id for household in shown]
        generated = gateway.generate_top_items(
            recommendation_pb2.GenerateTopItemsRequest(user_ids=user_ids, k=LIST_LENGTH)
        )
        for household, user in zip(shown, generated.users, strict=True):
            household.generated = [item.item_id for item in user.items]
        for order in track(timed, "clicks and orders", console=console):
            click_s.append(send_and_wait(producer, gateway, order, clicks(order)))
            after_clicks = ids(recommend(gateway, order.user_id, order.time_ms))
            order_s.append(send_and_wait(producer, gateway, order, [order_placed(order)]))
            for household in shown:
                if household.order is order:
                    household.after_clicks = after_clicks
                    household.after_order = ids(recommend(gateway, order.user_id, order.time_ms + MINUTE_MS))
        measured = Freshness(click_s, order_s, *new_item(producer, gateway, timed[0]))
        for household in shown:
            console.print(*household_tables(household, release))
        console.print(timing_table(measured))
        _heading("Pushing the households' next items through a campaign into a local Braze")
        pushed = push_campaign(endpoints, [order.user_id for order in timed], PUSHED_ITEMS)
        console.print(pushed_table(pushed, release))
        console.print(*metrics_tables(release.metrics))
        return measured
    finally:
        producer.close()
        gateway.close()


def _load_histories(dataset: Dataset, redis_url: str) -> None:
    """Store every household's events before December in place of those of an earlier demo."""
    past = dataset.before(last_month_start_ms(dataset))
    with connect(redis_url) as client:
        writer = HistoryWriter(client)
        users = range(len(past.user_ids))
        for first in track(users[::50], "histories", console=console):
            chosen = users[first : first + 50]
            histories = {past.user_ids[user]: past.history(user) for user in chosen}
            writer.drop(list(histories))
            writer.apply({user_id: events for user_id, events in histories.items() if events})


def _how_to_call(settings: StackSettings) -> None:
    console.print(
        f"The stack is up; gRPC at {settings.endpoints().gateway_address} (reflection is on).\n"
        "  baguni recommend 1000      baguni top-items 1000      baguni similar 995242\n"
        "  baguni user show 1000      baguni status              baguni down"
    )


def _heading(text: str) -> None:
    console.rule(f"[bold]{text}")
