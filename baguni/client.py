"""A client of the gateway, for backend services, jobs and the command line: protobuf in and out, the domain's exceptions.

Every RPC only reads, so a call that finds no gateway is tried again, at most three times in all and on another replica if the
address names several; many failures in a row stop that (gRPC's retry throttling). A gateway that is too busy says so once:
waiting is the caller's decision.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TypeVar

import grpc

from baguni.errors import BaguniError, InvalidInputError, NotFoundError, UnavailableError
from baguni.v1 import recommendation_pb2 as pb
from baguni.v1 import recommendation_pb2_grpc as pb_grpc

TIMEOUT_S = 5.0
BULK_TIMEOUT_S = 120.0
SERVICE = pb.DESCRIPTOR.services_by_name["RecommendationService"].full_name
SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            "name": [{"service": SERVICE}],
            "retryPolicy": {
                "maxAttempts": 3,
                "initialBackoff": "0.05s",
                "maxBackoff": "0.5s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
    "retryThrottling": {"maxTokens": 20, "tokenRatio": 0.2},
}
OPTIONS = [
    ("grpc.service_config", json.dumps(SERVICE_CONFIG)),
    ("grpc.keepalive_time_ms", 30_000),  # a connection that a router has forgotten is found out
    ("grpc.keepalive_timeout_ms", 5_000),
]
RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT")


class GatewayClient:
    """Blocking calls over one channel, from any thread; `timeout_s` is the deadline of a call with all its attempts.
    Raises InvalidInputError, NotFoundError, UnavailableError for no gateway, a busy one or a deadline, else BaguniError."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._channel = grpc.insecure_channel(address, options=OPTIONS)
        self._stub = pb_grpc.RecommendationServiceStub(self._channel)

    def recommend(self, request: pb.RecommendRequest, timeout_s: float = TIMEOUT_S) -> pb.RecommendResponse:
        """`Recommend`."""
        return self._call(self._stub.Recommend, request, timeout_s)

    def generate_top_items(
        self, user_ids: Sequence[str], k: int, timeout_s: float = BULK_TIMEOUT_S
    ) -> pb.GenerateTopItemsResponse:
        """`GenerateTopItems`."""
        request = pb.GenerateTopItemsRequest(user_ids=user_ids, k=k)
        return self._call(self._stub.GenerateTopItems, request, timeout_s)

    def similar_items(self, request: pb.SimilarItemsRequest, timeout_s: float = TIMEOUT_S) -> pb.SimilarItemsResponse:
        """`SimilarItems`."""
        return self._call(self._stub.SimilarItems, request, timeout_s)

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def _call(self, method: Callable[..., ResponseT], request: RequestT, timeout_s: float) -> ResponseT:
        try:
            return method(request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise self._domain_error(error) from error

    def _domain_error(self, error: grpc.RpcError) -> BaguniError:
        code, details = error.code(), error.details() or ""
        if code is grpc.StatusCode.INVALID_ARGUMENT:
            return InvalidInputError(details)
        if code is grpc.StatusCode.NOT_FOUND:
            return NotFoundError(details)
        if code is grpc.StatusCode.UNAVAILABLE:
            return UnavailableError("gateway", f"{details} (at {self._address}; is it running? `baguni up` starts it)")
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            return UnavailableError("gateway", f"{details} (at {self._address}; it is busy)")
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return UnavailableError("gateway", f"no answer in time (at {self._address})")
        return BaguniError(f"{code.name}: {details}")
