"""What campaigns prepared, over HTTP, for messages that fetch their content when they are sent (Braze's Connected Content).

GET /v1/campaigns/{campaign}/users/{user_id} answers every caller with the right token 200 with items whatever happens, since a
message is sent whether its content comes or not: the user's own of the last run of the campaign that has some, or else popular
items, and says which.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import sqlite3
from contextlib import closing
from dataclasses import dataclass, field

from aiohttp import web

from baguni.background import Background
from baguni.clients.gateway import GatewayClient
from baguni.domain.errors import BaguniError, InvalidInputError
from baguni.domain.history import History
from baguni.exposition import expose
from baguni.stores.history_store import HistoryReader
from baguni.stores.redis_client import connect_async
from baguni.v1 import recommendation_pb2 as pb
from crm.forgetting import forget_unless_running
from crm.metrics import Metrics
from crm.settings import CrmSettings
from crm.state import CampaignState, Push

log = logging.getLogger(__name__)
MAX_K, DEFAULT_K = 50, 10
PATH = "/v1/campaigns/{campaign:[^/]+}/users/{user_id:(?s:.+)}"  # aiohttp's own pattern takes no id with a brace or a slash
FALLBACK_EVERY_S, RETRY_S = 300.0, 5.0
COUNTED_EVERY_S = 15.0
FORGET_EVERY_S = 30.0
FALLBACK_TIMEOUT_S = 2.0
DELETED_TIMEOUT_S = 0.03


@dataclass
class Content:
    """Answers. `popular` is renewed every few minutes, and stays what it was while the gateway is away."""

    state: CampaignState
    histories: HistoryReader
    gateway: GatewayClient
    token: str
    metrics: Metrics
    popular: list[str] = field(default_factory=list)

    async def items(self, request: web.Request) -> web.Response:
        """One user's items."""
        if not self._is_allowed(request):
            return web.json_response({"error": "expected the header Authorization: Bearer TOKEN"}, status=401)
        k = _number(request.query.get("k", ""))
        campaign, user_id = request.match_info["campaign"], request.match_info["user_id"]
        found = await self._own(campaign, user_id)
        if found is None:
            self.metrics.content.labels("popular").inc()
            return web.json_response({"user_id": user_id, "items": self.popular[:k], "source": "popular"})
        run_id, push = found
        source = "popular" if push.cold_start else "generated"
        self.metrics.content.labels(source).inc()
        return web.json_response(
            {
                "user_id": user_id,
                "items": [item.item_id for item in push.items[:k]],
                "source": source,
                "run_id": run_id,
                "release_id": push.release_id,
            }
        )

    def _is_allowed(self, request: web.Request) -> bool:
        if not self.token:
            return True
        given = request.headers.get("Authorization", "").encode(errors="surrogateescape")  # as it came, whatever it is
        return hmac.compare_digest(given, f"Bearer {self.token}".encode(errors="surrogateescape"))

    async def _own(self, campaign: str, user_id: str) -> tuple[str, Push] | None:
        """Return what the last run has for the user, and the run; None for nobody, and for what cannot be read."""
        try:
            found = self.state.last_push(campaign, user_id)
            return None if found is None or await self._is_deleted(user_id) else found
        except Exception as error:  # the message is sent all the same, and popular items are better than none
            log.warning("items of a user not read error=%r", error)
            return None

    async def keep_popular_fresh(self) -> None:
        """Ask the gateway, now and again; soon again as long as there is nothing to answer with."""
        while True:
            try:
                self.popular = await asyncio.to_thread(self._popular) or self.popular
            except BaguniError as error:
                log.warning("popular items not renewed error=%s", error)
            await asyncio.sleep(FALLBACK_EVERY_S if self.popular else RETRY_S)

    async def keep_counts_fresh(self) -> None:
        """Tell Prometheus what the state says, now and again."""
        while True:
            try:
                await asyncio.to_thread(self.metrics.read, self.state.folder)
            except sqlite3.Error as error:
                log.warning("campaigns not counted error=%s", error)
            await asyncio.sleep(COUNTED_EVERY_S)

    def _popular(self) -> list[str]:
        request = pb.RecommendRequest(anonymous=pb.AnonymousUser(), page_size=MAX_K)
        return [item.item_id for item in self.gateway.recommend(request, FALLBACK_TIMEOUT_S).items]

    async def _is_deleted(self, user_id: str) -> bool:
        """Whether the user asked to be forgotten since; if nobody answers in time, no."""
        try:
            async with asyncio.timeout(DELETED_TIMEOUT_S):
                history: History = (await self.histories.read([user_id]))[0]
        except (BaguniError, TimeoutError):
            return False
        return history.deleted_ms > 0 and not history.events


def application(settings: CrmSettings, state: CampaignState) -> web.Application:
    """The server's routes; `state` stays open as long as it runs."""
    metrics = Metrics()
    expose(metrics.registry, settings.metrics_address)

    async def running(app: web.Application):  # type: ignore[no-untyped-def]
        client = connect_async(settings.redis_url)
        with closing(settings.gateway()) as gateway:
            token = settings.crm_content_token.get_secret_value()
            content = Content(state, HistoryReader(client), gateway, token, metrics)
            app.router.add_get(PATH, content.items)
            tasks = Background(metrics.restarts)
            tasks.start("popular", content.keep_popular_fresh)
            tasks.start("forgetting", lambda: _keep_forgetting(settings))
            if settings.metrics_address:
                tasks.start("counts", content.keep_counts_fresh)
            yield
            await tasks.stop()
            await client.aclose()

    app = web.Application()
    app.cleanup_ctx.append(running)
    return app


def _number(text: str) -> int:
    """Return how many items are asked for, at most MAX_K; DEFAULT_K if it is no number."""
    digits = text.lstrip("0")
    if not (digits.isascii() and digits.isdecimal()):
        return DEFAULT_K
    return MAX_K if len(digits) > len(str(MAX_K)) else min(int(digits), MAX_K)


async def _keep_forgetting(settings: CrmSettings) -> None:
    """Remove users who ask to be forgotten, also where no campaign runs any more."""
    while True:
        try:
            await asyncio.to_thread(forget_unless_running, settings)
        except (BaguniError, sqlite3.Error) as error:
            log.warning("users to forget not read error=%s", error)
        await asyncio.sleep(FORGET_EVERY_S)


def serve_content(settings: CrmSettings, address: str) -> None:
    """Until SIGTERM or SIGINT. Raises InvalidInputError for an address that is none."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise InvalidInputError(f"--address is {address!r}, expected HOST:PORT")
    with closing(CampaignState(settings.crm_state)) as state:
        web.run_app(application(settings, state), host=host, port=int(port), print=None)
