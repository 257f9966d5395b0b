"""The state of campaigns: what is decided once stays, and what is old or must be forgotten goes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from baguni.domain.errors import InvalidInputError, NotFoundError
from crm.state import KEPT_MS, CampaignState, Push, PushedItem
from tests.strategies import HOSTILE_IDS

NOW_MS = 1_760_000_000_000
DAY_MS = 86_400_000


@pytest.fixture
def state(tmp_path: Path) -> Iterator[CampaignState]:
    with closing(CampaignState(tmp_path)) as opened:
        yield opened


def push(user_id: str, *item_ids: str) -> Push:
    return Push(user_id, tuple(PushedItem(item_id, -1.5) for item_id in item_ids), "r1")


def test_a_user_goes_from_selected_to_sent_once(state: CampaignState, tmp_path: Path) -> None:
    run = state.begin("r", "bread", "digest", NOW_MS)
    state.select("r", ["b", "a", "b"])
    assert state.to_prepare("r", "", 10) == ["a", "b"]
    state.prepare("r", [push("a", "rye")], {"b": "no history"})
    state.select("r", ["a", "b"])  # the audience is read again after a crash
    assert state.to_prepare("r", "", 10) == []
    assert state.to_send("r", "kafka", "", 10) == [push("a", "rye")]
    state.sending("r", "kafka", ["a"])
    with closing(CampaignState(tmp_path)) as other:  # as another process would find it
        assert other.to_send("r", "kafka", "", 10) == []
        assert other.interrupted("r", "kafka") == [push("a", "rye")]
    state.sent(run, "kafka", [push("a", "rye")], {}, {"a": {"item_1": "rye"}})
    assert state.interrupted("r", "kafka") == []
    assert state.to_send("r", "braze", "", 10) == [push("a", "rye")]  # another sink has its own
    assert state.told("kafka", ["a", "b"]) == {"a": {"item_1": "rye"}, "b": {}}
    assert state.counts("r") == {"run": {"prepared": 1, "skipped: no history": 1}, "kafka": {"sent": 1}}


def test_what_was_pushed_counts_for_as_long_as_it_is_asked_for(state: CampaignState) -> None:
    for number, item_id in enumerate(("rye", "milk")):
        run = state.begin(f"r{number}", "bread", "d", NOW_MS + number * DAY_MS)
        state.select(run.run_id, ["a"])
        state.prepare(run.run_id, [push("a", item_id)], {})
        state.sent(run, "file", [push("a", item_id)], {})
    assert state.times_pushed(["a", "b"], NOW_MS) == {"a": 2}
    assert state.times_pushed(["a"], NOW_MS + 1) == {"a": 1}
    assert state.items_pushed(["a"], NOW_MS) == {"a": {"rye", "milk"}}
    assert state.items_pushed(["a"], NOW_MS + 1) == {"a": {"milk"}}
    state.begin("later", "bread", "d", NOW_MS + KEPT_MS + 1)
    assert state.items_pushed(["a"], 0) == {"a": {"milk"}}
    assert [run.run_id for run in state.runs()] == ["later", "r1"]
    assert state.counts("r0") == {"run": {}}


def test_what_failed_is_not_pushed_and_named(state: CampaignState) -> None:
    run = state.begin("r", "bread", "d", NOW_MS)
    state.select("r", ["a", "b"])
    state.prepare("r", [push("a", "rye"), push("b", "rye")], {})
    state.sent(
        run, "braze", [push("a", "rye"), push("b", "rye")], {"b": "refused"}, {"a": {"x": "rye"}, "b": {"x": "rye"}}
    )
    assert state.items_pushed(["a", "b"], 0) == {"a": {"rye"}}
    assert state.told("braze", ["a", "b"]) == {"a": {"x": "rye"}, "b": {}}
    assert state.problems("r", 10) == [("braze", "b", "failed", "refused")]


def test_the_last_run_that_has_something_for_a_user_is_what_is_served(state: CampaignState) -> None:
    for number, run_id in enumerate(("first", "second", "given-up", "just-begun")):
        state.begin(run_id, "bread", "d", NOW_MS + number)
        state.select(run_id, ["a"])
        if run_id != "just-begun":
            state.prepare(run_id, [push("a", f"rye-{number}")], {})
    state.discard("given-up")
    assert state.last_push("bread", "a") == ("second", push("a", "rye-1"))
    assert state.last_push("milk", "a") is None
    assert state.last_push("bread", "b") is None


def test_who_is_forgotten_leaves_everything(state: CampaignState) -> None:
    run = state.begin("r", "bread", "d", NOW_MS)
    state.select("r", ["a"])
    state.prepare("r", [push("a", "rye")], {})
    state.sent(run, "braze", [push("a", "rye")], {}, {"a": {"x": "rye"}})
    state.erase("r", ["a"], "forgotten")
    assert state.told("braze", ["a"]) == {"a": {}}
    assert state.items_pushed(["a"], 0) == {}
    assert state.last_push("bread", "a") is None
    assert state.counts("r") == {"run": {"skipped: forgotten": 1}}


def test_runs_finished_discarded_and_unknown(state: CampaignState) -> None:
    state.begin("first", "bread", "d", NOW_MS)
    assert state.unfinished("bread") == state.run("first")
    state.finish("first")
    assert state.unfinished("bread") is None
    assert state.run("first").state == "finished"
    state.begin("second", "bread", "d", NOW_MS + 1)
    state.discard("second")
    assert state.unfinished("bread") is None
    with pytest.raises(NotFoundError, match="run 'third' does not exist"):
        state.run("third")


def test_one_at_a_time(state: CampaignState, tmp_path: Path) -> None:
    with (
        closing(CampaignState(tmp_path)) as other,
        state.lock(),
        pytest.raises(InvalidInputError, match="another campaign is running"),
        other.lock(),
    ):
        pass
    with closing(CampaignState(tmp_path)) as other, other.lock():
        pass


@settings(max_examples=20)  # each opens a state and waits for the disk
@given(st.lists(HOSTILE_IDS, min_size=1, max_size=6, unique=True), HOSTILE_IDS)
@example(["a\0b"], "a")
def test_every_id_is_found_by_itself_alone(user_ids: list[str], stranger: str) -> None:
    """The id "a\\0b" counted as "a": its quiet rules never held, and nothing could be sent to it."""
    pushes = [push(user_id, user_id) for user_id in user_ids]
    wanted = {user_id: user_id for user_id in user_ids}
    others = [] if stranger in wanted else [stranger]
    with TemporaryDirectory() as folder, closing(CampaignState(Path(folder))) as state:
        run = state.begin("r", "bread", "d", NOW_MS)
        state.select("r", user_ids)
        assert state.to_prepare("r", "", 10) == sorted(user_ids, key=str.encode)
        state.prepare("r", pushes, {})
        assert {found.user_id for found in state.to_send("r", "braze", "", 10)} == wanted.keys()
        state.sending("r", "braze", user_ids)
        assert {found.user_id for found in state.interrupted("r", "braze")} == wanted.keys()
        state.sent(run, "braze", pushes, {}, {user_id: {"x": user_id} for user_id in user_ids})
        asked = [*user_ids, *others]
        assert state.times_pushed(asked, NOW_MS) == dict.fromkeys(user_ids, 1)
        assert state.items_pushed(asked, NOW_MS) == {user_id: {user_id} for user_id in user_ids}
        assert state.told("braze", asked) == {user: {"x": user} if user in wanted else {} for user in asked}
        assert all(state.last_push("bread", user_id) for user_id in user_ids)
        state.forget(dict.fromkeys(user_ids[:1], math.inf))
        assert state.times_pushed(asked, NOW_MS) == dict.fromkeys(user_ids[1:], 1)


def test_a_batch_may_be_empty(state: CampaignState) -> None:
    assert (state.times_pushed([], 0), state.items_pushed([], 0), state.told("braze", [])) == ({}, {}, {})


@pytest.mark.parametrize("until", range(-1, 4))
def test_a_deletion_takes_what_began_up_to_it_and_nothing_later(state: CampaignState, until: int) -> None:
    for number in range(3):
        run = state.begin(f"r{number}", "bread", "d", NOW_MS + number)
        state.select(run.run_id, ["a", "b"])
        pushes = [push(user_id, f"rye-{number}") for user_id in ("a", "b")]
        state.prepare(run.run_id, pushes, {})
        state.sent(run, f"sink-{number}", pushes, {}, {"a": {"item": f"rye-{number}"}, "b": {"item": "rye"}})
    others = state.rows_of("b")
    state.forget({"a": NOW_MS + until}, 7)
    left = {f"rye-{number}" for number in range(3) if number > until}
    assert state.items_pushed(["a"], 0).get("a", set()) == left
    assert set(state.rows_of("a").values()) <= {len(left)}
    told = {item for number in range(3) for item in state.told(f"sink-{number}", ["a"])["a"].values()}
    assert told == left
    assert state.rows_of("b") == others
    assert state.forgotten_until == 7
