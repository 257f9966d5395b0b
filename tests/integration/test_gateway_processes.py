"""One gateway of several processes: a port, a sum of metrics and a health in common; and none that is missed for long."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import psutil
import pytest

from baguni.domain.release import Release
from baguni.settings import Endpoints
from baguni.v1 import recommendation_pb2 as pb
from baguni.v1 import recommendation_pb2_grpc as pb_grpc
from tests.gateway_process import GatewayProcess, environment, gateway_process
from tests.waiting import COMMAND_S, eventually

pytestmark = pytest.mark.stack
OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]
REQUESTS = "baguni_request_duration_seconds_count"
ANSWERED = f'{REQUESTS}{{code="OK",method="Recommend"}}'  # a refusal is counted after its answer is sent


@pytest.fixture(scope="module")
def gateway(
    stack: Endpoints, active_release: Release, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    """Two processes for page views, one for bulk."""
    with gateway_process(stack, tmp_path_factory.mktemp("gateway"), processes=2, bulk_processes=1) as started:
        yield started


@pytest.fixture
def stub(gateway: GatewayProcess) -> Iterator[pb_grpc.RecommendationServiceStub]:
    gateway.wait_until_ready()
    with grpc.insecure_channel(gateway.address, options=OWN_CONNECTION) as channel:
        yield pb_grpc.RecommendationServiceStub(channel)


def ask(gateway: GatewayProcess) -> str:
    """What becomes of a request over a connection of its own, which any process may get."""
    with grpc.insecure_channel(gateway.address, options=OWN_CONNECTION) as channel:
        try:
            pb_grpc.RecommendationServiceStub(channel).Recommend(pb.RecommendRequest(user_id="u"), timeout=30)
        except grpc.RpcError as error:
            return str(error.code().name)
        return "OK"


def counted(gateway: GatewayProcess, start: str) -> float:
    lines = gateway.get("/metrics")[1].splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(start))


def test_every_process_answers_on_the_one_port_and_their_metrics_are_one_sum(gateway) -> None:
    gateway.wait_until_ready()
    assert set(gateway.workers()) == {"online-0", "online-1", "bulk-0"}
    before = counted(gateway, ANSWERED)
    cpu_before = {name: process.cpu_times().user for name, process in gateway.workers().items()}
    assert [ask(gateway) for _ in range(60)] == ["OK"] * 60
    assert counted(gateway, ANSWERED) == before + 60
    cpu = {name: process.cpu_times().user - cpu_before[name] for name, process in gateway.workers().items()}
    assert cpu["online-0"] > 0
    assert cpu["online-1"] > 0
    assert counted(gateway, "baguni_release_info") == 3  # processes that serve the release


def test_bulk_is_answered_by_a_process_of_its_own(gateway, stub) -> None:
    answered = stub.GenerateTopItems(pb.GenerateTopItemsRequest(user_ids=["u", ""], k=3, request_id="mine"), timeout=60)
    assert [user.status for user in answered.users] == [pb.USER_STATUS_COLD_START, pb.USER_STATUS_INVALID_USER_ID]
    assert answered.request_id == "mine"
    with pytest.raises(grpc.RpcError) as failure:
        stub.GenerateTopItems(pb.GenerateTopItemsRequest(), timeout=60)
    assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "user_ids" in failure.value.details()
    assert any(key == "grpc-status-details-bin" for key, _ in failure.value.trailing_metadata())
    refused = f'{REQUESTS}{{code="INVALID_ARGUMENT",method="GenerateTopItems"}}'
    both = "counted by the process that was asked, and by the one that read it"
    eventually(lambda: counted(gateway, refused) == 2, both, lambda: counted(gateway, refused))


def test_page_views_go_on_while_the_bulk_process_hangs(gateway, stub) -> None:
    bulk = gateway.workers()["bulk-0"]
    bulk.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(grpc.RpcError) as failure:
            stub.GenerateTopItems(pb.GenerateTopItemsRequest(user_ids=["u"]), timeout=1)
        assert failure.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert [ask(gateway) for _ in range(20)] == ["OK"] * 20
        assert gateway.get("/readyz")[0] == 200
        assert gateway.get("/readyz/bulk")[0] == 503
    finally:
        bulk.send_signal(signal.SIGCONT)
    gateway.wait_until_ready()
    assert stub.GenerateTopItems(pb.GenerateTopItemsRequest(user_ids=["u"]), timeout=60).users


@pytest.mark.parametrize("name", ["online-0", "bulk-0"])
def test_a_process_that_is_killed_comes_back_and_new_calls_do_not_miss_it(gateway, name) -> None:
    gateway.wait_until_ready()
    before = counted(gateway, ANSWERED)
    killed = gateway.workers()[name]
    killed.kill()
    killed.wait(COMMAND_S)
    assert [ask(gateway) for _ in range(20)] == ["OK"] * 20
    assert gateway.get("/readyz")[0] == 200
    gateway.wait_until_ready()
    assert gateway.workers()[name].pid != killed.pid
    assert counted(gateway, ANSWERED) == before + 20  # what the dead one counted is not lost
    assert counted(gateway, "baguni_release_info") == 3


def test_a_process_that_hangs_is_killed_and_replaced_and_the_other_answers(gateway, stub) -> None:
    hung = gateway.workers()["online-0"]
    hung.send_signal(signal.SIGSTOP)
    eventually(lambda: gateway.workers().get("online-0", hung).pid != hung.pid, "online-0 is another process")
    gateway.wait_until_ready()
    assert [ask(gateway) for _ in range(20)] == ["OK"] * 20


def test_none_refuses_while_another_idles(stack: Endpoints, active_release: Release, tmp_path: Path) -> None:
    """One connection is one process's, whatever there are; it has room for two requests, and gets eight at a time."""
    with (
        gateway_process(stack, tmp_path, processes=4, bulk_processes=0, max_in_flight=2, max_lag_s=60) as gateway,
        grpc.insecure_channel(gateway.address) as channel,
    ):
        stub = pb_grpc.RecommendationServiceStub(channel)
        request = pb.RecommendRequest(user_id="u", page_size=3)
        for _ in range(10):
            for call in [stub.Recommend.future(request, timeout=60) for _ in range(8)]:
                assert call.code() is grpc.StatusCode.OK, call.details()
        assert counted(gateway, "baguni_handed_over_total") > 0
        assert counted(gateway, "baguni_refused_total") == 0


def test_connections_that_send_nothing_delay_no_probe(gateway) -> None:
    host, _, port = gateway.metrics_address.rpartition(":")
    silent = [socket.create_connection((host, int(port))) for _ in range(40)]
    try:
        for path in ("/livez", "/readyz", "/metrics"):
            assert gateway.get(path)[0] == 200
    finally:
        for connection in silent:
            connection.close()


def test_told_to_stop_under_load_it_ends_what_it_has_begun(stack, active_release, tmp_path) -> None:
    outcomes: list[str] = []
    stopped = threading.Event()

    def keep_asking(stub: pb_grpc.RecommendationServiceStub) -> None:
        while not stopped.is_set():
            try:
                stub.Recommend(pb.RecommendRequest(user_id="u"), timeout=30)
            except grpc.RpcError as error:
                outcomes.append(error.code().name)
                return
            outcomes.append("OK")

    with gateway_process(stack, tmp_path) as gateway:
        with grpc.insecure_channel(gateway.address, options=OWN_CONNECTION) as channel:
            stub = pb_grpc.RecommendationServiceStub(channel)
            threads = [threading.Thread(target=keep_asking, args=[stub]) for _ in range(4)]
            for thread in threads:
                thread.start()
            time.sleep(1)
            workers = gateway.workers().values()
            gateway.process.terminate()
            assert gateway.process.wait(COMMAND_S) == 0
            stopped.set()
            for thread in threads:
                thread.join()
        assert not any(worker.is_running() for worker in workers)
    assert outcomes.count("OK") > 20
    # A call that came after the listening ended found nobody, or was not begun; none that was being answered was cut.
    assert set(outcomes) <= {"OK", "UNAVAILABLE", "CANCELLED"}
    assert len(outcomes) - outcomes.count("OK") <= 4


def test_no_process_outlives_a_supervisor_that_was_killed(stack, active_release, tmp_path) -> None:
    with gateway_process(stack, tmp_path) as gateway:
        workers = list(gateway.workers().values())
        gateway.process.kill()
        _, alive = psutil.wait_procs(workers, 15)
        assert not alive


def refusal(stack: Endpoints, folder: Path, **settings: object) -> str:
    """What a gateway says that does not start."""
    command = [sys.executable, "-m", "server"]
    found = subprocess.run(
        command, env=environment(stack, folder, **settings), capture_output=True, text=True, timeout=30
    )
    assert found.returncode == 1
    assert "Traceback" not in found.stderr
    return found.stderr.strip().splitlines()[-1]


def test_settings_that_cannot_be_are_refused_before_anything_starts(stack, tmp_path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"cannot listen on 127.0.0.1:{port}" in refusal(stack, tmp_path, gateway_address=f"127.0.0.1:{port}")
        said = refusal(stack, tmp_path, metrics_address=f"127.0.0.1:{port}")
        assert f"cannot serve metrics on 127.0.0.1:{port}" in said
    assert "BAGUNI_CALLERS" in refusal(stack, tmp_path, gateway_address="0.0.0.0:7999")
    assert "expected host:port" in refusal(stack, tmp_path, gateway_address="7450")
    assert "BAGUNI_TLS_CERTIFICATE is not set" in refusal(stack, tmp_path, tls_key=tmp_path / "key.pem")
    assert "none.toml" in refusal(stack, tmp_path, callers=tmp_path / "none.toml")
    (tmp_path / "key.pem").write_text("no key")
    half = {"tls_key": tmp_path / "key.pem", "tls_certificate": tmp_path / "key.pem"}
    assert "holds no PEM private key" in refusal(stack, tmp_path, **half)
    assert "run_dir" in refusal(stack, tmp_path, run_dir=tmp_path / ("d" * 120))


def test_the_sockets_of_the_processes_are_nobody_elses(gateway) -> None:
    run_dir = Path(gateway.process.environ()["BAGUNI_RUN_DIR"])
    assert run_dir.stat().st_mode & 0o777 == 0o700
    assert {file.name for file in run_dir.glob("*.sock")} == {"online-0.sock", "online-1.sock", "bulk-0.sock"}
    assert os.stat(run_dir).st_uid == os.getuid()


def test_bulk_is_not_refused_because_its_own_batches_make_the_loop_late(running: Endpoints, tmp_path: Path) -> None:
    """Every loop is later than a nanosecond: a reason to refuse where pages are answered, and none where batches are."""
    with (
        gateway_process(running, tmp_path, max_lag_s=1e-9, max_bulk_in_flight=4),
        grpc.insecure_channel(f"unix:{tmp_path}/run/bulk-0.sock") as channel,
    ):
        stub = pb_grpc.RecommendationServiceStub(channel)
        request = pb.GenerateTopItemsRequest(user_ids=[f"user-{number}" for number in range(200)])
        answers = [stub.GenerateTopItems.future(request, timeout=60) for _ in range(4)]
        assert all(len(answer.result().users) == 200 for answer in answers)
