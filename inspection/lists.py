"""The three lists of a user, and what drove each."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from google.protobuf.timestamp_pb2 import Timestamp

from baguni.clients.gateway import GatewayClient
from baguni.domain.errors import NotFoundError, UnavailableError
from baguni.domain.events import LOOKED_AT
from baguni.domain.history import HistoryEvent
from baguni.domain.release import Release
from baguni.domain.scoring import Float32, Int64, served_scores
from baguni.v1 import recommendation_pb2 as pb
from inspection.models import ReleaseModels
from inspection.reasons import MAX_LEFT_OUT, Reason, left_out, strongest
from inspection.retrieval import Encoded, best, scores
from inspection.words import TIERS, sources

RETRIEVAL, GENERATIVE, SERVED = "retrieval", "generative", "served"
Reasons = dict[str, dict[str, list[Reason]]]
"""By list, by item."""


@dataclass(frozen=True)
class ShownItem:
    """One item of a list; `sources` says which parts proposed it."""

    item_id: str
    score: float
    sources: str


@dataclass(frozen=True)
class ShownList:
    """Best first. `note` says how the answer came about, `release_id` whose it is, `version` of which history, 0 if not
    said."""

    items: tuple[ShownItem, ...]
    note: str
    release_id: str
    version: int = 0

    @property
    def item_ids(self) -> list[str]:
        """In their order."""
        return [item.item_id for item in self.items]


def retrieval_list(models: ReleaseModels, events: Sequence[HistoryEvent], now_ms: int, count: int) -> ShownList:
    """The user encoder in Triton, every item vector of the release: nothing is approximated, no rule is applied."""
    user = models.encode([events], now_ms)[0]
    release = models.release
    if user is None:
        raise NotFoundError("nothing is known of this user at that moment, so there is nothing to encode")
    shown = [
        ShownItem(release.catalog.items[item.index].item_id, item.score, "history" if item.known else "retrieval")
        for item in best(user, release.item_vectors, count)
    ]
    return ShownList(tuple(shown), "exact over all items", release.release_id)


def generated_list(gateway: GatewayClient, user_id: str, now_ms: int, count: int) -> ShownList:
    """GenerateTopItems of the gateway."""
    response = gateway.generate_top_items(
        pb.GenerateTopItemsRequest(user_ids=[user_id], k=count, now=timestamp(now_ms)), timeout_s=20.0
    )
    user = response.users[0]
    if user.status not in (pb.USER_STATUS_OK, pb.USER_STATUS_COLD_START):
        raise UnavailableError("generative head", user.message)
    cold = user.status == pb.USER_STATUS_COLD_START
    note = "no history at that moment: popular items" if cold else "written code by code"
    return ShownList(tuple(shown_items(user.items)), note, response.release_id)


def served_list(gateway: GatewayClient, user_id: str, now_ms: int, count: int) -> ShownList:
    """Recommend of the gateway."""
    request_id = f"{LOOKED_AT}{uuid.uuid4().hex}"  # the list is no exposure: its shopper does not see it
    request = pb.RecommendRequest(request_id=request_id, user_id=user_id, page_size=count, now=timestamp(now_ms))
    response = gateway.recommend(request)
    note = TIERS.get(response.degradation_tier, "tier unknown to this page")
    assigned = ", ".join(f"{x.experiment_key}={x.variation_key}" for x in response.experiment_assignments)
    note += f"; experiments: {assigned}" if assigned else ""
    return ShownList(tuple(shown_items(response.items)), note, response.release_id, response.history_version)


def shown_items(items: Sequence[pb.RecommendedItem]) -> list[ShownItem]:
    """As the gateway returned them."""
    return [ShownItem(item.item_id, item.score, sources(item.sources)) for item in items]


def similar_list(gateway: GatewayClient, item_id: str, space: pb.Space.ValueType, count: int) -> ShownList:
    """SimilarItems of the gateway."""
    response = gateway.similar_items(pb.SimilarItemsRequest(item_id=item_id, space=space, page_size=count))
    items = tuple(ShownItem(item.item_id, item.score, "") for item in response.items)
    return ShownList(items, "", response.release_id)


def explained(
    models: ReleaseModels, events: Sequence[HistoryEvent], now_ms: int, item_ids: Sequence[str]
) -> tuple[Reasons, int]:
    """Return what drove each item in the three lists, and how many items of the history were left out to measure it.

    retrieval: change of the retrieval score; generative: of the log-likelihood, in nats; served: of their mix with the
    release's share.
    """
    release = models.release
    items = [release.catalog.index[item_id] for item_id in item_ids if item_id in release.catalog.index]
    asked_ids = [release.catalog.items[index].item_id for index in items]
    causes = models.known_items(events, now_ms, MAX_LEFT_OUT)
    if not items or not causes:
        return {}, 0
    histories = [tuple(events), *left_out(events, causes)]
    vectors = release.item_vectors
    retrieval = np.stack([_scores(user, np.asarray(items), vectors) for user in models.encode(histories, now_ms)])
    generative = models.log_likelihoods(histories, now_ms, items)
    share = release.signature.rescored_share
    kinds = {
        RETRIEVAL: retrieval,
        GENERATIVE: generative,
        SERVED: served_scores(retrieval, generative, share).astype(np.float32),
    }
    reasons = {
        kind: dict(zip(asked_ids, strongest(causes, scores_HI[0], scores_HI[1:]), strict=True))
        for kind, scores_HI in kinds.items()
    }
    return reasons, len(causes)


def _scores(user: Encoded | None, item_I: Int64, item_vectors_NV: Float32) -> Float32:
    """Return the [I] scores of the items, all 0 for a user without a known item."""
    if user is None:
        return np.zeros(len(item_I), np.float32)
    return np.asarray(scores([user], item_vectors_NV[item_I], item_I)[0])


def title(release: Release, item_id: str) -> str:
    """The item's title, or its id where the release does not know it."""
    index = release.catalog.index.get(item_id)
    return item_id if index is None else release.catalog.items[index].title


def timestamp(time_ms: int) -> Timestamp:
    """As requests carry it."""
    return Timestamp(seconds=time_ms // 1000, nanos=time_ms % 1000 * 1_000_000)
