"""Who gets in: TLS, client certificates, tokens, permissions and rates, on the real wire."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import trustme
from click.testing import CliRunner
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from baguni.domain.release import Release
from baguni.settings import Endpoints
from baguni.v1 import recommendation_pb2 as pb
from baguni.v1 import recommendation_pb2_grpc as pb_grpc
from server.edge.callers import token_hash
from server.edge.token_cli import token as make_token
from tests.gateway_process import GatewayProcess, gateway_process
from tests.waiting import eventually

pytestmark = pytest.mark.stack
OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]
CALLERS = f"""
[shop]
token_sha256 = "{token_hash("shop-token")}"
permissions = ["online"]

[crm]
certificate_names = ["crm.internal"]
permissions = ["bulk"]

[slow]
token_sha256 = "{token_hash("slow-token")}"
permissions = ["online", "admin"]
requests_per_s = 1
burst = 2
"""


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, authority: trustme.CA) -> Path:
    path = tmp_path_factory.mktemp("secure")
    write_certificate(path, authority)
    authority.cert_pem.write_to_path(path / "clients.pem")
    (path / "callers.toml").write_text(CALLERS)
    return path


def write_certificate(path: Path, authority: trustme.CA) -> None:
    certificate = authority.issue_cert("127.0.0.1", "localhost")
    certificate.private_key_pem.write_to_path(path / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(path / "certificate.pem")


@pytest.fixture(scope="module")
def gateway(stack: Endpoints, active_release: Release, folder: Path) -> Iterator[GatewayProcess]:
    """TLS, and callers by token."""
    files = {"tls_key": folder / "key.pem", "tls_certificate": folder / "certificate.pem"}
    with gateway_process(stack, folder, callers=folder / "callers.toml", **files) as started:
        yield started


@pytest.fixture(scope="module")
def mutual(
    stack: Endpoints, active_release: Release, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    """TLS in both directions."""
    files = {"tls_key": folder / "key.pem", "tls_certificate": folder / "certificate.pem"}
    authority = folder / "clients.pem"
    own = tmp_path_factory.mktemp("mutual")
    with gateway_process(stack, own, callers=folder / "callers.toml", tls_client_ca=authority, **files) as started:
        yield started


def secure(gateway: GatewayProcess, authority: trustme.CA, client: trustme.LeafCert | None = None) -> grpc.Channel:
    """A channel that trusts the authority, with a client certificate."""
    own = (client.private_key_pem.bytes(), client.cert_chain_pems[0].bytes()) if client else (None, None)
    return grpc.secure_channel(
        gateway.address, grpc.ssl_channel_credentials(authority.cert_pem.bytes(), *own), options=OWN_CONNECTION
    )


def recommend(channel: grpc.Channel, token: str = "", **fields: object) -> pb.RecommendResponse:
    metadata = [("authorization", f"Bearer {token}")] if token else []
    request = pb.RecommendRequest(user_id="u", **fields)
    return pb_grpc.RecommendationServiceStub(channel).Recommend(request, timeout=30, metadata=metadata)


def refused(channel: grpc.Channel, token: str = "") -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as failure:
        recommend(channel, token)
    return failure.value


def reason(error: grpc.RpcError) -> str:
    info = ErrorInfo()
    assert next(detail for detail in rpc_status.from_call(error).details if detail.Unpack(info))
    return str(info.reason)


def test_plain_text_and_strangers_authorities_do_not_get_in(gateway) -> None:
    with grpc.insecure_channel(gateway.address, options=OWN_CONNECTION) as channel:
        assert refused(channel, "shop-token").code() is grpc.StatusCode.UNAVAILABLE
    with secure(gateway, trustme.CA()) as channel:
        assert refused(channel, "shop-token").code() is grpc.StatusCode.UNAVAILABLE


def test_a_caller_does_what_it_may(gateway, authority) -> None:
    with secure(gateway, authority) as channel:
        assert recommend(channel, "shop-token").items
        for token in ("", "another"):
            error = refused(channel, token)
            assert error.code() is grpc.StatusCode.UNAUTHENTICATED
            assert reason(error) == "UNAUTHENTICATED"
        with pytest.raises(grpc.RpcError) as failure:
            pb_grpc.RecommendationServiceStub(channel).GenerateTopItems(
                pb.GenerateTopItemsRequest(user_ids=["u"]),
                timeout=30,
                metadata=[("authorization", "Bearer shop-token")],
            )
        assert failure.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert "caller shop" in failure.value.details()


def test_nobody_is_told_what_is_wrong_with_a_request_before_saying_who_asks(gateway, authority) -> None:
    with secure(gateway, authority) as channel:
        raw = channel.unary_unary("/baguni.v1.RecommendationService/Recommend", None, None)
        with pytest.raises(grpc.RpcError) as failure:
            raw(b"\xff\xff\xff", timeout=30)
        assert failure.value.code() is grpc.StatusCode.UNAUTHENTICATED
        with pytest.raises(grpc.RpcError) as failure:
            raw(b"\xff\xff\xff", timeout=30, metadata=[("authorization", "Bearer shop-token")])
        assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(grpc.RpcError) as failure:
            raw(b"\x00" * (2 << 20), timeout=30, metadata=[("authorization", "Bearer shop-token")])
        assert failure.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_caller_that_asks_too_often_is_held_back_alone(gateway, authority) -> None:
    with secure(gateway, authority) as channel:
        errors = []
        for _ in range(6):
            try:
                recommend(channel, "slow-token")
            except grpc.RpcError as error:
                errors.append(error)
        assert len(errors) >= 2  # how many more depends on what another test asked just before
        assert {reason(error) for error in errors} == {"RATE_LIMITED"}
        retry = RetryInfo()
        assert next(detail for detail in rpc_status.from_call(errors[0]).details if detail.Unpack(retry))
        assert 0 < retry.retry_delay.ToTimedelta().total_seconds() <= 1
        assert recommend(channel, "shop-token").items


def test_health_needs_no_token_and_reflection_that_of_an_admin(gateway, authority) -> None:
    with secure(gateway, authority) as channel:
        health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=30)
        assert health.status == health_pb2.HealthCheckResponse.SERVING
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        time.sleep(2)  # the slow one's rate counts here too
        for token, code in (("shop-token", grpc.StatusCode.PERMISSION_DENIED), ("slow-token", None)):
            request = reflection_pb2.ServerReflectionRequest(list_services="")
            replies = reflection.ServerReflectionInfo(
                iter([request]), timeout=30, metadata=[("authorization", f"Bearer {token}")]
            )
            if code is None:
                names = [service.name for service in next(replies).list_services_response.service]
                assert "baguni.v1.RecommendationService" in names
            else:
                with pytest.raises(grpc.RpcError) as failure:
                    next(replies)
                assert failure.value.code() is code


def test_with_mutual_tls_a_certificate_is_a_name(mutual, authority) -> None:
    with secure(mutual, authority) as channel:
        assert refused(channel, "shop-token").code() is grpc.StatusCode.UNAVAILABLE  # no certificate, no connection
    with secure(mutual, authority, trustme.CA().issue_cert("crm.internal")) as channel:
        assert refused(channel).code() is grpc.StatusCode.UNAVAILABLE
    with secure(mutual, authority, authority.issue_cert("crm.internal")) as channel:
        stub = pb_grpc.RecommendationServiceStub(channel)
        assert stub.GenerateTopItems(pb.GenerateTopItemsRequest(user_ids=["u"]), timeout=60).users
        assert refused(channel).code() is grpc.StatusCode.PERMISSION_DENIED
    with secure(mutual, authority, authority.issue_cert("someone.else")) as channel:
        assert refused(channel).code() is grpc.StatusCode.UNAUTHENTICATED
        assert recommend(channel, "shop-token").items


def test_a_renewed_certificate_is_used_without_a_restart(mutual, authority, folder) -> None:
    client = authority.issue_cert("crm.internal")
    renewed_by = trustme.CA()
    kept = {name: (folder / name).read_bytes() for name in ("key.pem", "certificate.pem")}
    try:
        write_certificate(folder, renewed_by)
        with secure(mutual, renewed_by, client) as channel:
            assert refused(channel).code() is grpc.StatusCode.PERMISSION_DENIED  # in, by the new certificate
        shutil.copy(folder / "callers.toml", folder / "certificate.pem")  # half a renewal: no certificate at all
        with secure(mutual, renewed_by, client) as channel:
            assert refused(channel).code() is grpc.StatusCode.PERMISSION_DENIED
    finally:
        for name, content in kept.items():
            (folder / name).write_bytes(content)


def test_no_secret_stands_in_the_log(gateway, mutual) -> None:
    for started in (gateway, mutual):
        log = started.log.read_text()
        assert "token" not in log.replace("token_sha256", "")
        assert "PRIVATE" not in log


def test_a_token_is_made_by_the_command_line(gateway, authority, folder) -> None:
    made = CliRunner().invoke(make_token, ["new-shop"])
    token, block = made.stdout.strip(), made.stderr
    with (folder / "callers.toml").open("a") as file:
        file.write("\n" + block)
    with secure(gateway, authority) as channel:

        def is_let_in() -> bool:
            try:
                return bool(recommend(channel, token).items)
            except grpc.RpcError:
                return False

        eventually(is_let_in, "the gateway knows the new token")
