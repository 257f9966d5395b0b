"""A client of the gateway, for the command line, jobs and tests: plain values in, protobuf responses out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import grpc

from baguni.errors import BaguniError, InvalidInputError, NotFoundError, UnavailableError
from baguni.v1 import recommendation_pb2 as pb
from baguni.v1 import recommendation_pb2_grpc as pb_grpc

TIMEOUT_S = 5.0
BULK_TIMEOUT_S = 120.0
RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT")


class GatewayClient:
    """Blocking calls over one channel. Raises the domain's exceptions, not gRPC's."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._channel = grpc.insecure_channel(address)
        self._stub = pb_grpc.RecommendationServiceStub(self._channel)

    def recommend(self, request: pb.RecommendRequest) -> pb.RecommendResponse:
        """`Recommend`."""
        return self._call(self._stub.Recommend, request, TIMEOUT_S)

    def generate_top_items(self, user_ids: Sequence[str], k: int) -> pb.GenerateTopItemsResponse:
        """`GenerateTopItems`."""
        request = pb.GenerateTopItemsRequest(user_ids=user_ids, k=k)
        return self._call(self._stub.GenerateTopItems, request, BULK_TIMEOUT_S)

    def similar_items(self, request: pb.SimilarItemsRequest) -> pb.SimilarItemsResponse:
        """`SimilarItems`."""
        return self._call(self._stub.SimilarItems, request, TIMEOUT_S)

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
        return BaguniError(f"{code.name}: {details}")
