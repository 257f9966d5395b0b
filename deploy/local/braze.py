"""A Braze workspace on this machine, as far as /users/track goes, for tests and the demo:

python -m deploy.local.braze PORT KEY

It keeps what it takes in memory: attributes are set, events are added, twice if they are sent twice. GET /local/users shows all
users, GET /local/users/USER one, GET /local/counts what was asked. POST /local/faults with a list sets how the next requests
that carry something go wrong, one each:

    {}                                       nothing goes wrong
    {"status": 500}                          answered so, nothing taken
    {"status": 504, "takes": true}           answered so, as a proxy does that waited too short, and taken
    {"status": 429, "reset_s": 1}            the limit is reached for a second
    {"hang_s": 5, "takes": true}             taken or not, and not answered in time
    {"drop": true, "takes": true}            taken or not, and the connection closed
    {"body": "[]", "headers": {}, "takes": true}    taken, and answered with this text and these headers
"""

from __future__ import annotations

import asyncio
import math
import sys
import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from aiohttp import web

KINDS = {"attributes": (), "events": ("name", "time"), "purchases": ("product_id", "currency", "price", "time")}
MAX_OBJECTS = 75  # of all kinds together
LIMIT, WINDOW_S = 3_000, 3.0  # requests
MAX_BYTES = 4 << 20


@dataclass
class Workspace:
    """Users by external id, and what is to go wrong."""

    key: str
    limit: int = LIMIT
    users: dict[str, dict[str, Any]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    faults: deque[Mapping[str, Any]] = field(default_factory=deque)
    window: int = -1
    used: int = 0

    async def track(self, request: web.Request) -> web.StreamResponse:
        """POST /users/track."""
        self.counts["requests"] += 1
        if request.headers.get("Authorization") != f"Bearer {self.key}":
            return self._answer(401, {"message": "Invalid API key"}, {})
        try:
            body = await request.json()
        except ValueError:
            body = None
        fault = self.faults.popleft() if self.faults and body else {}
        limit = self._limit_headers(fault)
        if limit["X-RateLimit-Remaining"] == "-1":
            limit["X-RateLimit-Remaining"] = "0"
            return self._answer(429, {"message": "Rate limit exceeded"}, limit)
        if fault.get("status"):
            if fault.get("takes"):
                self._take(body)
            return self._answer(fault["status"], {"message": "Something went wrong"}, limit)
        if body is None:
            return self._answer(400, {"message": "The request body is not valid JSON"}, limit)
        if fault and not fault.get("takes"):
            return await self._break(request, fault)
        status, answer = self._take(body)
        if "body" in fault:
            return web.Response(text=fault["body"], status=status, headers={**limit, **fault.get("headers", {})})
        if fault:
            return await self._break(request, fault)
        return self._answer(status, answer, limit)

    def _take(self, body: Any) -> tuple[int, dict[str, Any]]:
        if not isinstance(body, dict) or not any(body.get(kind) for kind in KINDS):
            return 400, {"message": "Valid data must be provided in the 'attributes', 'events', or 'purchases' fields."}
        objects = {kind: body[kind] for kind in KINDS if body.get(kind)}
        if not all(isinstance(given, list) for given in objects.values()):
            return 400, {"message": "'attributes', 'events' and 'purchases' must be arrays"}
        if sum(map(len, objects.values())) > MAX_OBJECTS:
            return 400, {"message": f"No more than {MAX_OBJECTS} objects can be sent in one request."}
        answer: dict[str, Any] = {"message": "success"}
        errors = []
        for kind, given in objects.items():
            taken = 0
            for index, content in enumerate(given):
                problem = _problem(kind, content)
                if problem:
                    errors.append({"type": problem, "input_array": kind, "index": index})
                else:
                    self._keep(kind, content)
                    taken += 1
            answer[f"{kind}_processed"] = taken
            self.counts[kind] += taken
        if errors:
            answer["errors"] = errors
        return 201, answer

    def _keep(self, kind: str, content: Mapping[str, Any]) -> None:
        user = self.users.setdefault(content["external_id"], {"attributes": {}, "events": [], "purchases": []})
        said = {name: value for name, value in content.items() if name != "external_id"}
        if kind != "attributes":
            user[kind].append(said)
            return
        self.counts["data_points"] += len(said)
        for name, value in said.items():
            if value is None:
                user["attributes"].pop(name, None)
            else:
                user["attributes"][name] = value

    def _limit_headers(self, fault: Mapping[str, Any]) -> dict[str, str]:
        window = int(time.time() / WINDOW_S)
        if window != self.window:
            self.window, self.used = window, 0
        self.used += 1
        left, reset = self.limit - self.used, (window + 1) * WINDOW_S
        if fault.get("status") == 429:
            left, reset = -1, time.time() + fault.get("reset_s", 1)
        return {
            "X-RateLimit-Limit": str(self.limit),
            "X-RateLimit-Remaining": str(max(left, -1)),
            "X-RateLimit-Reset": str(math.ceil(reset)),
        }

    def _answer(self, status: int, content: Mapping[str, Any], headers: Mapping[str, str]) -> web.Response:
        self.counts[f"answered {status}"] += 1
        return web.json_response(content, status=status, headers=headers)

    async def _break(self, request: web.Request, fault: Mapping[str, Any]) -> web.Response:
        await asyncio.sleep(fault.get("hang_s", 0))
        if request.transport is not None:
            request.transport.close()
        return web.Response()

    async def show_all(self, request: web.Request) -> web.Response:
        """GET /local/users."""
        return web.json_response(self.users)

    async def show(self, request: web.Request) -> web.Response:
        """GET /local/users/{user}."""
        return web.json_response(self.users.get(request.match_info["user"], {}))

    async def count(self, request: web.Request) -> web.Response:
        """GET /local/counts."""
        return web.json_response({**self.counts, "users": len(self.users)})

    async def break_next(self, request: web.Request) -> web.Response:
        """POST /local/faults."""
        self.faults.extend(await request.json())
        return web.json_response({"faults": len(self.faults)})


def application(workspace: Workspace) -> web.Application:
    """Its routes."""
    app = web.Application(client_max_size=MAX_BYTES)
    app.router.add_post("/users/track", workspace.track)
    app.router.add_get("/local/users", workspace.show_all)
    app.router.add_get("/local/users/{user}", workspace.show)
    app.router.add_get("/local/counts", workspace.count)
    app.router.add_post("/local/faults", workspace.break_next)
    return app


def _problem(kind: str, content: Any) -> str:
    if not isinstance(content, dict) or not content.get("external_id"):
        return "'external_id', 'braze_id', 'user_alias', 'email' or 'phone' is required"
    for name in KINDS[kind]:
        if content.get(name) in (None, ""):
            return f"'{name}' is required"
    if "time" in KINDS[kind]:
        try:
            datetime.fromisoformat(str(content["time"]))
        except ValueError:
            return "'time' is not a valid ISO 8601 time"
    return ""


def main() -> None:
    """Serve until it is told to stop."""
    if len(sys.argv) != 3 or not sys.argv[1].isdecimal():
        sys.exit("usage: python -m deploy.local.braze PORT KEY")
    web.run_app(application(Workspace(sys.argv[2])), host="127.0.0.1", port=int(sys.argv[1]), print=None)


if __name__ == "__main__":
    main()
