"""Braze's /users/track: attributes of users, events, or both, in batches.

Braze takes what it answered 2xx, and may refuse single objects in the same answer. It knows no idempotency key: an attribute
that is set twice changes nothing, an event that is sent twice is two. So batches with events are sent again only when it is
certain that they were not taken: on 429, on Braze's own 5xx, and when no connection was made. A gateway or proxy in between
answers 502, 504 and the like also for what Braze has taken. Only attributes that differ from what was sent before are sent,
since each is billed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import urllib3
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError

from baguni.domain.errors import BaguniError, InvalidInputError, UnavailableError
from crm.campaign import BrazeSink
from crm.sinks import BadBatchError, Sent, UncertainError
from crm.state import DOUBTFUL, Push, Run

log = logging.getLogger(__name__)
Known = Mapping[str, str | bytes | None]
Told = Callable[[str, Sequence[str]], Mapping[str, Known]]
CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 5.0, 30.0
ATTEMPTS = 8  # of a batch, while Braze fails or has no room
FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 0.5, 30.0
LONGEST_RESET_S = 120.0  # a limit that is further away is not waited for
MAX_SHOWN = 200  # characters of what Braze says
TOLD_BY = re.compile(r"^[0-9a-f]{8} ")
IN_BETWEEN = frozenset({408, 502, 504, *range(520, 525)})  # of what stands before Braze, which may have taken it
REFUSALS = {
    401: "the API key is wrong or has expired; BAGUNI_CRM_BRAZE_KEY holds it",
    403: "the API key may not use users.track",
    404: "there is no /users/track; is the REST endpoint of the workspace another?",
}


class Braze:
    """A workspace. `told` returns what of users' attributes was sent before; `backoff_s` passes before the second attempt."""

    def __init__(self, sink: BrazeSink, key: str, told: Told, backoff_s: float = FIRST_BACKOFF_S) -> None:
        self._backoff_s = backoff_s
        self.name = f"braze {urlsplit(sink.url).netloc}"
        # Workspaces share hosts, and one knows nothing of what another was told. Each has keys of its own.
        self._told_by = f"{hashlib.sha256(key.encode()).hexdigest()[:8]} "
        self._sink, self._told = sink, told
        self.batch = max(sink.batch // ((sink.attributes is not None) + (sink.event is not None)), 1)
        self.is_repeatable = sink.event is None
        self._url = f"{sink.url}/users/track"
        self._headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        timeout = urllib3.Timeout(connect=CONNECT_TIMEOUT_S, read=READ_TIMEOUT_S)
        self._http = urllib3.PoolManager(timeout=timeout, retries=False)
        self._next_at = 0.0  # monotonic time before which nothing is sent
        if not key:
            raise InvalidInputError("sink braze: there is no API key, expected it in BAGUNI_CRM_BRAZE_KEY", "sinks")
        if not (key.isascii() and key.isprintable()):
            raise InvalidInputError(
                "sink braze: the API key has characters that no header takes, expected ASCII", "sinks"
            )

    def check(self) -> None:
        """Ask for nothing: Braze checks the key before it finds that there is nothing to do."""
        try:
            status, body = self._ask({})
        except UncertainError as error:
            raise UnavailableError("braze", str(error)) from error
        if status not in (200, 201, 202, 400):
            raise BaguniError(f"braze answered {status} to an empty request: {_message(body)}")

    def send(self, run: Run, pushes: Sequence[Push]) -> Sent:
        """Send what is new in a batch."""
        told = self._known([push.user_id for push in pushes])
        body, owners = self._body(run, pushes, told)
        failed: Mapping[str, str] = {}
        if body:
            status, answer = self._ask(body)
            problem = f"braze answered {status}: {_message(answer)}"
            if status == 400 and len(pushes) > 1:
                raise BadBatchError(problem)
            failed = {pushes[0].user_id: problem} if status == 400 else _refused(answer, owners)
        arrived = (push for push in pushes if push.user_id not in failed)
        return Sent(failed, {push.user_id: self._noted(push, told[push.user_id]) for push in arrived})

    def names(self, push: Push) -> Collection[str]:
        """Return the attributes that a push sets."""
        return self._noted(push, {}).keys()

    def arrived(self, run: Run, pushes: Sequence[Push]) -> None:
        """Nobody can tell."""

    def preview(self, run: Run, pushes: Sequence[Push]) -> list[Any]:
        """The body of the request."""
        return [self._body(run, pushes, self._known([push.user_id for push in pushes]))[0]]

    def close(self) -> None:
        """Close the connections."""
        self._http.clear()

    def _known(self, user_ids: Sequence[str]) -> dict[str, Known]:
        """Return the attributes that were told of each user with this key. Those that were told with another one, or by an
        earlier version, are in doubt: it may have been another key of this workspace."""
        known: dict[str, Known] = {}
        for user_id, each in self._told(self.name, user_ids).items():
            doubtful = {TOLD_BY.sub("", name): DOUBTFUL for name in each}
            own = {name.removeprefix(self._told_by): x for name, x in each.items() if name.startswith(self._told_by)}
            known[user_id] = {**doubtful, **own}
        return known

    def _noted(self, push: Push, known: Known) -> dict[str, str | None]:
        """Return the attributes of a push by the names under which they are remembered."""
        return {self._told_by + name: value for name, value in self._wanted(push, known).items()}

    def _body(
        self, run: Run, pushes: Sequence[Push], told: Mapping[str, Known]
    ) -> tuple[dict[str, Any], dict[str, list[str]]]:
        """The request, and whose each of its objects is."""
        body: dict[str, Any] = {}
        owners: dict[str, list[str]] = {}

        def add(kind: str, user_id: str, content: Mapping[str, Any]) -> None:
            body.setdefault(kind, []).append({"external_id": user_id, **content})
            owners.setdefault(kind, []).append(user_id)

        for push in pushes:
            known = told[push.user_id]
            changed = {name: value for name, value in self._wanted(push, known).items() if known.get(name) != value}
            if changed:
                add("attributes", push.user_id, changed)
            if self._sink.event is not None:
                when = datetime.fromtimestamp(run.started_ms / 1000, UTC).isoformat(timespec="milliseconds")
                properties = {
                    "campaign": run.campaign,
                    "run_id": run.run_id,
                    "release_id": push.release_id,
                    "items": [item.item_id for item in push.items],
                }
                add("events", push.user_id, {"name": self._sink.event, "time": when, "properties": properties})
        return body, owners

    def _wanted(self, push: Push, known: Known) -> dict[str, str | None]:
        """Attributes as they should be: one an item, by place; those of a longer list before are taken away."""
        prefix = self._sink.attributes
        if prefix is None:
            return {}
        wanted: dict[str, str | None] = {
            f"{prefix}_{place}": item.item_id for place, item in enumerate(push.items, start=1)
        }
        left = {name: None for name, value in known.items() if name.startswith(f"{prefix}_") and value is not None}
        return {**left, **wanted}

    def _ask(self, body: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        """Post until Braze has decided. Returns its status, 2xx or 400, and its answer."""
        payload, backoff_s = json.dumps(body).encode(), self._backoff_s
        time.sleep(max(self._next_at - time.monotonic(), 0.0))
        for attempt in range(ATTEMPTS):
            try:
                response = self._http.request("POST", self._url, body=payload, headers=self._headers)
            except (NewConnectionError, ConnectTimeoutError) as error:
                problem = str(error)
            except HTTPError as error:
                raise UncertainError(f"braze: {error}") from error
            else:
                answer = _json(response.data)
                if 200 <= response.status < 300 or response.status == 400:
                    self._respect_limit(response.headers)
                    return response.status, answer
                problem = f"{response.status} {_message(answer)}"
                if response.status == 429:
                    backoff_s = max(_reset_s(response.headers), FIRST_BACKOFF_S)
                    if backoff_s > LONGEST_RESET_S:
                        raise UnavailableError("braze", f"its limit is reached for another {backoff_s:.0f} s")
                elif response.status in IN_BETWEEN and body and not self.is_repeatable:
                    raise UncertainError(f"braze: {problem}")
                elif response.status < 500 and response.status not in IN_BETWEEN:
                    reason = REFUSALS.get(response.status, "expected 2xx")
                    raise InvalidInputError(f"braze answered {problem}: {reason}", "sinks")
            log.warning("braze attempt=%d of=%d backoff_s=%.1f problem=%s", attempt + 1, ATTEMPTS, backoff_s, problem)
            time.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, LONGEST_BACKOFF_S)
        raise UnavailableError("braze", f"{self._url}: {problem}, {ATTEMPTS} times in a row")

    def _respect_limit(self, headers: Mapping[str, str]) -> None:
        """Let the next request wait, if this was the last one that the limit allows. This one's answer is noted at once: a
        process that dies while it waits would have to call it unknown."""
        if headers.get("x-ratelimit-remaining") == "0":
            self._next_at = time.monotonic() + min(_reset_s(headers), LONGEST_RESET_S)


def _refused(answer: Mapping[str, Any], owners: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The users of whom Braze refused something, from an answer that is a success as a whole."""
    failed: dict[str, str] = {}
    errors = answer.get("errors")
    for error in errors if isinstance(errors, list) else []:
        kind, index = (error.get("input_array"), error.get("index")) if isinstance(error, dict) else (None, None)
        users = owners.get(kind, ()) if isinstance(kind, str) else ()
        if isinstance(index, int) and 0 <= index < len(users):
            failed[users[index]] = f"braze refused {kind}: {_short(error.get('type', error))}"
        else:
            log.warning("braze says error=%s", _short(error))
    return failed


def _reset_s(headers: Mapping[str, str]) -> float:
    """Seconds until the limit is reset, by x-ratelimit-reset, which is a time since the epoch."""
    try:
        reset = float(headers.get("x-ratelimit-reset", ""))
    except ValueError:
        return FIRST_BACKOFF_S
    return max(reset - time.time(), 0.0) if math.isfinite(reset) else FIRST_BACKOFF_S


def _message(answer: Mapping[str, Any]) -> str:
    return _short(answer.get("message", answer))


def _short(value: object) -> str:
    """Return what an answer holds as a text that can be logged: it may be of any size and depth."""
    try:
        return (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))[:MAX_SHOWN]
    except RecursionError:
        return "an answer that is nested too deep to show"


def _json(data: bytes) -> dict[str, Any]:
    """Return a body as an object. One that is none, or too deep for the parser, is its message: Braze has decided already."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {"message": data[:MAX_SHOWN].decode(errors="replace")}
