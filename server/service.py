"""The RPCs: protobuf in, query, pipeline, protobuf out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import grpc

from baguni.exposure_token import Exposure
from baguni.signed_tokens import TokenSigner
from baguni.v1 import recommendation_pb2 as pb
from baguni.v1 import recommendation_pb2_grpc as pb_grpc
from server import validation
from server.active_release import ActiveRelease, Serving
from server.capture import Capture, Recorded, stage_ms
from server.deadline import Deadline
from server.experiments import NOTHING, Choices
from server.exposures import Exposures
from server.features import Features
from server.generate import generate_top_items
from server.page_token import PageToken
from server.parts import Parts
from server.queries import RankedItem, RecommendQuery, Tier, UserRanking
from server.recommend import recommend
from server.settings import ServerSettings
from server.similar import similar_items
from server.telemetry import request_id as current_request

Context = grpc.aio.ServicerContext[Any, Any]


class RecommendationService(pb_grpc.RecommendationServiceServicer):
    """The gateway's service over whichever release is active."""

    def __init__(
        self,
        settings: ServerSettings,
        active: ActiveRelease,
        parts: Parts,
        exposures: Exposures,
        capture: Capture,
        features: Features,
        signer: TokenSigner,
    ) -> None:
        self._settings, self._active, self._parts, self._features = settings, active, parts, features
        self._exposures, self._capture, self._signer = exposures, capture, signer

    async def Recommend(self, request: pb.RecommendRequest, context: Context) -> pb.RecommendResponse:  # noqa: N802
        """See recommendation.proto."""
        started = time.perf_counter()
        stage_ms.set({})
        choices = self._choices(request)
        with self._active.held(choices.release_id) as serving:
            if choices.release_id not in (None, serving.release_id):
                self._parts.metrics.arms_not_served.labels(choices.release_id).inc()
            choices = choices.without_release(serving.release_id)
            query, digest = validation.recommend_query(
                request, _attribute_types(serving), serving.release_id, self._signer, choices
            )
            deadline = _deadline(context, self._settings.default_deadline_s)
            ranking = await recommend(serving, self._parts, self._settings, query, deadline)
            if ranking.tier is not Tier.FULL:
                self._parts.metrics.degraded.labels(ranking.tier.name).inc()
            request_id, time_ms = current_request.get(), int(time.time() * 1000)
            next_offset = query.offset + len(ranking.items)
            rescored = ranking.tier is not Tier.RETRIEVAL_ORDER
            token = PageToken(serving.release_id, ranking.as_of_ms, next_offset, rescored, digest)
            response = pb.RecommendResponse(
                request_id=request_id,
                items=_items(ranking.items, query.offset),
                next_page_token=token.encode(self._signer) if ranking.has_more else "",
                release_id=serving.release_id,
                degradation_tier=int(ranking.tier),  # type: ignore[arg-type]
                exposure_token=Exposure(request_id, serving.release_id, request.placement, time_ms).encode(
                    self._signer
                ),
                history_version=ranking.history_version,
                experiment_assignments=[
                    pb.ExperimentAssignment(experiment_key=each.experiment, variation_key=each.variation)
                    for each in choices.assignments
                ],
            )
            self._exposures.add(request, response, time_ms, ranking.explored)
            self._parts.metrics.served(request_id, serving.release_id, request.placement, len(ranking.items))
            took_ms = 1e3 * (time.perf_counter() - started)
            sampled = self._capture.is_sampled()
            if sampled or self._capture.is_slow(took_ms):
                self._capture.add(_recorded(request, query, response, took_ms, sampled))
            return response

    async def GenerateTopItems(  # noqa: N802
        self, request: pb.GenerateTopItemsRequest, context: Context
    ) -> pb.GenerateTopItemsResponse:
        """See recommendation.proto."""
        with self._active.held() as serving:
            query = validation.generate_query(request, _attribute_types(serving))
            deadline = _deadline(context, self._settings.default_bulk_deadline_s)
            rankings = iter(await generate_top_items(serving, self._parts, query, deadline))
            users = [
                _user(user_id, next(rankings)) if validation.is_user_id(user_id) else _invalid_user(user_id)
                for user_id in request.user_ids
            ]
            request_id = current_request.get()
            return pb.GenerateTopItemsResponse(request_id=request_id, users=users, release_id=serving.release_id)

    async def SimilarItems(self, request: pb.SimilarItemsRequest, context: Context) -> pb.SimilarItemsResponse:  # noqa: N802
        """See recommendation.proto."""
        with self._active.held() as serving:
            query = validation.similar_query(request, _attribute_types(serving))
            deadline = _deadline(context, self._settings.default_deadline_s)
            ranking = await similar_items(serving, self._settings, query, deadline)
            request_id = current_request.get()
            return pb.SimilarItemsResponse(
                request_id=request_id, items=_items(ranking.items, 0), release_id=serving.release_id
            )

    def _choices(self, request: pb.RecommendRequest) -> Choices:
        """What experiments choose for whom the list is for."""
        experiments = self._features.experiments
        if not experiments.are_there or not validation.has_few_attributes(request):  # the latter is refused in a moment
            return NOTHING
        is_known = request.WhichOneof("subject") == "user_id"
        own_id = request.user_id if is_known else request.anonymous.anonymous_id
        said = {
            name: getattr(value, value.WhichOneof("value") or "", None) for name, value in request.attributes.items()
        }
        who = {"id": own_id, "user_id" if is_known else "anonymous_id": own_id}
        return experiments.choose({**said, **who, "is_anonymous": not is_known, "placement": request.placement})


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


def _attribute_types(serving: Serving) -> dict[str, str]:
    return dict(serving.release.catalog.attribute_types)


def _deadline(context: Context, default_s: float) -> Deadline:
    remaining = context.time_remaining()
    return Deadline(default_s if remaining is None else remaining)


def _items(items: Sequence[RankedItem], offset: int) -> list[pb.RecommendedItem]:
    return [
        pb.RecommendedItem(
            item_id=item.item_id,
            score=item.score,
            position=offset + position,
            sources=[int(source) for source in item.sources],  # type: ignore[misc]
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
