"""The RPCs: read the request, choose experiments, make the list, answer and report."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import grpc

from baguni.domain.events import is_id
from baguni.domain.exposure_token import Exposure
from baguni.domain.signed_tokens import TokenSigner
from baguni.v1 import recommendation_pb2 as pb
from baguni.v1 import recommendation_pb2_grpc as pb_grpc
from server.edge import validation
from server.edge.page_token import PageToken
from server.experiments.choices import NO_CHOICES, Choices
from server.experiments.features import Features
from server.lists.calls import Calls, ListRequest
from server.lists.deadline import Deadline
from server.lists.generate import generate_top_items
from server.lists.queries import RankedItem, Ranking, RecommendQuery, Tier, UserRanking
from server.lists.recommend import recommend
from server.lists.similar import similar_items
from server.release.active_release import ActiveRelease, Serving
from server.settings import ServerSettings
from server.telemetry.capture import Capture, Recorded, stage_ms
from server.telemetry.exposures import Exposures, Served
from server.telemetry.tracing import request_id as current_request

Context = grpc.aio.ServicerContext[Any, Any]


class RecommendationService(pb_grpc.RecommendationServiceServicer):
    """The RPCs of the gateway, answered from the active release or from one that an experiment chooses."""

    def __init__(
        self,
        settings: ServerSettings,
        active: ActiveRelease,
        calls: Calls,
        exposures: Exposures,
        capture: Capture,
        features: Features,
        signer: TokenSigner,
    ) -> None:
        self._settings, self._active, self._calls, self._features = settings, active, calls, features
        self._exposures, self._capture, self._signer = exposures, capture, signer

    async def Recommend(self, request: pb.RecommendRequest, context: Context) -> pb.RecommendResponse:  # noqa: N802
        """See recommendation.proto."""
        started = time.perf_counter()
        stage_ms.set({})
        draft = validation.RecommendDraft(request)
        choices = self._choices(draft)
        with self._active.held(choices.release_id) as serving:
            if choices.release_id not in (None, serving.release_id):
                self._calls.metrics.arms_not_served.labels(choices.release_id).inc()
            choices = choices.without_release(serving.release_id)
            query, digest = draft.query(_attribute_types(serving), serving.release_id, self._signer, choices)
            deadline = _deadline(context, self._settings.default_deadline_s)
            ranking = await recommend(ListRequest(query, serving, self._calls, self._settings, deadline))
            served = _served(query)
            response = self._response(query, ranking, serving.release_id, digest, served.time_ms)
            self._report(query, ranking, response, served)
            took_ms = 1e3 * (time.perf_counter() - started)
            if (sampled := self._capture.is_sampled()) or self._capture.is_slow(took_ms):
                self._capture.add(_recorded(request, query, response, took_ms, sampled))
            return response

    async def GenerateTopItems(  # noqa: N802
        self, request: pb.GenerateTopItemsRequest, context: Context
    ) -> pb.GenerateTopItemsResponse:
        """See recommendation.proto."""
        with self._active.held() as serving:
            query = validation.generate_query(request, _attribute_types(serving))
            deadline = _deadline(context, self._settings.default_bulk_deadline_s)
            asked = ListRequest(query, serving, self._calls, self._settings, deadline, is_bulk=True)
            rankings = iter(await generate_top_items(asked))
            users = [
                _user(user_id, next(rankings)) if is_id(user_id) else _invalid_user(user_id)
                for user_id in request.user_ids
            ]
            request_id = current_request.get()
            return pb.GenerateTopItemsResponse(request_id=request_id, users=users, release_id=serving.release_id)

    async def SimilarItems(self, request: pb.SimilarItemsRequest, context: Context) -> pb.SimilarItemsResponse:  # noqa: N802
        """See recommendation.proto."""
        with self._active.held() as serving:
            query = validation.similar_query(request, _attribute_types(serving))
            deadline = _deadline(context, self._settings.default_deadline_s)
            ranking = await similar_items(ListRequest(query, serving, self._calls, self._settings, deadline))
            request_id = current_request.get()
            return pb.SimilarItemsResponse(
                request_id=request_id, items=_items(ranking.items, 0), release_id=serving.release_id
            )

    def _choices(self, draft: validation.RecommendDraft) -> Choices:
        """Return what experiments choose for the visitor; nothing for a request that is refused in a moment."""
        experiments, visitor = self._features.experiments, draft.visitor
        if not experiments.are_there or not draft.is_valid:
            return NO_CHOICES
        own = {
            "id": visitor.id,
            "anonymous_id" if visitor.is_anonymous else "user_id": visitor.id,
            "is_anonymous": visitor.is_anonymous,
            "placement": draft.request.placement,
        }
        return experiments.choose({**draft.attributes, **own})

    def _response(
        self, query: RecommendQuery, ranking: Ranking, release_id: str, digest: str, time_ms: int
    ) -> pb.RecommendResponse:
        """Return the page with its tokens."""
        request_id = current_request.get()
        next_offset = query.offset + len(ranking.items)
        rescored = ranking.tier is not Tier.RETRIEVAL_ORDER
        token = PageToken(release_id, ranking.as_of_ms, next_offset, rescored, digest)
        exposure = Exposure(request_id, release_id, query.placement, time_ms)
        return pb.RecommendResponse(
            request_id=request_id,
            items=_items(ranking.items, query.offset),
            next_page_token=token.encode(self._signer) if ranking.has_more else "",
            release_id=release_id,
            degradation_tier=int(ranking.tier),  # type: ignore[arg-type]
            exposure_token=exposure.encode(self._signer),
            history_version=ranking.history_version,
            experiment_assignments=[
                pb.ExperimentAssignment(experiment_key=each.experiment, variation_key=each.variation)
                for each in query.assignments
            ],
        )

    def _report(self, query: RecommendQuery, ranking: Ranking, response: pb.RecommendResponse, served: Served) -> None:
        """Report a served page in metrics and as an exposure."""
        metrics = self._calls.metrics
        if ranking.tier is not Tier.FULL:
            metrics.degraded.labels(ranking.tier.name).inc()
        self._exposures.add(response, served, ranking.explored)
        metrics.served(response.request_id, response.release_id, query.placement, len(ranking.items))


def _served(query: RecommendQuery) -> Served:
    visitor = query.visitor
    anonymous_id = visitor.id if visitor.is_anonymous else ""
    return Served(visitor.user_id or "", anonymous_id, query.placement, int(time.time() * 1000))


def _recorded(
    request: pb.RecommendRequest, query: RecommendQuery, response: pb.RecommendResponse, took_ms: float, sampled: bool
) -> Recorded:
    return Recorded(
        request,
        response.request_id,
        response.release_id,
        query.now_ms,
        query.offset,
        query.rescored,
        Tier(response.degradation_tier).name,
        tuple(item.item_id for item in response.items),
        round(took_ms, 3),
        dict(stage_ms.get() or {}),
        response.exposure_token,
        sampled,
        int(time.time() * 1000),
    )


def _attribute_types(serving: Serving) -> Mapping[str, str]:
    return serving.release.catalog.attribute_types


def _deadline(context: Context, default_s: float) -> Deadline:
    remaining = context.time_remaining()
    return Deadline(default_s if remaining is None else remaining)


def _items(items: Sequence[RankedItem], offset: int) -> list[pb.RecommendedItem]:
    return [
        pb.RecommendedItem(
            item_id=item.item_id,
            score=item.score,
            position=offset + position,
            sources=item.sources,  # type: ignore[arg-type]
        )
        for position, item in enumerate(items)
    ]


def _user(user_id: str, ranking: UserRanking) -> pb.UserTopItems:
    if ranking.error:
        return pb.UserTopItems(
            user_id=user_id, status=pb.USER_STATUS_FAILED, message="this user could not be served now: try again"
        )
    status = pb.USER_STATUS_COLD_START if ranking.cold else pb.USER_STATUS_OK
    return pb.UserTopItems(user_id=user_id, status=status, items=_items(ranking.items, 0))


def _invalid_user(user_id: str) -> pb.UserTopItems:
    message = f"user_id has {len(user_id)} characters, expected 1 to {validation.MAX_ID}"
    return pb.UserTopItems(user_id=user_id[: validation.MAX_ID], status=pb.USER_STATUS_INVALID_USER_ID, message=message)
