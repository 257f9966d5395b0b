"""Answer captured requests from the active release and from a candidate, to show what would change before anyone activates it.

Both are asked in one process, in turn, with the same stored histories: only the release differs. Nothing is remembered between
requests, so every user is encoded again.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from baguni.domain.errors import BaguniError
from baguni.domain.release import ReleaseStore
from baguni.domain.signed_tokens import TokenSigner, new_key
from baguni.stores.redis_client import connect_async
from baguni.v1 import recommendation_pb2 as pb
from server.edge import validation
from server.lists.calls import Calls, ListRequest
from server.lists.deadline import Deadline
from server.lists.queries import Ranking
from server.lists.recommend import recommend
from server.release.active_release import Serving, open_serving
from server.settings import ServerSettings
from server.telemetry.capture import Recorded
from server.telemetry.metrics import Metrics
from server.telemetry.tracing import Telemetry


@dataclass
class Side:
    """Answers of one release."""

    release_id: str
    took_ms: list[float] = field(default_factory=list)
    tiers: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)

    def summary(self) -> dict[str, Any]:
        """Latency percentiles in ms, tiers and refusals by their reason."""
        latency = {f"p{p}_ms": float(np.percentile(self.took_ms, p)) if self.took_ms else None for p in (50, 99)}
        return {
            "release_id": self.release_id,
            "answered": len(self.took_ms),
            **latency,
            "tiers": dict(self.tiers),
            "refused": dict(self.refused),
        }


@dataclass
class Comparison:
    """A candidate beside the active release. Per request that both answered: the share of the active list's items that the
    candidate lists too; for each of these the candidate's score less the active one's; whether the first item is the same.
    `recorded`: the share of what was served then that the active release lists now. `lists`: what the candidate would have
    shown in place of each page that chance wrote down, as (exposure token, position over all pages, item id)."""

    active: Side
    candidate: Side
    overlap: list[float] = field(default_factory=list)
    same_first: list[bool] = field(default_factory=list)
    score_shift: list[float] = field(default_factory=list)
    recorded: list[float] = field(default_factory=list)
    lists: list[tuple[str, int, str]] = field(default_factory=list)

    @property
    def mean_overlap(self) -> float | None:
        """Return the mean share of items that both list; None if nothing can be compared."""
        return _mean(self.overlap)

    @property
    def latency_ratio(self) -> float | None:
        """Return the candidate's median over the active release's."""
        if not self.active.took_ms or not self.candidate.took_ms:
            return None
        return float(np.median(self.candidate.took_ms) / np.median(self.active.took_ms))

    def summary(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        shift = np.asarray(self.score_shift)
        return {
            "compared": len(self.overlap),
            "overlap": {
                "mean": self.mean_overlap,
                "p5": float(np.percentile(self.overlap, 5)) if self.overlap else None,
                "same_first": _mean(self.same_first),
                "active_with_recorded": _mean(self.recorded),
            },
            "score_shift": {
                "mean": _mean(self.score_shift),
                "p5": float(np.percentile(shift, 5)) if len(shift) else None,
                "p95": float(np.percentile(shift, 95)) if len(shift) else None,
            },
            "latency_ratio": self.latency_ratio,
            "active": self.active.summary(),
            "candidate": self.candidate.summary(),
        }


async def replay(
    requests: Iterable[Recorded], settings: ServerSettings, active_id: str, candidate_id: str
) -> Comparison:
    """Both releases must be loaded. Raises ReleaseMismatchError, NotFoundError or UnavailableError if one is not."""
    settings = settings.model_copy(update={"embedding_age_s": 0.0})
    store = ReleaseStore(settings.releases)
    found = Comparison(Side(active_id), Side(candidate_id))
    async with AsyncExitStack() as opened:
        client = await opened.enter_async_context(connect_async(settings.redis_url))
        sides = []
        for side in (found.active, found.candidate):
            serving = await open_serving(settings, store, client, side.release_id)
            opened.push_async_callback(serving.close)
            calls = Calls.of(settings, client, Metrics(), Telemetry())
            opened.push_async_callback(calls.close)
            sides.append((side, serving, calls))
        for number, recorded in enumerate(requests):
            answers: dict[str, Ranking | None] = {}
            for side, serving, calls in sides if number % 2 else reversed(sides):  # nobody always finds warm caches
                answers[serving.release_id] = await _answer(recorded, serving, calls, settings, side)
            _compare(found, recorded, answers)
    return found


async def _answer(
    recorded: Recorded, serving: Serving, calls: Calls, settings: ServerSettings, side: Side
) -> Ranking | None:
    """Return the list of this release, None if it refuses the request, for reasons of its own."""
    request = pb.RecommendRequest()
    request.CopyFrom(recorded.request)
    request.ClearField("page_token")  # of another release; what it said was recorded beside it
    types = dict(serving.release.catalog.attribute_types)
    started = time.perf_counter()
    try:
        query, _ = validation.RecommendDraft(request).query(types, serving.release_id, TokenSigner([new_key()]))
        query = replace(query, now_ms=recorded.now_ms, offset=recorded.offset, rescored=recorded.rescored)
        deadline = Deadline(settings.default_deadline_s)
        ranking = await recommend(ListRequest(query, serving, calls, settings, deadline))
    except BaguniError as error:
        side.refused[str(error)[:200]] += 1
        return None
    side.took_ms.append(1e3 * (time.perf_counter() - started))
    side.tiers[ranking.tier.name] += 1
    return ranking


def _compare(found: Comparison, recorded: Recorded, answers: Mapping[str, Ranking | None]) -> None:
    active, candidate = answers[found.active.release_id], answers[found.candidate.release_id]
    if active is not None and recorded.item_ids and active.items:
        served = {item.item_id for item in active.items}
        found.recorded.append(len(served & set(recorded.item_ids)) / len(recorded.item_ids))
    if candidate is not None and recorded.sampled:
        found.lists += [
            (recorded.exposure_token, recorded.offset + place, item.item_id)
            for place, item in enumerate(candidate.items)
        ]
    if active is None or candidate is None or not active.items:
        return
    before = {item.item_id: item.score for item in active.items}
    after = {item.item_id: item.score for item in candidate.items}
    both = before.keys() & after.keys()
    found.overlap.append(len(both) / len(before))
    found.same_first.append(bool(after) and next(iter(before)) == next(iter(after)))
    found.score_shift += [after[item_id] - before[item_id] for item_id in both]


def _mean(values: list[Any]) -> float | None:
    return float(np.mean(values)) if values else None
