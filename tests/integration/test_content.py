"""Connected Content over HTTP: whatever comes, the answer is items, and nothing that goes wrong ends what runs beside it."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from hypothesis import HealthCheck, example, given
from hypothesis import settings as limits
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families as families

from crm import content
from crm.content import DEFAULT_K, MAX_K, _number, application
from crm.settings import CrmSettings
from crm.state import CampaignState, Push, PushedItem
from deploy.local.settings import free_port
from tests.strategies import HOSTILE_IDS
from tests.waiting import WAIT_S, eventually

pytestmark = pytest.mark.stack
TOKEN = "let-me-in"
ITEMS = [f"item-{number:02}" for number in range(MAX_K)]
# Bytes that may stand in the value of a header, UTF-8 or not; an HTTP server refuses the others before we see them.
HEADERS = st.binary(max_size=40).map(lambda raw: bytes(byte for byte in raw if byte >= 0x20 and byte != 0x7F).strip())
NUMBERS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    st.text("0123456789", max_size=7_000),
    st.text("٣४५²½Ⅷ0", max_size=20),
)
many = limits(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Serving:
    """The content server, in a thread with a loop of its own."""

    def __init__(self, settings: CrmSettings) -> None:
        self._settings, self._loop = settings, asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.port: int = self._run(self._start())

    def close(self) -> None:
        self._run(self._runner.cleanup())
        self.call(self.state.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def call(self, function: Callable[[], Any]) -> Any:
        """Call it where the state was opened."""

        async def called() -> Any:
            return function()

        return self._run(called())

    def ask(self, user_id: bytes, query: bytes = b"", *headers: bytes) -> tuple[int, Any]:
        """Ask for a user; every byte of the id is escaped."""
        path = b"/v1/campaigns/bread/users/" + _escaped(user_id) + (b"?k=" + query if query else b"")
        lines = [b"GET " + path + b" HTTP/1.1", b"Host: content", b"Connection: close", *headers]
        with closing(socket.create_connection(("127.0.0.1", self.port), WAIT_S)) as connection:
            connection.sendall(b"\r\n".join([*lines, b"", b""]))
            with connection.makefile("rb") as answer:
                head, _, body = answer.read().partition(b"\r\n\r\n")
        return int(head.split()[1]), json.loads(body) if body.startswith(b"{") else body

    async def _start(self) -> int:
        self.state = CampaignState(self._settings.crm_state)
        self._runner = web.AppRunner(application(self._settings, self.state))
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return int(self._runner.addresses[0][1])

    def _run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(WAIT_S)


def _escaped(raw: bytes) -> bytes:
    return b"".join(b"%%%02X" % byte for byte in raw)


def own_settings(folder: Path, redis_url: str, **more: Any) -> CrmSettings:
    return CrmSettings(
        redis_url=redis_url, crm_state=folder / "state", gateway_address=f"127.0.0.1:{free_port()}", **more
    )


@pytest.fixture
def serving(tmp_path: Path, lone_redis: str) -> Iterator[Serving]:
    with closing(Serving(own_settings(tmp_path, lone_redis, crm_content_token=TOKEN))) as started:
        yield started


def push_to(state: CampaignState, *user_ids: str) -> None:
    state.begin("monday", "bread", "d", 1_760_000_000_000)
    state.select("monday", user_ids)
    items = tuple(PushedItem(item_id, -1.0) for item_id in ITEMS)
    state.prepare("monday", [Push(user_id, items, "r1") for user_id in user_ids], {})


BEARER = b"Authorization: Bearer " + TOKEN.encode()


@many
@given(HEADERS)
@example("Bearer café".encode())
@example("Bearer café".encode("latin-1"))
@example(b"Bearer " + TOKEN.encode() + b"\xff")
def test_any_other_token_is_refused(serving: Serving, value: bytes) -> None:
    assert serving.ask(b"a", b"", b"Authorization: " + value)[0] == (200 if value == b"Bearer let-me-in" else 401)


@pytest.mark.parametrize("token", ["café", "소금", "let me in"])
def test_the_right_token_is_taken_whatever_it_is_made_of(tmp_path: Path, lone_redis: str, token: str) -> None:
    with closing(Serving(own_settings(tmp_path, lone_redis, crm_content_token=token))) as server:
        assert server.ask(b"a", b"", f"Authorization: Bearer {token}".encode())[0] == 200
        assert server.ask(b"a", b"", f"Authorization: Bearer {token}x".encode())[0] == 401


@many
@given(HOSTILE_IDS, NUMBERS, HEADERS)
@example("a\0b", "9" * 5_000, b"")
@example("..", "", b"")
@example("a/../b", "", b"")
@example("{a}\n", "", b"")
def test_whatever_is_asked_the_answer_is_items(serving: Serving, user_id: str, k: str, header: bytes) -> None:
    raw = k.encode()
    query = raw if k.isascii() and k.isdecimal() else _escaped(raw)
    status, answer = serving.ask(user_id.encode(), query, BEARER, b"X-Shop: " + header)
    assert (status, answer["source"], answer["user_id"]) == (200, "popular", user_id)


@given(NUMBERS)
@example("0" * 5_000 + "7")
@example("9" * 5_000)
def test_a_number_of_items_is_one_to_fifty(text: str) -> None:
    found = _number(text)
    assert 1 <= found <= MAX_K
    if not (text.isascii() and text.isdecimal() and text.strip("0")):
        assert found == DEFAULT_K
    elif len(text) < 1_000:
        assert found == min(int(text), MAX_K)


@limits(many, max_examples=10)
@given(st.lists(HOSTILE_IDS, min_size=1, max_size=5, unique=True))
def test_everybody_gets_what_is_prepared_for_them(tmp_path_factory: Any, lone_redis: str, user_ids: list[str]) -> None:
    with closing(Serving(own_settings(tmp_path_factory.mktemp("own"), lone_redis))) as server:
        server.call(lambda: push_to(server.state, *user_ids))
        for user_id in user_ids:
            status, answer = server.ask(user_id.encode(), b"3")
            assert (status, answer["source"], answer["items"]) == (200, "generated", ITEMS[:3])
        assert server.ask(b"\xff\xfe")[0] == 200  # no UTF-8


@pytest.mark.parametrize("error", [OSError("disk"), ValueError("x"), KeyError("y"), RuntimeError("z")])
def test_a_state_that_cannot_be_read_gives_popular_items(
    serving: Serving, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    serving.call(lambda: push_to(serving.state, "a"))
    assert serving.ask(b"a", b"2", BEARER)[1]["source"] == "generated"

    def fails(*arguments: Any) -> Any:
        raise error

    monkeypatch.setattr(serving.state, "last_push", fails)
    assert serving.ask(b"a", b"2", BEARER) == (200, {"user_id": "a", "items": [], "source": "popular"})
    monkeypatch.undo()
    serving.call(serving.state._db.close)
    assert serving.ask(b"a", b"2", BEARER)[1]["source"] == "popular"


def test_what_runs_beside_the_answers_is_started_again(
    tmp_path: Path, lone_redis: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An OSError of the disk ended the task that forgets users, silently and for ever."""
    failures: dict[str, list[Exception]] = {
        "popular": [OSError("socket"), ValueError("x")],
        "counts": [OSError("disk"), KeyError("y")],
        "forgetting": [OSError("disk"), RuntimeError("z")],
    }
    went_on: set[str] = set()

    def failing_at_first(name: str) -> Callable[..., Any]:
        def called(*arguments: Any) -> Any:
            if failures[name]:
                raise failures[name].pop()
            went_on.add(name)
            return []

        return called

    monkeypatch.setattr(content.Content, "_popular", failing_at_first("popular"))
    monkeypatch.setattr(content.Metrics, "read", failing_at_first("counts"))
    monkeypatch.setattr(content, "forget_unless_running", failing_at_first("forgetting"))
    port = free_port()
    address = f"127.0.0.1:{port}"
    with closing(Serving(own_settings(tmp_path, lone_redis, metrics_address=address))):
        eventually(lambda: went_on == failures.keys(), "all go on", lambda: went_on)
        text = _metrics(port)
    counted = {
        sample.labels["task"]: sample.value
        for family in families(text)
        for sample in family.samples
        if sample.name == "baguni_background_restarts_total"
    }
    assert counted == dict.fromkeys(failures, 2)


def _metrics(port: int) -> str:
    with closing(socket.create_connection(("127.0.0.1", port), WAIT_S)) as connection:
        connection.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        with connection.makefile("rb") as answer:
            return answer.read().decode().partition("\r\n\r\n")[2]
