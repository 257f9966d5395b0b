"""`baguni demo`: from nothing to live recommendations on a year of real grocery orders.

Train and publish (once), start the stack, load every household's history up to December, ask for lists, then play what
the households really did next into Kafka, and watch their lists follow. Nothing is staged: the December orders were never
trained on, and every number is measured while it runs.
"""

from __future__ import annotations

import signal
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from kafka import KafkaProducer
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from baguni.cli.lists import item_name
from baguni.cli.metrics_tables import metrics_tables
from baguni.clients.gateway import GatewayClient
from baguni.domain.errors import BaguniError, NotFoundError
from baguni.domain.events import producible
from baguni.domain.release import Release, ReleaseStore
from baguni.stores.history_store import HistoryWriter
from baguni.stores.redis_client import connect
from baguni.v1 import events_pb2, recommendation_pb2
from benchmarks.result import Row, write_result
from deploy.local.bring_up import bring_up
from deploy.local.demo_campaign import push_campaign
from deploy.local.settings import StackSettings
from deploy.local.stack import LocalStack
from trainer.data.dataset import Dataset
from trainer.data.reading import load_dataset
from trainer.data.splits import last_month_start_ms

LIST_LENGTH = 10
SHOWN_HOUSEHOLDS = 3
TIMED_HOUSEHOLDS = 30
PUSHED_ITEMS, SHOWN_PUSHES = 3, 5
MIN_EARLIER_ORDERS, MIN_ITEMS = 15, 6
VISIBLE_WITHIN_S = 10.0
MINUTE_MS = 60_000
console = Console()


@dataclass(frozen=True)
class NextOrder:
    """What a household really ordered next: `time_ms` is when, `item_ids` what."""

    user_id: str
    order_id: str
    time_ms: int
    item_ids: tuple[str, ...]


@dataclass
class Shown:
    """One household in the final table."""

    order: NextOrder
    before: list[str] = field(default_factory=list)
    generated: list[str] = field(default_factory=list)
    after_clicks: list[str] = field(default_factory=list)
    after_order: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Measured:
    """What the demo measured of freshness, in seconds."""

    clicks_s: list[float]
    orders_s: list[float]
    new_item_searchable_s: float
    new_item_recommended_s: float


def run_demo(settings: StackSettings, keep: bool, results: Path | None = None) -> None:
    """The whole demo; stops what it started, also when interrupted, unless `keep`. `results`: a file for its numbers."""
    started = time.monotonic()
    stack = LocalStack(settings)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a terminated demo cleans up like an interrupted one
    try:
        release_id, trained = _release(settings)
        _heading("Starting the local stack")
        _activate_first(settings, release_id)
        bring_up(settings)
        release = ReleaseStore(settings.endpoints().releases).get(release_id, verify=False)
        measured = _play(settings, release)
        seconds = time.monotonic() - started
        console.print(f"\nDone in {seconds:.0f} s.")
        if results is not None:
            write_result(results, "demo", "make bench-demo", _rows(measured, release, seconds, trained))
        if keep:
            _how_to_call(settings)
    finally:
        if not keep:
            with console.status("stopping the stack …"):
                stack.stop()


def _release(settings: StackSettings) -> tuple[str, bool]:
    """The demo's release, and whether it was made now: the one that is there, or one from data, training and export."""
    store = ReleaseStore(settings.endpoints().releases)
    existing = [i for i in store.ids() if store.get(i, verify=False).manifest.get("dataset") == "complete-journey"]
    if existing:
        console.print(f"Using release {existing[-1]} (delete {store.root} to train again).")
        return existing[-1], False
    data, run = settings.root / "complete-journey", settings.root / "training"
    _heading("Preparing Complete Journey")
    _baguni("data", "prepare", "complete-journey", str(data))
    _heading("Fitting Semantic IDs, training both heads, distilling, evaluating")
    _baguni("train", str(data), "--run", str(run))
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


def _play(settings: StackSettings, release: Release) -> Measured:
    endpoints = settings.endpoints()
    dataset = load_dataset(settings.root / "complete-journey")
    orders = _next_orders(dataset)
    _heading("Loading histories up to December into Redis")
    _load_histories(dataset, endpoints.redis_url)
    gateway = GatewayClient(endpoints.gateway_address)
    producer = KafkaProducer(bootstrap_servers=endpoints.kafka_bootstrap, acks="all", linger_ms=0)
    try:
        _heading("Recommending, then playing what the households really did next")
        shown = [Shown(order) for order in orders[:SHOWN_HOUSEHOLDS]]
        click_s, order_s = [], []
        timed = orders[:TIMED_HOUSEHOLDS]
        first_lists = {order.user_id: _recommend(gateway, order.user_id, order.time_ms) for order in timed}
        for household in shown:
            household.before = _ids(first_lists[household.order.user_id])
        user_ids = [household.order.user_id for household in shown]
        generated = gateway.generate_top_items(
            recommendation_pb2.GenerateTopItemsRequest(user_ids=user_ids, k=LIST_LENGTH)
        )
        for household, user in zip(shown, generated.users, strict=True):
            household.generated = [item.item_id for item in user.items]
        for order in track(timed, "clicks and orders", console=console):
            click_s.append(_send_and_wait(producer, gateway, order, _clicks(order)))
            after_clicks = _ids(_recommend(gateway, order.user_id, order.time_ms))
            order_s.append(_send_and_wait(producer, gateway, order, [_order_placed(order)]))
            for household in shown:
                if household.order is order:
                    household.after_clicks = after_clicks
                    household.after_order = _ids(_recommend(gateway, order.user_id, order.time_ms + MINUTE_MS))
        measured = Measured(click_s, order_s, *_new_item(producer, gateway, timed[0]))
        for household in shown:
            console.print(*household_tables(household, release))
        console.print(timing_table(measured))
        _heading("Pushing the households' next items through a campaign into a local Braze")
        pushed = push_campaign(endpoints, [order.user_id for order in timed], PUSHED_ITEMS)
        console.print(_pushed_table(pushed, release))
        console.print(*metrics_tables(release.metrics))
        return measured
    finally:
        producer.close()
        gateway.close()


def _next_orders(dataset: Dataset) -> list[NextOrder]:
    """The first December order of households with enough of a past, in a fixed order."""
    orders, start_ms, seen = dataset.orders(), last_month_start_ms(dataset), dict[int, int]()
    found = []
    for user, time_ms, number, first, last in zip(
        orders.user_O.tolist(),
        orders.time_O.tolist(),
        orders.number_O.tolist(),
        orders.first_O.tolist(),
        orders.last_O.tolist(),
        strict=True,
    ):
        if time_ms < start_ms:
            seen[user] = seen.get(user, 0) + 1
        elif seen.pop(user, 0) >= MIN_EARLIER_ORDERS and last - first >= MIN_ITEMS:
            item_ids = tuple(dataset.catalog.items[i].item_id for i in orders.item_P[first:last].tolist())
            found.append(NextOrder(dataset.user_ids[user], dataset.order_ids[number], time_ms, item_ids))
    return found


def _load_histories(dataset: Dataset, redis_url: str) -> None:
    """Every household's events before December, replacing what an earlier demo left."""
    past = dataset.before(last_month_start_ms(dataset))
    with connect(redis_url) as client:
        writer = HistoryWriter(client)
        users = range(len(past.user_ids))
        for first in track(users[::50], "histories", console=console):
            chosen = users[first : first + 50]
            histories = {past.user_ids[user]: past.history(user) for user in chosen}
            writer.drop(list(histories))
            writer.apply({user_id: events for user_id, events in histories.items() if events})


def _recommend(gateway: GatewayClient, user_id: str, now_ms: int) -> recommendation_pb2.RecommendResponse:
    request = recommendation_pb2.RecommendRequest(
        user_id=user_id, placement="home", page_size=LIST_LENGTH, now=_timestamp(now_ms)
    )
    return gateway.recommend(request)


def _ids(response: recommendation_pb2.RecommendResponse) -> list[str]:
    return [item.item_id for item in response.items]


def _clicks(order: NextOrder) -> list[Message]:
    """The household looks at two of the items that it will order."""
    return [
        events_pb2.ItemClicked(
            user_id=order.user_id, item_id=item_id, event_time=_timestamp(order.time_ms - (2 - n) * MINUTE_MS)
        )
        for n, item_id in enumerate(order.item_ids[:2])
    ]


def _order_placed(order: NextOrder) -> events_pb2.OrderPlaced:
    lines = [events_pb2.OrderLine(item_id=item_id) for item_id in order.item_ids]
    when = _timestamp(order.time_ms)
    return events_pb2.OrderPlaced(user_id=order.user_id, order_id=order.order_id, lines=lines, event_time=when)


def _send_and_wait(
    producer: KafkaProducer, gateway: GatewayClient, order: NextOrder, messages: Sequence[Message]
) -> float:
    """Seconds from handing the events to Kafka until `Recommend` gives another list because of them."""
    now_ms = order.time_ms + MINUTE_MS
    before = _recommend(gateway, order.user_id, now_ms)
    started = time.monotonic()
    for message in messages:
        _send(producer, message)
    while time.monotonic() - started < VISIBLE_WITHIN_S:
        after = _recommend(gateway, order.user_id, now_ms)
        if after.history_version > before.history_version and after.items != before.items:
            return time.monotonic() - started
        time.sleep(0.005)
    raise BaguniError(f"the events of household {order.user_id} did not show within {VISIBLE_WITHIN_S:.0f} s")


def _new_item(producer: KafkaProducer, gateway: GatewayClient, order: NextOrder) -> tuple[float, float]:
    """Seconds until an item that training never saw has neighbours, and until it is in a list."""
    unseen = uuid.uuid4().hex[:8]  # by an earlier demo either
    message = events_pb2.ItemUpserted(
        item_id=f"demo-{unseen}",
        title="Oat drink barista edition, unsweetened, 33 oz",
        category_path=["Grocery", "Fluid milk products", "Oat drink"],
        attributes={"brand": events_pb2.AttributeValue(string_value=f"Demo {unseen}")},
        event_time=_timestamp(int(time.time() * 1000)),
    )
    started = time.monotonic()
    _send(producer, message)
    searchable = _wait_for(lambda: _neighbours(gateway, message.item_id), started)
    only_new = recommendation_pb2.Filter(
        attribute="brand", any_of=recommendation_pb2.StringSet(values=[message.attributes["brand"].string_value])
    )
    request = recommendation_pb2.RecommendRequest(
        user_id=order.user_id, page_size=LIST_LENGTH, filters=[only_new], now=_timestamp(order.time_ms)
    )
    recommended = _wait_for(lambda: message.item_id in _ids(gateway.recommend(request)), started)
    return searchable, recommended


def _neighbours(gateway: GatewayClient, item_id: str) -> bool:
    request = recommendation_pb2.SimilarItemsRequest(
        item_id=item_id, space=recommendation_pb2.SPACE_CONTENT, page_size=LIST_LENGTH
    )
    try:
        return len(gateway.similar_items(request).items) > 0
    except NotFoundError:
        return False


def _wait_for(condition: object, started: float) -> float:
    assert callable(condition)
    while not condition():
        if time.monotonic() - started > VISIBLE_WITHIN_S:
            raise BaguniError(f"the new item did not show within {VISIBLE_WITHIN_S:.0f} s")
        time.sleep(0.02)
    return time.monotonic() - started


def _send(producer: KafkaProducer, message: Message) -> None:
    producer.send(**producible(message, uuid.uuid4().hex, "baguni/demo")).get(timeout=10)


def household_tables(household: Shown, release: Release) -> Iterator[Table]:
    """Yield the lists before any event and after the household's events, two side by side."""
    true = set(household.order.item_ids)
    when = datetime.fromtimestamp(household.order.time_ms / 1000, UTC).strftime("%d %B %Y %H:%M UTC")
    user_id = household.order.user_id
    pairs = {
        f"Household {user_id} ordered {len(true)} items on {when}": {
            "retrieval": household.before,
            "generative": household.generated,
        },
        f"Household {user_id} after events": {
            "after 2 clicks": household.after_clicks,
            "after the order": household.after_order,
        },
    }
    for title, columns in pairs.items():
        table = Table(title=title, caption="[green]✓ in that order[/], · not", show_lines=False)
        table.add_column("")
        for name, items in columns.items():
            table.add_column(f"{name}: {len(true & set(items))} of {len(items)} hit", overflow="fold")
        for position in range(LIST_LENGTH):
            cells = [
                _cell(items[position], true, release) if position < len(items) else "" for items in columns.values()
            ]
            table.add_row(str(position + 1), *cells)
        yield table


def _cell(item_id: str, true: set[str], release: Release) -> str:
    name = item_name(release.catalog, item_id)
    return f"[green]✓ {escape(name)}[/]" if item_id in true else f"· {escape(name)}"


def _pushed_table(pushed: dict[str, list[str]], release: Release) -> Table:
    table = Table(
        "household", "pushed next", title=f"Attributes of {len(pushed)} users in Braze, the first {SHOWN_PUSHES}"
    )
    for user_id, item_ids in list(pushed.items())[:SHOWN_PUSHES]:
        table.add_row(user_id, ", ".join(item_name(release.catalog, item_id) for item_id in item_ids))
    return table


def timing_table(measured: Measured) -> Table:
    """Return how long each kind of event took to change an answer, in ms."""
    table = Table("from Kafka to a changed answer", "median", "slowest", "how many", title="How fast events show")
    for name, seconds in (
        ("clicks → Recommend", measured.clicks_s),
        ("order → Recommend", measured.orders_s),
        ("new item → SimilarItems", [measured.new_item_searchable_s]),
        ("new item → Recommend", [measured.new_item_recommended_s]),
    ):
        median, worst = statistics.median(seconds), max(seconds)
        table.add_row(name, f"{median * 1000:.0f} ms", f"{worst * 1000:.0f} ms", str(len(seconds)))
    return table


def _rows(measured: Measured, release: Release, seconds: float, trained: bool) -> list[Row]:
    """The demo's promises beside what was measured."""
    order_s, searchable_s = statistics.median(measured.orders_s), measured.new_item_searchable_s
    recommended_s, training_s = measured.new_item_recommended_s, float(release.metrics["training_s"])
    hit_rate = {model: settings["all"]["HR@10"] for model, settings in release.metrics["models"].items()}
    popularity, distilled = hit_rate["global popularity"], hit_rate["retrieval, distilled"]
    limit_s = 25 * 60 if trained else 90
    what = "demo with training, without set-up" if trained else "demo on a release that is there"
    against = ("global popularity", popularity)
    return [
        Row("order in Kafka to changed Recommend, median", order_s, "s", "≤ 1 s", order_s <= 1),
        Row("new item to SimilarItems", searchable_s, "s", "≤ 5 s", searchable_s <= 5),
        Row("new item to Recommend", recommended_s, "s", "≤ 5 s", recommended_s <= 5),
        Row("training", training_s, "s", "≤ 480 s", training_s <= 480),
        Row(what, seconds, "s", f"≤ {limit_s} s", seconds <= limit_s),
        Row(
            "HR@10, distilled retrieval head",
            distilled,
            "",
            "clearly above popularity",
            distilled > 1.2 * popularity,
            *against,
        ),
        *(
            Row(f"HR@10, {model}", value, "", "reported", True, *against)
            for model, value in hit_rate.items()
            if model in ("retrieval before distillation", "generative")
        ),
    ]


def _how_to_call(settings: StackSettings) -> None:
    console.print(
        f"The stack is up; gRPC at {settings.endpoints().gateway_address} (reflection is on).\n"
        "  baguni recommend 1000      baguni top-items 1000      baguni similar 995242\n"
        "  baguni user show 1000      baguni status              baguni down"
    )


def _timestamp(time_ms: int) -> Timestamp:
    return Timestamp(seconds=time_ms // 1000, nanos=time_ms % 1000 * 1_000_000)


def _heading(text: str) -> None:
    console.rule(f"[bold]{text}")
