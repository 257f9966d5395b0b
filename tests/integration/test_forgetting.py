"""A user who asks to be forgotten is, everywhere that we reach: histories, caches, captured requests, campaigns."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import grpc
import pytest
import redis
from click.testing import CliRunner, Result

from baguni.cli import users
from baguni.cli.users import user
from baguni.domain.errors import InvalidInputError
from baguni.domain.history import Action, HistoryEvent
from baguni.settings import Endpoints
from baguni.stores.forgotten import ForgottenUsers
from baguni.stores.history_store import HistoryWriter, keys_of
from baguni.v1 import recommendation_pb2 as pb
from baguni.v1 import recommendation_pb2_grpc as pb_grpc
from crm.forgetting import forget_unless_running
from crm.settings import CrmSettings
from crm.state import CampaignState, Push, PushedItem
from server.telemetry.capture import captured_of
from streaming.dead_letters import Quarantine, Quarantined
from tests.gateway_process import GatewayProcess, gateway_process
from tests.integration.streams import Shop, click, order
from tests.waiting import COMMAND_S, eventually

pytestmark = [pytest.mark.stack, pytest.mark.slow]
DAY_MS = 86_400_000


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("captured")


@pytest.fixture(scope="module")
def gateway(running: Endpoints, captured: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    folder = tmp_path_factory.mktemp("gateway")
    with gateway_process(running, folder, capture_dir=captured, capture_share=1.0, processes=2) as process:
        yield process


@pytest.fixture
def environment(
    running: Endpoints, gateway: GatewayProcess, captured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Endpoints:
    own = {"BAGUNI_CAPTURE_DIR": captured, "BAGUNI_CRM_STATE": tmp_path / "crm"}
    for name, value in (running.environment() | own).items():
        monkeypatch.setenv(name, str(value))
    return running


@pytest.fixture
def shop(running: Endpoints) -> Iterator[Shop]:
    started = Shop(running)
    yield started
    started.close()


@pytest.fixture
def user_id() -> str:
    """As hostile as an id may be: quotes, an escape, brackets of tables, nothing of ASCII."""
    return f'7 it\'s "me" [red] 소금 \\u0041-{uuid.uuid4().hex[:6]}'


def now_ms() -> int:
    return int(time.time() * 1000)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(user, arguments, catch_exceptions=False, env={"COLUMNS": "300"})


def recommend(gateway: GatewayProcess, user_id: str, times: int = 6) -> None:
    """Ask over connections of their own, so that each process remembers the user."""
    for _ in range(times):
        with grpc.insecure_channel(gateway.address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            request = pb.RecommendRequest(user_id=user_id, page_size=3)
            pb_grpc.RecommendationServiceStub(channel).Recommend(request, timeout=30)


def test_a_user_is_forgotten_everywhere_and_may_come_back(
    environment: Endpoints, gateway: GatewayProcess, captured: Path, shop: Shop, user_id: str
) -> None:
    other = f"other-{user_id}"
    with redis.Redis.from_url(environment.redis_url) as client:
        histories = HistoryWriter(client)
        for each in (user_id, other):
            shop.send(order(each, "o1", "bread-rye", "milk-fresh"))
            eventually(lambda each=each: len(histories.read([each])[0]) == 2, f"{each} has a history")
            recommend(gateway, each)
        client.set(keys_of(user_id)[1], b"damaged once")
        Quarantine(client).add([Quarantined("baguni.clicks", 0, 1, "attribute", f"user_id is {user_id!r}", 1.0)])
        prepare_campaigns([user_id, other])

        found = run("find", user_id).output
        for where in (
            "2 events",
            "damaged history",
            "quarantine",
            "captured requests",
            "rows of delivery",
            "rows of push",
        ):
            assert where in found, found
        forgotten = run("forget", user_id, "--verify")
        assert forgotten.exit_code == 0, forgotten.output
        assert "baguni.exposures" in forgotten.output

        assert histories.read([user_id])[0].events == ()
        assert client.exists(keys_of(user_id)[1]) == 0
        assert captured_of(captured, user_id) == []
        with closing(CampaignState(CrmSettings().crm_state)) as state:
            assert state.rows_of(user_id) == {}
            assert state.rows_of(other) != {}
        assert len(histories.read([other])[0]) == 2
        assert sum(count for _, count in captured_of(captured, other)) == 6

        rebuild(environment)  # the topics still have the order
        assert histories.read([user_id])[0].events == ()
        shop.send(click(user_id, "bread-rye", now_ms() + 1))
        eventually(lambda: len(histories.read([user_id])[0]) == 1, "the user is back")
        recommend(gateway, user_id, times=1)
        assert sum(count for _, count in captured_of(captured, user_id)) == 1


def test_places_that_cannot_be_searched_are_named(
    environment: Endpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container that has other mounts, or other code: an empty answer would look like a proof."""
    monkeypatch.delenv("BAGUNI_CAPTURE_DIR")
    elsewhere = EntryPoint("elsewhere", "not_in_this_image.forgetting:personal_data", "baguni.personal_data")
    monkeypatch.setattr(users, "entry_points", lambda group: [*entry_points(group=group), elsewhere])
    shown = " ".join(run("find", "nobody").output.split())
    for why in (
        "BAGUNI_CAPTURE_DIR is not set",
        "does not exist here",
        "package not_in_this_image is not installed here",
    ):
        assert why in shown, shown


def prepare_campaigns(user_ids: list[str]) -> None:
    with closing(CampaignState(CrmSettings().crm_state)) as state:
        run = state.begin("run-1", "bread", "digest", now_ms())
        pushes = [Push(user_id, (PushedItem("bread-rye", -1.0),), "r") for user_id in user_ids]
        state.select(run.run_id, user_ids)
        state.prepare(run.run_id, pushes, {})
        state.sent(run, "braze", pushes, {}, {user_id: {"favourite": "rye"} for user_id in user_ids})


def rebuild(endpoints: Endpoints) -> None:
    command = [sys.executable, "-m", "baguni.cli", "histories", "rebuild", "--from-topic"]
    done = subprocess.run(
        command,
        env={**os.environ, **endpoints.environment()},
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_shops_own_event_reaches_campaigns_and_captured_requests(
    environment: Endpoints, gateway: GatewayProcess, captured: Path, shop: Shop
) -> None:
    """Nobody runs a command: a UserDeleted is sent, and everything follows."""
    from baguni.v1 import events_pb2

    user_id = f"gone-{uuid.uuid4().hex[:8]}"
    recommend(gateway, user_id)
    prepare_campaigns([user_id])
    message = events_pb2.UserDeleted(user_id=user_id)
    message.event_time.GetCurrentTime()
    shop.send(message)
    eventually(lambda: not captured_of(captured, user_id), "the captured requests are gone")
    with redis.Redis.from_url(environment.redis_url) as client:
        forgotten = ForgottenUsers(client)
        position = forgotten.position_of(user_id)
        assert position is not None
        eventually(lambda: not forgotten.not_yet(position), "every process has forgotten")
    forget_unless_running(CrmSettings())
    with closing(CampaignState(CrmSettings().crm_state)) as state:
        assert state.rows_of(user_id) == {}
        assert state.forgotten_until >= position
        prepare_again = state.begin("run-2", "bread", "digest", now_ms())
        state.select(prepare_again.run_id, [user_id])  # the user has come back since: an entry counts once
    forget_unless_running(CrmSettings())
    with closing(CampaignState(CrmSettings().crm_state)) as state:
        assert state.rows_of(user_id) == {"delivery": 1}


def test_a_campaign_that_runs_keeps_its_state_until_it_ends(environment: Endpoints) -> None:
    settings = CrmSettings()
    user_id = f"gone-{uuid.uuid4().hex[:8]}"
    prepare_campaigns([user_id])
    with redis.Redis.from_url(environment.redis_url) as client:
        ForgottenUsers(client).note({user_id: now_ms()})
    with closing(CampaignState(settings.crm_state)) as state:
        with state.lock():
            forget_unless_running(settings)
            assert state.rows_of(user_id)
        forget_unless_running(settings)
        assert state.rows_of(user_id) == {}


def test_a_user_whose_id_is_a_commands_name_is_shown(environment: Endpoints) -> None:
    user_id = uuid.uuid4().hex
    with redis.Redis.from_url(environment.redis_url) as client:
        events = [HistoryEvent("bread-rye", Action.CLICKED, now_ms())]
        HistoryWriter(client).apply({user_id: events, "forget": events})
        assert f"{user_id}: 1 events" in run(user_id).output
        assert "forget: 1 events" in run("show", "forget").output
        HistoryWriter(client).drop([user_id, "forget"])
    with pytest.raises(InvalidInputError, match="USER_ID has 257 characters, expected 1 to 256"):
        run("forget", "u" * 257)
