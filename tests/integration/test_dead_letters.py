"""`baguni dlq`: what was set aside is listed, shown whole, and sent again once it parses."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from baguni.clients.topics import Record, TopicReader
from baguni.domain.errors import NotFoundError
from baguni.domain.events import DEAD_LETTER_TOPIC, MalformedEvent
from baguni.settings import Endpoints
from baguni.stores.redis_client import connect
from streaming import dead_letters
from streaming.dead_letters import DeadLetters, Quarantine, original
from streaming.dead_letters_cli import dlq
from tests.integration.streams import ConsumerProcess, read_history
from tests.waiting import eventually

pytestmark = pytest.mark.stack


@pytest.fixture
def endpoints(stack: Endpoints, monkeypatch: pytest.MonkeyPatch) -> Endpoints:
    endpoints = stack.model_copy(update={"redis_url": stack.redis_url.replace("/0", "/7")})
    for name, value in endpoints.environment().items():
        monkeypatch.setenv(name, value)
    return endpoints


@pytest.fixture
def letters(endpoints: Endpoints) -> Iterator[DeadLetters]:
    with connect(endpoints.redis_url) as client:
        sending = DeadLetters(endpoints.kafka_bootstrap, Quarantine(client))
        yield sending
        sending.close()


def run(*arguments: str) -> Result:
    return CliRunner().invoke(dlq, arguments, catch_exceptions=False, env={"COLUMNS": "300"})


def test_a_letter_is_listed_shown_and_replayed_once_it_parses(
    endpoints: Endpoints, letters: DeadLetters, tmp_path: Path
) -> None:
    """One was set aside by a version that did not know its type; the other is garbage and stays."""
    user_id, reason = f"user-{uuid.uuid4().hex[:8]}", f"reason-{uuid.uuid4().hex[:8]}"
    headers = (("ce_type", b"baguni.v1.ItemClicked"), ("content-type", b"application/json"))
    value = json.dumps({"userId": user_id, "itemId": "rye", "eventTime": "2024-01-01T00:00:00Z"}).encode()
    good = Record("baguni.clicks", 1, 5, user_id.encode(), value, headers)
    bad = Record("baguni.clicks", 1, 6, b"k", b"{", headers)
    letters.send([(record, MalformedEvent(reason, "it was unknown")) for record in (good, bad)])

    listed = run("list", "--reason", reason)
    assert "2 dead letters" in listed.output
    assert "baguni.clicks/1@5" in listed.output
    assert f"2  {reason}" in listed.output
    stored = [
        letter
        for letter in TopicReader(endpoints.kafka_bootstrap, [DEAD_LETTER_TOPIC], {})
        if dict(letter.headers)["dead_letter_reason"] == reason.encode()
    ]
    stored.sort(key=lambda letter: original(letter).offset)
    assert original(stored[0]) == good
    shown = run("show", f"{stored[0].partition}@{stored[0].offset}").output
    assert value.decode() in shown
    assert "dead_letter_error: it was unknown" in shown

    assert "would send 1 of 2" in run("replay", "--reason", reason, "--dry-run").output
    with ConsumerProcess("user", endpoints, tmp_path, f"-{uuid.uuid4().hex[:8]}"):
        replayed = run("replay", "--reason", reason).output
        assert "sent 1 of 2" in replayed
        assert "1  still undecodable" in replayed
        eventually(lambda: len(read_history(endpoints, user_id)) == 1)


def test_a_record_that_no_dead_letter_can_hold_is_quarantined_and_listed(
    endpoints: Endpoints, letters: DeadLetters, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_letters, "MAX_REQUEST_BYTES", 5_000)
    offset = uuid.uuid4().int % 10**9
    large, small = (Record("baguni.orders", 3, offset + n, b"k", b"x" * size, ()) for n, size in ((0, 6_000), (1, 10)))
    reason = f"reason-{uuid.uuid4().hex[:8]}"
    assert letters.send([(record, MalformedEvent(reason, "it is\nnone")) for record in (large, small)]) == 1
    listed = run("list", "--reason", reason).output
    assert "1 dead letters" in listed
    assert "1 quarantined records" in listed
    assert f"baguni.orders/3@{offset}" in listed
    assert "MessageSizeTooLargeError" in listed


def test_replaying_without_saying_which_is_refused(endpoints: Endpoints) -> None:
    assert "say which" in CliRunner().invoke(dlq, ["replay"]).output
    with pytest.raises(NotFoundError, match="there is no dead letter 0@99999999"):
        run("replay", "0@99999999")
    with pytest.raises(NotFoundError, match="expected PARTITION@OFFSET"):
        run("show", "nonsense")
