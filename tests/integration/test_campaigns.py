"""`baguni crm run` over the real gateway, broker and Redis, and the local Braze: who is pushed what, once."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import redis
import yaml
from kafka import KafkaAdminClient
from kafka.admin import NewTopic

from baguni.clients.topics import TopicReader
from baguni.domain.history import Action, Deletion, HistoryEvent
from baguni.settings import Endpoints
from baguni.stores.history_store import HistoryWriter
from baguni.v1 import campaigns_pb2
from deploy.local.braze_process import KEY, BrazeProcess, braze_process
from deploy.local.demo.campaign import push_campaign
from deploy.local.settings import free_port
from tests.waiting import COMMAND_S, WAIT_S, eventually

pytestmark = [pytest.mark.stack, pytest.mark.slow]
DAY_MS = 86_400_000
USERS = 60


@pytest.fixture(scope="module")
def shoppers(running: Endpoints) -> list[str]:
    """Users with an order each, of last week."""
    user_ids = [f"pushed-{number:03}" for number in range(USERS)]
    when = int(time.time() * 1000) - 7 * DAY_MS
    with redis.Redis.from_url(running.redis_url) as client:
        HistoryWriter(client).apply({user_id: ordered(when, "bread-rye", "milk-fresh") for user_id in user_ids})
    return user_ids


@pytest.fixture(scope="module")
def braze() -> Iterator[BrazeProcess]:
    with braze_process() as process:
        yield process


@pytest.fixture
def shop(running: Endpoints, tmp_path: Path, shoppers: list[str]) -> Shop:
    (tmp_path / "users.csv").write_text("user_id,score\n" + "".join(f"{user},{n}\n" for n, user in enumerate(shoppers)))
    return Shop(running, tmp_path)


class Shop:
    """A folder with an audience and campaigns, and the command."""

    def __init__(self, endpoints: Endpoints, folder: Path) -> None:
        self._endpoints, self.folder = endpoints, folder

    def campaign(self, **content: Any) -> Path:
        path = self.folder / f"{content['name']}.yaml"
        audience = {"file": {"path": "users.csv"}}
        path.write_text(yaml.safe_dump({"items_per_user": 3, "audience": audience, **content}))
        return path

    def start(self, *arguments: str, **settings: str) -> subprocess.Popen[str]:
        environment = {
            **os.environ,
            **self._endpoints.environment(),
            "BAGUNI_CRM_STATE": str(self.folder / "state"),
            "BAGUNI_CRM_BRAZE_KEY": KEY,
            "COLUMNS": "200",
            **settings,
        }
        command = [sys.executable, "-m", "baguni.cli", "crm", *arguments]
        return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def crm(self, *arguments: str, status: int = 0, **settings: str) -> str:
        process = self.start(*arguments, **settings)
        output, errors = process.communicate(timeout=COMMAND_S)
        assert process.returncode == status, output + errors
        return output + errors

    def steps(self) -> int:
        """How far its runs are: users prepared, and handed to sinks."""
        path = self.folder / "state" / "state.sqlite"
        try:
            with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
                query = "SELECT (SELECT COUNT(*) FROM sent) + (SELECT COUNT(*) FROM delivery WHERE state = 'prepared')"
                return int(database.execute(query).fetchone()[0])
        except sqlite3.OperationalError:
            return 0  # there is none yet

    def rows(self, name: str) -> list[dict[str, str]]:
        with (self.folder / name).open() as file:
            return list(csv.DictReader(file))


def ordered(time_ms: int, *item_ids: str) -> list[HistoryEvent]:
    return [HistoryEvent(item_id, Action.ORDERED, time_ms, f"o-{time_ms}") for item_id in item_ids]


def lists(rows: list[dict[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row in rows:
        assert int(row["position"]) == len(found.setdefault(row["user_id"], []))
        found[row["user_id"]].append(row["item_id"])
    return found


def test_a_list_for_everybody_in_a_file_of_allowed_items_only(shop: Shop, shoppers: list[str]) -> None:
    bread = {"filters": [{"attribute": "category", "any_of": ["GROCERY > BREAD"]}], "exclude": ["bread-white"]}
    for suffix in ("csv", "parquet"):
        path = shop.campaign(name=f"bread-{suffix}", items=bread, sinks=[{"file": {"path": f"out.{suffix}"}}])
        assert "finished" in shop.crm("run", str(path))
    found = lists(shop.rows("out.csv"))
    assert sorted(found) == shoppers
    assert all(len(items) == 3 for items in found.values())
    assert {item.split("-")[0] for items in found.values() for item in items} == {"bread"}
    assert not any("bread-white" in items for items in found.values())
    table = pq.read_table(shop.folder / "out.parquet")
    assert table["item_id"].to_pylist() == [row["item_id"] for row in shop.rows("out.csv")]


def test_an_audience_by_columns_of_a_file(shop: Shop, shoppers: list[str]) -> None:
    where = [{"column": "score", "at_least": 10, "at_most": 19}]
    audience = {"file": {"path": "users.csv", "where": where}}
    shop.crm("run", str(shop.campaign(name="some", audience=audience, sinks=[{"file": {"path": "out.csv"}}])))
    assert sorted(lists(shop.rows("out.csv"))) == shoppers[10:20]


def test_an_audience_by_histories(shop: Shop, running: Endpoints) -> None:
    now_ms = int(time.time() * 1000)
    with redis.Redis.from_url(running.redis_url) as client:
        HistoryWriter(client).apply(
            {
                "soap-now": ordered(now_ms - DAY_MS, "soap-rye"),
                "soap-then": ordered(now_ms - 90 * DAY_MS, "soap-rye"),
                "soap-and-beer": ordered(now_ms - DAY_MS, "soap-rye", "beer-aged"),
            }
        )
    asked = {
        "did": [{"action": "ordered", "category": "HOUSEHOLD", "within_days": 30}],
        "did_not": [{"action": "ordered", "item_ids": ["beer-aged"]}],
    }
    path = shop.campaign(name="soap", audience={"histories": asked}, sinks=[{"file": {"path": "out.csv"}}])
    shop.crm("run", str(path))
    found = lists(shop.rows("out.csv"))
    assert "soap-now" in found
    assert not {"soap-then", "soap-and-beer"} & set(found)


def test_quiet_rules(shop: Shop, shoppers: list[str]) -> None:
    """Nothing that was pushed or bought lately, and no third campaign in a week."""
    quiet = {"pushed_days": 7, "bought_days": 30, "campaigns": {"at_most": 2, "days": 7}}
    seen: dict[str, set[str]] = {}
    for number in (1, 2):
        name = f"quiet-{number}"
        shop.crm("run", str(shop.campaign(name=name, quiet=quiet, sinks=[{"file": {"path": f"{name}.csv"}}])))
        found = lists(shop.rows(f"{name}.csv"))
        assert sorted(found) == shoppers
        for user_id, items in found.items():
            assert not {"bread-rye", "milk-fresh"} & set(items)
            assert not seen.setdefault(user_id, set()) & set(items)
            seen[user_id] |= set(items)
    path = shop.campaign(name="quiet-3", quiet=quiet, sinks=[{"file": {"path": "quiet-3.csv"}}])
    assert f"{USERS}" in (output := shop.crm("run", str(path)))
    assert "2 campaigns within 7 days" in output
    assert shop.rows("quiet-3.csv") == []


def test_strangers_get_nothing_unless_the_campaign_says_so(shop: Shop) -> None:
    (shop.folder / "users.csv").write_text("user_id\nnobody-knows-me\n")
    path = shop.campaign(name="strangers", sinks=[{"file": {"path": "out.csv"}}])
    assert "no history" in shop.crm("run", str(path))
    sinks = [{"file": {"path": "out.csv"}}]
    shop.crm("run", str(shop.campaign(name="welcome", popular_for_strangers=True, sinks=sinks)))
    assert {row["cold_start"] for row in shop.rows("out.csv")} == {"true"}


def test_braze_gets_attributes_and_later_only_what_changed(
    shop: Shop, braze: BrazeProcess, shoppers: list[str]
) -> None:
    sinks = [{"braze": {"url": braze.url, "attributes": "offer"}}, {"file": {"path": "out.csv"}}]
    before = Counter(braze.counts())
    shop.crm("run", str(shop.campaign(name="offers", sinks=sinks)))
    found = lists(shop.rows("out.csv"))
    assert all(attributes(braze, user, "offer") == numbered("offer", found[user]) for user in shoppers)
    first = Counter(braze.counts()) - before
    assert (first["attributes"], first["data_points"]) == (USERS, 3 * USERS)
    shop.crm("run", str(shop.campaign(name="offers", items_per_user=2, sinks=sinks)))
    again = Counter(braze.counts()) - before - first
    assert again["data_points"] == USERS  # the third is taken away, the others are as they were
    assert all(attributes(braze, user, "offer") == numbered("offer", found[user][:2]) for user in shoppers)


def test_braze_is_asked_again_when_it_must_be(shop: Shop, braze: BrazeProcess, shoppers: list[str]) -> None:
    """A limit, failures, and a connection that closes: the attributes are there in the end."""
    sinks = [{"braze": {"url": braze.url, "attributes": "patient", "batch": 10}}]
    path = shop.campaign(name="patience", sinks=sinks)
    before = Counter(braze.counts())
    shop.crm("run", str(path), "--dry-run")
    assert Counter(braze.counts()) - before == Counter({"requests": 1, "answered 400": 1})  # it only asked for the key
    braze.break_next({"status": 500}, {"status": 429, "reset_s": 2}, {"drop": True}, {"drop": True, "takes": True})
    started = time.monotonic()
    shop.crm("run", str(path))
    assert time.monotonic() - started > 1
    assert all(len(attributes(braze, user, "patient")) == 3 for user in shoppers)


def test_one_bad_user_fails_alone(shop: Shop, braze: BrazeProcess, shoppers: list[str]) -> None:
    """Braze refuses a batch as a whole: it is halved until the guilty one is alone. Here that is the last one asked for."""
    sinks = [{"braze": {"url": braze.url, "attributes": "halved", "batch": 60}}]
    braze.break_next(*[{"status": 400}] * 6)  # of 60, 30, 15, 7, 3 and 1
    output = shop.crm("run", str(shop.campaign(name="halves", sinks=sinks)))
    failed = [user for user in shoppers if "halved_1" not in attributes(braze, user, "halved")]
    assert len(failed) == 1
    assert failed[0] in output
    assert "braze answered 400" in output


def test_what_was_taken_of_a_halved_batch_is_not_sent_again(
    shop: Shop, braze: BrazeProcess, shoppers: list[str]
) -> None:
    """c4: Braze finds a batch bad, takes its first half, then fails: the next run sends the second half alone."""
    sinks = [{"braze": {"url": braze.url, "attributes": None, "event": "halved", "batch": USERS}}]
    path = str(shop.campaign(name="half-taken", sinks=sinks))
    braze.break_next({"status": 400}, {}, *[{"status": 500}] * 8)
    output = shop.crm("run", path, "--run-id", "monday", status=1, BAGUNI_CRM_BACKOFF_S="0.01")
    assert "braze is unavailable" in output
    assert sorted(events(braze, shoppers, "halved").values()) == [1] * (USERS // 2)
    shop.crm("run", path, "--run-id", "monday")
    assert events(braze, shoppers, "halved") == Counter(dict.fromkeys(shoppers, 1))


def test_an_event_that_may_have_arrived_is_not_sent_again_unless_asked_to(
    shop: Shop, braze: BrazeProcess, shoppers: list[str]
) -> None:
    sinks = [{"braze": {"url": braze.url, "attributes": None, "event": "pushed", "batch": 20}}]
    path = str(shop.campaign(name="events", sinks=sinks))
    braze.break_next({"status": 500}, {"drop": True, "takes": True})
    output = shop.crm("run", path, "--run-id", "monday")
    assert "unknown" in output
    assert events(braze, shoppers) == Counter(dict.fromkeys(shoppers, 1))
    shop.crm("run", path, "--run-id", "monday")
    assert events(braze, shoppers) == Counter(dict.fromkeys(shoppers, 1))
    shop.crm("run", path, "--run-id", "monday", "--resend-unknown")
    assert sorted(Counter(events(braze, shoppers).values()).items()) == [(1, USERS - 20), (2, 20)]


def test_killed_at_any_moment_and_run_again_everybody_is_pushed_once(
    shop: Shop, braze: BrazeProcess, running: Endpoints, shoppers: list[str]
) -> None:
    """kill -9 while it runs, again and again. Of Kafka and files every user has one; of Braze one set of attributes."""
    topic = "baguni.pushes-killed"
    admin = KafkaAdminClient(bootstrap_servers=running.kafka_bootstrap)
    admin.create_topics([NewTopic(topic, 2, 1)])
    admin.close()
    sinks = [
        {"kafka": {"topic": topic}},
        {"braze": {"url": braze.url, "attributes": "killed", "batch": 10}},
        {"file": {"path": "out.parquet"}},
    ]
    path = str(shop.campaign(name="killed", sinks=sinks))
    rng, kills = random.Random(0), 0
    for _ in range(14):
        until = shop.steps() + rng.randrange(1, 20)
        process = shop.start("run", path, "--run-id", "friday", BAGUNI_CRM_BATCH_USERS="4")
        while process.poll() is None and shop.steps() < until:
            time.sleep(0.001)
        kills += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert kills > 7
    assert "finished" in shop.crm("run", path, "--run-id", "friday")
    records = list(TopicReader(running.kafka_bootstrap, [topic], {}))
    pushes = [campaigns_pb2.CampaignPush.FromString(record.value or b"") for record in records]
    assert Counter(push.user_id for push in pushes) == Counter(dict.fromkeys(shoppers, 1))
    table = pq.read_table(shop.folder / "out.parquet").to_pylist()
    assert [row["user_id"] for row in table] == [user for user in shoppers for _ in range(3)]
    for push in pushes:
        listed = [item.item_id for item in push.items]
        assert listed == [row["item_id"] for row in table if row["user_id"] == push.user_id]
        assert numbered("killed", listed).items() <= braze.user(push.user_id)["attributes"].items()


def test_who_asks_to_be_forgotten_between_selection_and_sending_is_not_pushed(
    shop: Shop, braze: BrazeProcess, running: Endpoints
) -> None:
    now_ms = int(time.time() * 1000)
    with redis.Redis.from_url(running.redis_url) as client:
        writer = HistoryWriter(client)
        writer.apply({user: ordered(now_ms - DAY_MS, "bread-rye") for user in ("stays", "leaves")})
        (shop.folder / "users.csv").write_text("user_id\nstays\nleaves\n")
        path = str(shop.campaign(name="farewell", sinks=[{"braze": {"url": braze.url, "attributes": "farewell"}}]))
        braze.break_next({"status": 401})  # it gives up with everybody prepared
        assert "401" in shop.crm("run", path, status=1)
        writer.apply({"leaves": [Deletion(int(time.time() * 1000))]})
    output = shop.crm("run", path)
    assert "asked to be forgotten" in output
    assert len(braze.user("stays")["attributes"]) == 3
    assert braze.user("leaves") == {}


def test_a_wrong_column_of_an_audience_skips_its_texts(shop: Shop, shoppers: list[str]) -> None:
    """A batch of them is more than a gateway takes."""
    texts = [f"{number} " + "sehr lang " * 500 for number in range(300)]
    (shop.folder / "users.csv").write_text("user_id\n" + "".join(f"{each}\n" for each in [*texts, *shoppers]))
    output = shop.crm("run", str(shop.campaign(name="texts", sinks=[{"file": {"path": "out.csv"}}])))
    assert sorted(lists(shop.rows("out.csv"))) == shoppers
    assert "300" in output
    assert "the id is longer than 256 characters" in output


def test_bad_input_is_named_before_anything_is_sent(shop: Shop, braze: BrazeProcess) -> None:
    sink = {"braze": {"url": braze.url}}
    before = braze.counts().get("attributes", 0)

    def refused(name: str, key: str = KEY, **content: Any) -> str:
        path = shop.campaign(**{"name": name, "sinks": [sink], **content})
        return shop.crm("run", str(path), status=1, BAGUNI_CRM_BRAZE_KEY=key)

    assert "no column 'user', expected one of user_id, score" in refused(
        "column", audience={"file": {"path": "users.csv", "column": "user"}}
    )
    assert "no item passes the 1 filters" in refused(
        "nothing", items={"filters": [{"attribute": "price", "range": {"min": 1e6}}]}
    )
    assert "'colour'" in refused("attribute", items={"filters": [{"attribute": "colour", "any_of": ["red"]}]})
    assert "has expired" in refused("key", key="an-old-key")
    assert "BAGUNI_CRM_BRAZE_KEY" in refused("no-key", key="")
    assert "expected exactly one of file, histories, segment" in refused("audience", audience={})
    assert "items_per_user" in refused("number", items_per_user=51)
    assert "quiett" in refused("field", quiett={})
    assert "too large" in refused("bytes", items={"exclude": [f"{number:05}" + "소" * 123 for number in range(5_000)]})
    assert "topic 'nowhere' does not exist" in refused("topic", sinks=[{"kafka": {"topic": "nowhere"}}])
    assert braze.counts().get("attributes", 0) == before


def test_a_run_belongs_to_its_campaign_file(shop: Shop, braze: BrazeProcess) -> None:
    path = str(shop.campaign(name="edited", sinks=[{"braze": {"url": braze.url}}]))
    braze.break_next({"status": 403})
    output = shop.crm("run", path, "--run-id", "first", status=1)
    assert "Not finished" in output
    shop.campaign(name="edited", items_per_user=1, sinks=[{"braze": {"url": braze.url}}])
    assert "another campaign file" in shop.crm("run", path, status=1)
    shop.crm("discard", "first")
    assert "finished" in shop.crm("run", path)
    assert "discarded" in shop.crm("runs")


def test_a_dry_run_shows_exactly_what_is_sent_then(shop: Shop, braze: BrazeProcess, shoppers: list[str]) -> None:
    (shop.folder / "users.csv").write_text("user_id\n" + "".join(f"{user}\n" for user in shoppers[:5]))
    path = str(shop.campaign(name="dry", sinks=[{"braze": {"url": braze.url, "attributes": "dry"}}]))
    shown = [json.loads(line) for line in shop.crm("run", path, "--dry-run").splitlines() if line.startswith("{")]
    assert not any("dry_1" in braze.user(user).get("attributes", {}) for user in shoppers[:5])
    assert "dry" not in shop.crm("runs").replace("dry-run", "")
    shop.crm("run", path)
    (would,) = (line["would_send"]["attributes"] for line in shown)
    assert [one["external_id"] for one in would] == shoppers[:5]
    for one in would:
        expected = {name: value for name, value in one.items() if name != "external_id"}
        assert expected.items() <= braze.user(one["external_id"])["attributes"].items()


def test_the_demos_campaign(running: Endpoints, shoppers: list[str]) -> None:
    pushed = push_campaign(running, shoppers[:5], 3)
    assert list(pushed) == shoppers[:5]
    assert all(len(items) == 3 for items in pushed.values())


def test_connected_content_answers_every_user_at_once(shop: Shop, running: Endpoints, shoppers: list[str]) -> None:
    """200 and items for everybody, their own where the last run has some, within 100 ms."""
    sinks = [{"file": {"path": "out.csv"}}]
    shop.crm("run", str(shop.campaign(name="content", sinks=sinks)))
    own, port, metrics_port = lists(shop.rows("out.csv")), free_port(), free_port()
    server = shop.start(
        "serve",
        "--address",
        f"127.0.0.1:{port}",
        BAGUNI_CRM_CONTENT_TOKEN="let-me-in",
        BAGUNI_METRICS_ADDRESS=f"127.0.0.1:{metrics_port}",
    )

    def ask(user_id: str, campaign: str = "content", k: str = "3", token: str = "let-me-in") -> tuple[int, Any]:
        url = f"http://127.0.0.1:{port}/v1/campaigns/{campaign}/users/{user_id}?k={k}"
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
        try:
            with urllib.request.urlopen(request, timeout=WAIT_S) as reply:
                return reply.status, json.load(reply)
        except urllib.error.HTTPError as error:
            return error.code, {}

    def is_up() -> bool:
        try:
            return bool(ask("anybody")[1].get("items"))
        except OSError:
            assert server.poll() is None
            return False

    try:
        eventually(is_up, "the content server answers with items")
        for user_id in shoppers:
            status, answer = ask(user_id)
            assert (status, answer["items"], answer["source"]) == (200, own[user_id], "generated")
        with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics", timeout=30) as reply:
            told = reply.read().decode()
        assert f'baguni_campaign_users{{campaign="content",state="prepared",where="run"}} {len(own)}.0' in told
        assert f'baguni_content_answers_total{{source="generated"}} {len(shoppers)}.0' in told
        for user_id, campaign, k in (
            ("nobody", "content", "3"),
            (shoppers[0], "no-such", "3"),
            ("nobody", "x", "many"),
        ):
            status, answer = ask(user_id, campaign, k)
            assert (status, answer["source"]) == (200, "popular")
            assert len(answer["items"]) == (3 if k == "3" else 10)
        assert ask(shoppers[0], token="guess")[0] == 401
        with redis.Redis.from_url(running.redis_url) as client:
            HistoryWriter(client).apply({shoppers[-1]: [Deletion(int(time.time() * 1000))]})
            assert ask(shoppers[-1])[1]["source"] == "popular"
            when = int(time.time() * 1000) + 1
            HistoryWriter(client).apply({shoppers[-1]: ordered(when, "bread-rye", "milk-fresh")})
    finally:
        server.terminate()
        server.communicate(timeout=COMMAND_S)
    assert server.returncode == 0


def numbered(prefix: str, items: list[str]) -> dict[str, str]:
    return {f"{prefix}_{place}": item for place, item in enumerate(items, start=1)}


def attributes(braze: BrazeProcess, user_id: str, prefix: str) -> dict[str, str]:
    """Return a user's attributes of one campaign; other tests' campaigns write theirs."""
    return {k: v for k, v in braze.user(user_id).get("attributes", {}).items() if k.startswith(f"{prefix}_")}


def events(braze: BrazeProcess, user_ids: list[str], name: str = "pushed") -> Counter[str]:
    """Count the event of each user; those who have none are left out."""
    counts = {user: sum(event["name"] == name for event in braze.user(user).get("events", ())) for user in user_ids}
    return Counter({user: count for user, count in counts.items() if count})
