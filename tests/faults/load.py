"""Page views at a fixed rate, each with a deadline, whatever becomes of those before; and what became of each."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

import grpc
import numpy as np
from google.protobuf.timestamp_pb2 import Timestamp

from baguni.v1 import recommendation_pb2 as pb
from baguni.v1 import recommendation_pb2_grpc as pb_grpc

NOW_MS = 1_712_000_000_000
USERS = tuple(f"shopper-{number}" for number in range(200))
PER_S = 20.0
DEADLINE_S = 2.0
SHED = "RESOURCE_EXHAUSTED"
OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]


@dataclass(frozen=True)
class PageView:
    """Seconds on the monotonic clock; outcome is the tier's name, or the status of a failure."""

    due: float
    took_s: float
    outcome: str
    release_id: str = ""
    item_ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class PageViews:
    """What became of a stretch of load."""

    views: Sequence[PageView]

    def between(self, start: float, end: float) -> PageViews:
        """Those that were due then."""
        return PageViews([view for view in self.views if start <= view.due < end])

    @property
    def outcomes(self) -> Counter[str]:
        """Outcome → count."""
        return Counter(view.outcome for view in self.views)

    @property
    def failed(self) -> Counter[str]:
        """Outcome → count, of what is neither a page nor a refusal in time."""
        pages = set(pb.DegradationTier.keys()) | {SHED}
        late = Counter("LATE" for view in self.views if view.took_s > DEADLINE_S and view.outcome in pages)
        return Counter({name: count for name, count in self.outcomes.items() if name not in pages}) + late

    @property
    def p99_ms(self) -> float:
        """Of all of them."""
        return 1e3 * float(np.percentile([view.took_s for view in self.views], 99)) if self.views else 0.0

    def in_words(self) -> str:
        """Tiers and refusals, most first."""
        names = {SHED: "shed"}
        return ", ".join(
            f"{count} {names.get(name, name.removeprefix('DEGRADATION_TIER_'))}"
            for name, count in self.outcomes.most_common()
        )

    @property
    def not_full(self) -> list[PageView]:
        """Those with anything but a full page, in their order."""
        full = pb.DegradationTier.Name(pb.DEGRADATION_TIER_FULL)
        return [view for view in self.views if view.outcome != full]


async def page_views(
    address: str, seconds: float, meanwhile: Callable[[], None] | None = None, connections: int = 1
) -> PageViews:
    """Load of PER_S for so many seconds, and for as long as `meanwhile` runs in a thread."""
    views: list[PageView] = []
    async with AsyncExitStack() as opened:
        channels = [grpc.aio.insecure_channel(address, options=OWN_CONNECTION) for _ in range(connections)]
        stubs = [pb_grpc.RecommendationServiceStub(await opened.enter_async_context(channel)) for channel in channels]
        # A page's moment moves on, so that embeddings are made anew and not only remembered.
        began = time.monotonic()

        async def send(number: int, due: float) -> None:
            now = Timestamp(seconds=NOW_MS // 1000 + int(due - began))
            request = pb.RecommendRequest(user_id=USERS[number % len(USERS)], page_size=10, now=now)
            try:
                response = await stubs[number % connections].Recommend(request, timeout=DEADLINE_S)
            except grpc.aio.AioRpcError as error:
                views.append(PageView(due, time.monotonic() - due, error.code().name))
                return
            outcome = pb.DegradationTier.Name(response.degradation_tier)
            items = tuple(item.item_id for item in response.items)
            views.append(PageView(due, time.monotonic() - due, outcome, response.release_id, items))

        async def load() -> None:
            async with asyncio.TaskGroup() as asking:
                for number in itertools.count():
                    due = began + number / PER_S
                    await asyncio.sleep(max(due - time.monotonic(), 0))
                    if done.is_set():
                        return
                    asking.create_task(send(number, due))

        done = asyncio.Event()
        loading = asyncio.create_task(load())
        try:
            if meanwhile is not None:
                await asyncio.to_thread(meanwhile)
            await asyncio.sleep(seconds)
        finally:
            done.set()
            await loading
    return PageViews(sorted(views, key=lambda view: view.due))
