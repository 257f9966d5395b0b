"""Delivering: what a sink may have taken is not sent again, whatever went wrong after it took it."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import cycle
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka import KafkaAdminClient
from kafka.admin import NewTopic
from kafka.errors import KafkaTimeoutError

from baguni.domain.errors import BaguniError, InvalidInputError, UnavailableError
from baguni.domain.events import MAX_ID_LENGTH
from baguni.domain.history import History
from baguni.stores.forgotten import ForgottenUsers
from baguni.stores.history_store import HistoryWriter
from baguni.stores.redis_client import connect
from baguni.v1 import recommendation_pb2 as pb
from crm import state as crm_state
from crm.campaign import Audience, BrazeSink, Campaign, FileAudience, FileSink, KafkaSink, SinkChoice
from crm.job import MAX_UNKNOWN, NO_ID, Job, Parts
from crm.settings import CrmSettings
from crm.sinks import Sent, UncertainError
from crm.sinks import braze as braze_sink
from crm.sinks.braze import LONGEST_RESET_S, Braze
from crm.sinks.kafka import PushTopic
from crm.state import CampaignState, Push, PushedItem, Run
from deploy.local.braze_process import KEY, BrazeProcess, braze_process
from tests.waiting import WAIT_S

pytestmark = pytest.mark.stack
DELIVER = Callable[[Any, Sequence[str]], tuple[Job, Run]]
DEEP = (100, 300, 500, 800, 900, 950, 980, 990, 1_000, 100_000)
ODD_ANSWERS = [
    '{"message": "success", "errors": null}',
    '{"message": "success", "errors": 5}',
    '{"message": "success", "errors": "none"}',
    '{"message": "success", "errors": {"index": 0}}',
    '{"message": null, "errors": [null, 5, "x", [], {}, {"index": 0}, {"index": true, "input_array": ["events"]}]}',
    '{"errors": [{"index": -1, "input_array": "events"}, {"index": 1e99, "input_array": "events"}]}',
    '{"errors": [{"index": 99, "input_array": "events"}, {"index": 0, "input_array": "purchases"}]}',
    *(
        "",
        " ",
        "null",
        "0",
        "NaN",
        "[]",
        '"success"',
        "\u0000",
        "<html>",
        "9" * 5_000,
        '{"message": ' + "9" * 5_000 + "}",
    ),
    *("[" * depth for depth in DEEP),
    *("[" * depth + "]" * depth for depth in DEEP),
    *('{"errors": [' + "[" * depth + "]" * depth + "]}" for depth in DEEP),
    *('{"message": ' + '{"a":' * depth + "1" + "}" * depth + "}" for depth in DEEP),
]
ODD_RESETS = ["nan", "-nan", "inf", "-inf", "1e999", "-1e999", "", "soon", "-1", "0", "0x10", "1_0", "1e3"]


@pytest.fixture(scope="module")
def braze() -> Iterator[BrazeProcess]:
    with braze_process() as process:
        yield process


@pytest.fixture
def state(tmp_path: Path) -> Iterator[CampaignState]:
    with closing(CampaignState(tmp_path / "state")) as opened:
        yield opened


@pytest.fixture
def prepared(state: CampaignState, lone_redis: str, tmp_path: Path) -> Iterator[DELIVER]:
    """Return a job with one sink, and a run in which these users are prepared."""
    settings = CrmSettings(redis_url=lone_redis, crm_state=tmp_path / "state", crm_braze_key=KEY, crm_backoff_s=0.01)
    with closing(settings.gateway()) as gateway, connect(lone_redis) as client:

        def job_for(sink: SinkChoice, user_ids: Sequence[str]) -> tuple[Job, Run]:
            audience = Audience(file=FileAudience(path=tmp_path / "users.csv"))
            campaign = Campaign(name="taken", audience=audience, sinks=(sink,))
            job = Job(campaign, Parts(settings, state, gateway, HistoryWriter(client), ForgottenUsers(client)))
            run = job.begin("monday")
            state.select(run.run_id, user_ids)
            state.prepare(run.run_id, [Push(user, (PushedItem("rye", -1.0),), "r1") for user in user_ids], {})
            return job, run

        yield job_for


def events(braze: BrazeProcess, name: str) -> Counter[str]:
    """Count the events of a name by user."""
    found = {user: sum(event["name"] == name for event in held["events"]) for user, held in braze.users().items()}
    return Counter({user: count for user, count in found.items() if count})


def test_events_are_sent_once_whatever_braze_answers(
    prepared: DELIVER, state: CampaignState, braze: BrazeProcess
) -> None:
    """A 201 with `"errors": null` ended the run as if nothing was taken: each run sent the events again."""
    user_ids = [f"u{number:03}" for number in range(max(len(ODD_ANSWERS), len(ODD_RESETS)))]
    job, run = prepared(SinkChoice(braze=BrazeSink(url=braze.url, attributes=None, event="odd", batch=1)), user_ids)
    braze.break_next(*({"body": answer, "takes": True} for answer in ODD_ANSWERS))
    with closing(job):
        for _ in range(2):
            job.deliver(run)
            assert events(braze, "odd") == Counter(user_ids)
            assert state.counts(run.run_id)[job.sinks[0].name] == {"sent": len(user_ids)}


def test_no_time_of_a_limit_ends_a_run(
    prepared: DELIVER, state: CampaignState, braze: BrazeProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    user_ids = [f"u{number:03}" for number in range(len(ODD_RESETS))]
    job, run = prepared(SinkChoice(braze=BrazeSink(url=braze.url, attributes=None, event="limits", batch=1)), user_ids)
    headers = ({"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": reset} for reset in cycle(ODD_RESETS))
    braze.break_next(*({"body": "{}", "headers": next(headers), "takes": True} for _ in user_ids))
    with closing(job):
        job.deliver(run)
    assert events(braze, "limits") == Counter(user_ids)
    assert state.counts(run.run_id)[job.sinks[0].name] == {"sent": len(user_ids)}


@given(st.one_of(st.text(), st.floats().map(str), st.integers().map(str)))
def test_a_limit_is_reset_in_finite_time(reset: str) -> None:
    assert 0 <= min(braze_sink._reset_s({"x-ratelimit-reset": reset}), LONGEST_RESET_S) <= LONGEST_RESET_S


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.sampled_from(["message", "errors", "index", "input_array"]), inner)
    ),
)


@given(JSON, st.integers(-2, 3) | JSON, st.sampled_from(["events", "attributes", "purchases"]) | JSON)
def test_any_answer_fails_users_of_the_batch_or_nobody(answer: Any, index: Any, array: Any) -> None:
    errors = [answer, {"index": index, "input_array": array}]
    for body in (answer, {"errors": answer}, {"errors": errors}, {"message": answer, "errors": [errors]}):
        read = braze_sink._json(json.dumps(body).encode())
        failed = braze_sink._refused(read, {"events": ["a", "b"], "attributes": ["a"]})
        assert failed.keys() <= {"a", "b"}
        assert len(braze_sink._message(read)) <= braze_sink.MAX_SHOWN


def attributes(braze: BrazeProcess, user_id: str) -> dict[str, str]:
    return dict(braze.users().get(user_id, {"attributes": {}})["attributes"])


@pytest.mark.parametrize("status", sorted(braze_sink.IN_BETWEEN))
def test_what_a_proxy_answers_says_nothing_of_an_event(
    prepared: DELIVER, state: CampaignState, braze: BrazeProcess, status: int
) -> None:
    name = f"by proxy {status}"
    job, run = prepared(SinkChoice(braze=BrazeSink(url=braze.url, attributes=None, event=name, batch=1)), ["a", "b"])
    braze.break_next({"status": status, "takes": True})
    with closing(job):
        job.deliver(run)
    assert events(braze, name) == Counter(["a", "b"])
    assert state.counts(run.run_id)[job.sinks[0].name] == {"sent": 1, "unknown": 1}


def test_a_run_stops_before_everybody_is_unknown(prepared: DELIVER, state: CampaignState, braze: BrazeProcess) -> None:
    user_ids = [f"u{number:02}" for number in range(2 * MAX_UNKNOWN)]
    job, run = prepared(SinkChoice(braze=BrazeSink(url=braze.url, attributes=None, event="away", batch=1)), user_ids)
    braze.break_next(*({"status": 504} for _ in range(MAX_UNKNOWN)))
    with closing(job):
        with pytest.raises(UnavailableError, match="no clear answer"):
            job.deliver(run)
        assert state.counts(run.run_id)[job.sinks[0].name] == {"unknown": MAX_UNKNOWN}
        job.deliver(run)
    assert events(braze, "away") == Counter(user_ids[MAX_UNKNOWN:])


DOUBTS: list[dict[str, Any]] = [
    {"drop": True, "takes": True},
    {"drop": True},
    {"status": 504, "takes": True},
    {"body": '{"errors": [{"index": 0, "input_array": "events", "type": "no"}]}', "takes": True},
]


@pytest.mark.parametrize("event", [None, "offered"])
@pytest.mark.parametrize("fault", DOUBTS, ids=["taken", "not taken", "proxy", "half refused"])
def test_attributes_are_right_after_an_answer_that_was_lost(
    state: CampaignState, braze: BrazeProcess, fault: dict[str, Any], event: str | None
) -> None:
    """A lost answer leaves Braze with other values, and with a list of another length, than those that were told before."""
    user_id = f"{fault} {event}"
    sink = SinkChoice(braze=BrazeSink(url=braze.url, attributes="offer", event=event))
    lists = (["A"], ["B", "C", "D"], ["A"])
    for number, items in enumerate(lists):
        run = begun(state, number, user_id, items)
        if number == 1:
            braze.break_next(fault)
        with closing(job_of(state, sink)) as job:
            job.deliver(run)
    assert attributes(braze, user_id) == {"offer_1": "A"}


def job_of(state: CampaignState, *sinks: SinkChoice, key: str = KEY) -> Job:
    """A job whose users are prepared, and never asked to be forgotten."""
    audience = Audience(file=FileAudience(path=Path("users.csv")))
    settings = CrmSettings(crm_state=state.folder, crm_braze_key=key, crm_backoff_s=0.01)
    parts: Any = SimpleNamespace(settings=settings, state=state, gateway=None, histories=Nobody(), forgotten=None)
    return Job(Campaign(name="offers", audience=audience, sinks=sinks), parts)


class Nobody:
    """Histories of users who did nothing."""

    def read(self, user_ids: Sequence[str]) -> list[History]:
        return [History() for _ in user_ids]


def test_another_key_is_another_workspace(state: CampaignState, braze: BrazeProcess) -> None:
    """Workspaces share hosts: what one was told, the other does not know."""
    with braze_process("another key") as production:
        for number, (key, workspace) in enumerate(((KEY, braze), ("another key", production), (KEY, braze))):
            run = begun(state, number, "m", ["rye"])
            moved = SinkChoice(braze=BrazeSink(url=workspace.url, attributes="moved"))
            with closing(job_of(state, moved, key=key)) as job:
                (its,) = job.sinks
                assert isinstance(its, Braze)
                its.name = "braze rest.example"  # the host that both share
                job.deliver(run)
            assert attributes(workspace, "m") == {"moved_1": "rye"}


def begun(state: CampaignState, number: int, user_id: str, items: Sequence[str]) -> Run:
    """A run in which a user gets a list."""
    run = state.begin(f"run {number}", "offers", "d", 1 + number)
    state.select(run.run_id, [user_id])
    state.prepare(run.run_id, [Push(user_id, tuple(PushedItem(item, -1.0) for item in items), "r1")], {})
    return run


@pytest.mark.parametrize("told_by", ["another key", ""])
def test_a_new_key_of_a_workspace_takes_longer_lists_away(
    state: CampaignState, braze: BrazeProcess, told_by: str
) -> None:
    """Keys are replaced; an earlier version noted none. What was told is there all the same."""
    user_id, sink = f"rotated {told_by}", SinkChoice(braze=BrazeSink(url=braze.url, attributes="offer"))
    for number, items in enumerate((["A", "B", "C"], ["A"])):
        run = begun(state, number, user_id, items)
        with closing(job_of(state, sink)) as job:
            job.deliver(run)
            own = job.sinks[0]._told_by  # type: ignore[union-attr]
        other = f"{hashlib.sha256(told_by.encode()).hexdigest()[:8]} " if told_by else ""
        if number == 0:
            state._db.execute("UPDATE told SET name = ? || substr(name, ?)", (other, len(own) + 1))
    assert attributes(braze, user_id) == {"offer_1": "A"}


def test_attributes_are_right_after_attempts_that_all_seemed_to_fail(
    state: CampaignState, braze: BrazeProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    user_id, sink = "all seemed to fail", SinkChoice(braze=BrazeSink(url=braze.url, attributes="offer"))
    monkeypatch.setattr(braze_sink, "LONGEST_BACKOFF_S", 0.01)
    for number, items in enumerate((["A"], ["B", "C"], ["A"])):
        run = begun(state, number, user_id, items)
        with closing(job_of(state, sink)) as job:
            if number == 1:
                braze.break_next(*[{"status": 504, "takes": True}] * braze_sink.ATTEMPTS)
                with pytest.raises(UnavailableError):
                    job.deliver(run)
                state.discard(run.run_id)
            else:
                job.deliver(run)
    assert attributes(braze, user_id) == {"offer_1": "A"}


def test_attributes_are_right_after_a_run_that_was_killed_and_discarded(
    state: CampaignState, braze: BrazeProcess
) -> None:
    user_id, sink = "killed", SinkChoice(braze=BrazeSink(url=braze.url, attributes="offer", event="killed"))
    for number, items in enumerate((["A"], ["B", "C"], ["A"])):
        run = begun(state, number, user_id, items)
        with closing(job_of(state, sink)) as job:
            if number == 1:
                (its,) = job.sinks
                assert isinstance(its, Braze)
                state.sending(run.run_id, its.name, [user_id])
                its.send(run, state.interrupted(run.run_id, its.name))  # and here the process is killed
                state.discard(run.run_id)
            else:
                job.deliver(run)
    assert attributes(braze, user_id) == {"offer_1": "A"}


def test_two_sinks_of_one_name_are_refused(state: CampaignState, tmp_path: Path) -> None:
    """The second found that everybody had been sent to."""
    both = (BrazeSink(url="https://rest.example"), BrazeSink(url="https://rest.example", attributes=None, event="e"))
    with pytest.raises(InvalidInputError, match="is there 2 times"):
        job_of(state, *(SinkChoice(braze=each) for each in both))


def test_a_campaign_waits_for_who_holds_the_state_for_a_moment(
    state: CampaignState, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = Event()

    def sleep(seconds: float) -> None:
        waits.set()
        Event().wait(seconds)

    monkeypatch.setattr(crm_state, "time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep))
    with closing(CampaignState(state.folder)) as other, ThreadPoolExecutor(1) as pool:
        with other.lock():
            with pytest.raises(InvalidInputError, match="another campaign"), state.lock(wait_s=0):
                pass
            waiting = pool.submit(run_locked, state.folder)
            assert waits.wait(WAIT_S)
            assert not waiting.done()
        assert waiting.result() == "ran"


def run_locked(folder: Path) -> str:
    with closing(CampaignState(folder)) as state, state.lock():
        return "ran"


class Unforeseen:
    """A sink that takes each batch and then fails with an error that nobody foresaw."""

    name, batch = "unforeseen", 2

    def __init__(self, error: Exception, is_repeatable: bool, tells: bool) -> None:
        self._error, self.is_repeatable, self._tells = error, is_repeatable, tells
        self.taken: list[str] = []

    def check(self) -> None: ...

    def names(self, push: Push) -> Sequence[str]:
        return ()

    def send(self, run: Run, pushes: Sequence[Push]) -> Sent:
        self.taken += [push.user_id for push in pushes]
        raise self._error

    def arrived(self, run: Run, pushes: Sequence[Push]) -> set[str] | None:
        return set(self.taken) if self._tells else None

    def preview(self, run: Run, pushes: Sequence[Push]) -> list[Any]:
        return []

    def close(self) -> None: ...


@pytest.mark.parametrize(
    "error", [TypeError("x"), RecursionError(), OSError(28, "full"), sqlite3.OperationalError("y")]
)
@pytest.mark.parametrize(("tells", "outcome"), [(False, "unknown"), (True, "sent")])
def test_an_unforeseen_error_leaves_a_batch_sent_or_unknown(
    prepared: DELIVER, state: CampaignState, error: Exception, tells: bool, outcome: str
) -> None:
    job, run = prepared(SinkChoice(file=FileSink(path=Path("unused.csv"))), ["a", "b", "c"])
    sink = Unforeseen(error, False, tells)
    job.sinks = [sink]
    for _ in range(2):  # each run ends with the error, and does not come back to what it has seen
        with pytest.raises(type(error)):
            job.deliver(run)
    job.deliver(run)
    assert sink.taken == ["a", "b", "c"]
    assert state.counts("monday")["unforeseen"] == {outcome: 3}


@pytest.mark.parametrize(
    ("error", "is_repeatable"),
    [(TypeError("x"), True), (UnavailableError("braze", "away"), False), (InvalidInputError("no"), False)],
)
def test_only_a_typed_error_or_a_repeatable_sink_means_that_it_is_next_again(
    prepared: DELIVER, state: CampaignState, error: Exception, is_repeatable: bool
) -> None:
    job, run = prepared(SinkChoice(file=FileSink(path=Path("unused.csv"))), ["a", "b"])
    job.sinks = [Unforeseen(error, is_repeatable, tells=False)]
    with pytest.raises(type(error)):
        job.deliver(run)
    assert [push.user_id for push in state.to_send("monday", "unforeseen", "", 10)] == ["a", "b"]


def test_the_wait_for_a_limit_is_before_the_next_request_and_not_before_the_note(
    prepared: DELIVER, state: CampaignState, braze: BrazeProcess
) -> None:
    """A process that died in the wait left events unknown of which it had the answer."""
    job, run = prepared(SinkChoice(braze=BrazeSink(url=braze.url, attributes=None, event="last", batch=1)), ["a"])
    reset = {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": str(time.time() + 3_600)}
    braze.break_next({"body": "{}", "headers": reset, "takes": True})
    with closing(job):
        job.deliver(run)  # returns, with an hour to go
        sink = job.sinks[0]
        assert isinstance(sink, Braze)
        assert sink._next_at > time.monotonic()
    assert state.counts("monday")[sink.name] == {"sent": 1}


@pytest.mark.parametrize("key", ["", "café", "a\nb", "소금", "a\0"])
def test_a_key_that_no_header_takes_is_named(key: str) -> None:
    with pytest.raises(InvalidInputError, match="API key"):
        Braze(BrazeSink(url="http://127.0.0.1:1"), key, lambda name, users: {})


@pytest.mark.parametrize("error", [TypeError("x"), ValueError("y"), OSError("z"), KafkaTimeoutError()])
def test_what_kafka_took_before_an_error_is_known(lone_broker: str, error: Exception) -> None:
    """The records before it were on their way, and counted as not sent."""
    topic = f"pushes-{type(error).__name__}"
    with closing(KafkaAdminClient(bootstrap_servers=lone_broker)) as admin:
        admin.create_topics([NewTopic(topic, 1, 1)])
    run = Run("r", "bread", "d", 1_760_000_000_000, 1, 0, 0)
    pushes = [Push(user, (PushedItem("rye", -1.0),), "r1") for user in ("a", "b", "c", "d")]
    with closing(PushTopic(KafkaSink(topic=topic), lone_broker)) as sink:
        producer = sink._connected()
        send = producer.send

        def fails_at_the_third(*arguments: Any, **named: Any) -> Any:
            if named["key"] == b"c":
                raise error
            return send(*arguments, **named)

        producer.send = fails_at_the_third
        with pytest.raises(UncertainError) as raised:
            sink.send(run, pushes)
        assert (raised.value.arrived, raised.value.failed) == ({"a", "b"}, {})
        assert sink.arrived(run, pushes) == {"a", "b"}
        assert sink.send(run, pushes[2:]) == Sent()  # over a new connection
        assert sink.arrived(run, pushes) == {"a", "b", "c", "d"}


LONG = "소" * (MAX_ID_LENGTH + 1)


def test_what_cannot_be_an_id_is_skipped_and_counted(prepared: DELIVER, state: CampaignState, tmp_path: Path) -> None:
    """A column of texts in the place of ids made requests that no gateway takes, and the run could never pass."""
    ids = ["a", "b" * MAX_ID_LENGTH, "소" * MAX_ID_LENGTH, LONG, "c" * 5_000]
    (tmp_path / "users.csv").write_text("user_id\n" + "".join(f"{user_id}\n" for user_id in [*ids, "", *ids]))
    job, run = prepared(SinkChoice(file=FileSink(path=tmp_path / "out.csv")), [])
    job.select(run)
    assert state.to_prepare(run.run_id, "", 10) == sorted(ids[:3])
    assert state.counts(run.run_id)["run"] == {"selected": 3, f"skipped: {NO_ID}": 2}


def test_lists_belong_to_users_by_their_place(prepared: DELIVER) -> None:
    """The gateway cuts an invalid id: the answer to it took the place of a user who has the cut one."""
    job, run = prepared(SinkChoice(file=FileSink(path=Path("unused.csv"))), [])
    items = [pb.RecommendedItem(item_id="rye", score=-1.0)]
    refused = pb.UserTopItems(user_id=LONG[:-1], status=pb.USER_STATUS_INVALID_USER_ID, message="too long")
    fine = pb.UserTopItems(user_id=LONG[:-1], status=pb.USER_STATUS_OK, items=items)
    skipped: dict[str, str] = {}
    for asked, answers in (([LONG, LONG[:-1]], [refused, fine]), ([LONG[:-1], LONG], [fine, refused])):
        pushes = job._lists(run, asked, pb.GenerateTopItemsResponse(users=answers, release_id="r1"), skipped)
        assert [push.user_id for push in pushes] == [LONG[:-1]]
        assert skipped == {LONG: "not generated: too long"}
    with pytest.raises(BaguniError, match="answered for 1 users, expected 2"):
        job._lists(run, [LONG, "a"], pb.GenerateTopItemsResponse(users=[fine]), skipped)
