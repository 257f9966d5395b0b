"""A client of the gateway, for backend services, jobs and the command line: protobuf in and out, the domain's exceptions.

Every RPC only reads, so it may be asked twice:

- a call that finds no gateway is tried again, at most three times in all and on another replica if the address names several;
  many failures in a row stop that (gRPC's retry throttling);
- a page that is not there after `hedge_after_s` is asked for once more over another connection, and the first answer counts;
  at most one call in twenty is, in the long run, so that a gateway that is slow for all is not asked twice by all.

A gateway that is too busy says so once: waiting is the caller's decision. A message that is too large is invalid input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import grpc
from pydantic import SecretStr

from baguni.clients.channels import KEEPALIVE, balanced
from baguni.domain.errors import BaguniError, InvalidInputError, NotFoundError, UnavailableError
from baguni.settings import Endpoints
from baguni.v1 import recommendation_pb2 as pb
from baguni.v1 import recommendation_pb2_grpc as pb_grpc

TIMEOUT_S = 5.0
BULK_TIMEOUT_S = 120.0
HEDGE_AFTER_S = 0.2
HEDGED_SHARE, MOST_HEDGES = 0.05, 10.0  # of all calls in the long run; in a row
# The largest answer: 50 items for each of 256 users, with ids of 256 characters of four bytes. gRPC's default is a quarter.
MAX_ANSWER_BYTES = 16 << 20
TOO_LARGE = (
    "message larger than max"  # gRPC's words: the code is that of a busy gateway, but another attempt changes nothing
)
SERVICE = pb.DESCRIPTOR.services_by_name["RecommendationService"].full_name
# A server that is stopping cancels what reached it and was not begun; every method can be asked twice.
BALANCED = balanced(
    SERVICE, 3, (0.05, 0.5), ("UNAVAILABLE", "CANCELLED"), retryThrottling={"maxTokens": 20, "tokenRatio": 0.2}
)
OPTIONS = [
    *BALANCED.items(),
    *KEEPALIVE.items(),
    ("grpc.use_local_subchannel_pool", 1),  # so that two channels are two connections
    ("grpc.max_receive_message_length", MAX_ANSWER_BYTES),
]


@dataclass(frozen=True)
class Tls:
    """PEM files: the authority that signs the gateway's certificate, and for mutual TLS one's own key and certificate chain."""

    authority: Path
    key: Path | None = None
    certificate: Path | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """Return the credentials of a channel. Raises InvalidInputError for a file that cannot be read."""
        try:
            authority, key, certificate = (
                file.read_bytes() if file else None for file in (self.authority, self.key, self.certificate)
            )
        except OSError as error:
            raise InvalidInputError(f"TLS file: {error}", "tls") from error
        return grpc.ssl_channel_credentials(authority, key, certificate)


class GatewayClient:
    """Blocking calls, from any thread; `timeout_s` is the deadline of a call with all its attempts. `token` is a bearer token;
    `tls`: None for plain text; `hedge_after_s`: None to ask once only. Raises InvalidInputError, NotFoundError,
    UnavailableError for no gateway, a busy one or a deadline, else BaguniError."""

    def __init__(
        self, address: str, token: str = "", tls: Tls | None = None, hedge_after_s: float | None = HEDGE_AFTER_S
    ) -> None:
        self._address, self._hedge_after_s = address, hedge_after_s
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self._channels = [_channel(address, tls) for _ in range(1 if hedge_after_s is None else 2)]
        self._stubs = [pb_grpc.RecommendationServiceStub(channel) for channel in self._channels]
        self._hedges = MOST_HEDGES

    def recommend(self, request: pb.RecommendRequest, timeout_s: float = TIMEOUT_S) -> pb.RecommendResponse:
        """`Recommend`."""
        response: pb.RecommendResponse = self._hedged([stub.Recommend for stub in self._stubs], request, timeout_s)
        return response

    def generate_top_items(
        self, request: pb.GenerateTopItemsRequest, timeout_s: float = BULK_TIMEOUT_S
    ) -> pb.GenerateTopItemsResponse:
        """`GenerateTopItems`, asked once only: it is slow because it is much."""
        try:
            return self._stubs[0].GenerateTopItems(request, timeout=timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise self._domain_error(error) from error

    def similar_items(self, request: pb.SimilarItemsRequest, timeout_s: float = TIMEOUT_S) -> pb.SimilarItemsResponse:
        """`SimilarItems`."""
        response: pb.SimilarItemsResponse = self._hedged(
            [stub.SimilarItems for stub in self._stubs], request, timeout_s
        )
        return response

    def close(self) -> None:
        """Close the channels."""
        for channel in self._channels:
            channel.close()

    def _hedged(self, methods: Sequence[Any], request: Any, timeout_s: float) -> Any:
        """The first answer; the first error once there is nothing left to wait for."""
        ended: SimpleQueue[Any] = SimpleQueue()
        self._hedges = min(self._hedges + HEDGED_SHARE, MOST_HEDGES)

        def start(method: Any) -> Any:
            call = method.future(request, timeout=timeout_s, metadata=self._metadata)
            call.add_done_callback(ended.put)
            return call

        calls = [start(methods[0])]
        finished = self._within(ended, self._hedge_after_s)
        if finished is None and self._hedges >= 1:
            self._hedges -= 1
            calls.append(start(methods[1]))
        finished = finished or ended.get()
        if finished.code() is not grpc.StatusCode.OK and len(calls) > 1:
            other = ended.get()
            finished = other if other.code() is grpc.StatusCode.OK else finished
        for call in calls:
            call.cancel()  # of the slower one; nothing of one that has ended
        try:
            return finished.result()
        except grpc.RpcError as error:
            raise self._domain_error(error) from error

    @staticmethod
    def _within(ended: SimpleQueue[Any], seconds: float | None) -> Any:
        try:
            return ended.get(timeout=seconds)
        except Empty:
            return None

    def _domain_error(self, error: grpc.RpcError) -> BaguniError:
        code, details = error.code(), error.details() or ""
        if code is grpc.StatusCode.INVALID_ARGUMENT:
            return InvalidInputError(details)
        if code is grpc.StatusCode.NOT_FOUND:
            return NotFoundError(details)
        if code is grpc.StatusCode.UNAVAILABLE:
            return UnavailableError("gateway", f"{details} (at {self._address}; is it running? `baguni up` starts it)")
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED and TOO_LARGE in details:
            return InvalidInputError(
                f"a message of this call is too large: {details} (at {self._address}); expected fewer or shorter ids in it"
            )
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            return UnavailableError("gateway", f"{details} (at {self._address}; it is busy)")
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return UnavailableError("gateway", f"no answer in time (at {self._address})")
        return BaguniError(f"{code.name}: {details}")


class ClientSettings(Endpoints):
    """Settings with which tools and jobs call the gateway: BAGUNI_CLIENT_TOKEN, or a file; BAGUNI_CLIENT_AUTHORITY for TLS."""

    client_token: SecretStr = SecretStr("")
    client_authority: Path | None = None  # PEM, of who signs the gateway's certificate

    def gateway(self, address: str | None = None) -> GatewayClient:
        """A client of the gateway at its address, or another."""
        tls = Tls(self.client_authority) if self.client_authority else None
        return GatewayClient(address or self.gateway_address, self.client_token.get_secret_value(), tls)


def _channel(address: str, tls: Tls | None) -> grpc.Channel:
    if tls is None:
        return grpc.insecure_channel(address, options=OPTIONS)
    return grpc.secure_channel(address, tls.credentials(), options=OPTIONS)
