"""What the client does when a gateway is away, busy or late: against a gRPC server that answers as it is told."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from baguni.clients.gateway import HEDGED_SHARE, MOST_HEDGES, GatewayClient, Tls
from baguni.domain.errors import BaguniError, InvalidInputError, NotFoundError, UnavailableError
from baguni.domain.events import MAX_ID_LENGTH
from baguni.v1 import recommendation_pb2 as pb
from baguni.v1 import recommendation_pb2_grpc as pb_grpc
from tests.waiting import WAIT_S, eventually

CODE = grpc.StatusCode


class Scripted(pb_grpc.RecommendationServiceServicer):
    """Fails with each code of `failures` in turn, then answers."""

    def __init__(self) -> None:
        self.failures: list[grpc.StatusCode] = []
        self.failures_after_delay: list[grpc.StatusCode] = []
        self.calls, self.delay_s = 0, 0.0
        self.delays_s: list[float] = []
        self.second_call: threading.Event | None = None  # where there is one, the first call waits for it
        self.authorizations: list[str] = []
        self.top_items = pb.GenerateTopItemsResponse()

    def GenerateTopItems(  # noqa: N802
        self, request: pb.GenerateTopItemsRequest, context: grpc.ServicerContext
    ) -> pb.GenerateTopItemsResponse:
        self.calls += 1
        return self.top_items

    def Recommend(self, request: pb.RecommendRequest, context: grpc.ServicerContext) -> pb.RecommendResponse:  # noqa: N802
        self.calls += 1
        self.authorizations.append(dict(context.invocation_metadata()).get("authorization", ""))
        delay_s = self.delays_s.pop(0) if self.delays_s else self.delay_s
        failure = self.failures_after_delay.pop(0) if self.failures_after_delay else None
        time.sleep(delay_s)
        if self.second_call and self.calls == 1:
            assert self.second_call.wait(WAIT_S)
        elif self.second_call:
            self.second_call.set()
        if failure:
            context.abort(failure, "as told")
        if self.failures:
            context.abort(self.failures.pop(0), "as told")
        return pb.RecommendResponse(release_id="r1")


@pytest.fixture
def scripted() -> Iterator[tuple[Scripted, GatewayClient]]:
    server, service = grpc.server(ThreadPoolExecutor(4)), Scripted()
    pb_grpc.add_RecommendationServiceServicer_to_server(service, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    client = GatewayClient(address, hedge_after_s=None)  # a slow machine would count hedges as attempts
    server.start()
    yield service, client
    client.close()
    server.stop(None)


def test_a_gateway_that_is_away_for_a_moment_is_asked_again(scripted) -> None:
    service, client = scripted
    service.failures = [CODE.UNAVAILABLE, CODE.UNAVAILABLE]
    assert client.recommend(pb.RecommendRequest(user_id="u")).release_id == "r1"
    assert service.calls == 3


def test_three_attempts_are_all(scripted) -> None:
    service, client = scripted
    service.failures = [CODE.UNAVAILABLE] * 9
    with pytest.raises(UnavailableError, match="is it running"):
        client.recommend(pb.RecommendRequest(user_id="u"))
    assert service.calls == 3


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (CODE.INVALID_ARGUMENT, InvalidInputError),
        (CODE.NOT_FOUND, NotFoundError),
        (CODE.RESOURCE_EXHAUSTED, UnavailableError),
        (CODE.FAILED_PRECONDITION, BaguniError),
    ],
)
def test_what_another_attempt_would_not_change_is_said_at_once(scripted, code, error) -> None:
    service, client = scripted
    service.failures = [code]
    with pytest.raises(error, match="as told"):
        client.recommend(pb.RecommendRequest(user_id="u"))
    assert service.calls == 1


def test_a_deadline_holds_for_all_attempts(scripted) -> None:
    service, client = scripted
    service.failures, service.delay_s = [CODE.UNAVAILABLE] * 9, 0.2
    with pytest.raises(UnavailableError, match="in time"):
        client.recommend(pb.RecommendRequest(user_id="u"), timeout_s=0.3)


def test_many_failures_in_a_row_stop_the_trying_again(scripted) -> None:
    service, client = scripted
    service.failures = [CODE.UNAVAILABLE] * 200
    for _ in range(20):
        with pytest.raises(UnavailableError):
            client.recommend(pb.RecommendRequest(user_id="u"))
    assert 20 < service.calls < 45  # of 60 that three attempts each would be


def test_a_page_that_is_late_is_asked_for_once_more_and_the_first_answer_counts(scripted) -> None:
    service, client = scripted
    service.second_call = threading.Event()
    hedging = GatewayClient(client._address, hedge_after_s=0.2)
    assert hedging.recommend(pb.RecommendRequest(user_id="u"), timeout_s=WAIT_S).release_id == "r1"
    hedging.close()
    assert service.calls == 2


def test_a_gateway_that_is_slow_for_all_is_not_asked_twice_by_all(scripted) -> None:
    service, client = scripted
    quick = GatewayClient(client._address, hedge_after_s=0.001)
    service.delay_s = 0.01
    for _ in range(40):
        quick.recommend(pb.RecommendRequest(user_id="u"))
    quick.close()
    eventually(lambda: service.calls >= 48, "the last hedges have arrived", lambda: service.calls)
    assert service.calls <= 40 + MOST_HEDGES + 40 * HEDGED_SHARE


def test_an_error_of_the_first_does_not_count_if_the_second_answers(scripted) -> None:
    service, client = scripted
    hedging = GatewayClient(client._address, hedge_after_s=0.2)
    service.delays_s, service.failures_after_delay = [0.4, 0.6], [CODE.INTERNAL]
    assert hedging.recommend(pb.RecommendRequest(user_id="u")).release_id == "r1"
    hedging.close()


def test_the_token_goes_with_every_call(scripted) -> None:
    service, client = scripted
    known = GatewayClient(client._address, token="secret")
    known.recommend(pb.RecommendRequest(user_id="u"))
    known.close()
    assert service.authorizations[-1] == "Bearer secret"


def test_a_certificate_that_is_not_there_is_named(tmp_path) -> None:
    with pytest.raises(InvalidInputError, match=r"none\.pem"):
        GatewayClient("127.0.0.1:1", tls=Tls(tmp_path / "none.pem"))


def lists(num_users: int, num_items: int, id_length: int) -> pb.GenerateTopItemsResponse:
    """Return lists with ids of characters that take four bytes each."""
    item = pb.RecommendedItem(item_id="🍜" * id_length, score=-1.5, position=49, sources=[pb.SOURCE_GENERATIVE])
    user = pb.UserTopItems(user_id="🍜" * id_length, status=pb.USER_STATUS_OK, items=[item] * num_items)
    return pb.GenerateTopItemsResponse(users=[user] * num_users)


def test_the_largest_answer_of_the_contract_arrives(scripted) -> None:
    service, client = scripted
    service.top_items = lists(256, 50, MAX_ID_LENGTH)
    assert len(client.generate_top_items(pb.GenerateTopItemsRequest(user_ids=["u"])).users) == 256


@pytest.mark.parametrize("num_bytes", [4 << 20, 5 << 20, 20 << 20])  # a server takes 4 MB if it is told nothing
def test_a_request_that_is_too_large_is_invalid_and_no_busy_gateway(scripted, num_bytes: int) -> None:
    service, client = scripted
    for ask, request in (
        (client.recommend, pb.RecommendRequest(user_id="u", exclude_item_ids=["x" * num_bytes])),
        (client.generate_top_items, pb.GenerateTopItemsRequest(user_ids=["x" * num_bytes])),
    ):
        with pytest.raises(InvalidInputError, match=r"too large: .* larger than max \(\d+ vs. 4194304\)"):
            ask(request)
    assert service.calls == 0


def test_an_answer_that_is_too_large_is_named_so(scripted) -> None:
    service, client = scripted
    service.top_items = lists(512, 50, MAX_ID_LENGTH)
    with pytest.raises(InvalidInputError, match="too large"):
        client.generate_top_items(pb.GenerateTopItemsRequest(user_ids=["u"]))
