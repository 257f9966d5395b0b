"""A second Triton over the same releases, run as its container runs it: only where the program lies is another."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import tritonclient.grpc as client
import yaml

from baguni.clients.inference import SyncInferenceClient
from baguni.domain.release import Release, ReleaseStore
from baguni.domain.signature import triton_model_name
from baguni.releases import activation
from baguni.releases.activation import published
from baguni.settings import Endpoints
from deploy.containers import triton
from deploy.local.settings import free_port
from deploy.local.stack import LocalStack
from tests.conftest import repository
from tests.tiny_release import renamed
from tests.waiting import COMMAND_S, eventually

pytestmark = pytest.mark.stack
START_S = 60.0


@pytest.fixture(scope="module")
def replica(local_stack: LocalStack, stack: Endpoints, active_release: Release) -> Iterator[str]:
    """Its address."""
    stopping, statuses = threading.Event(), list[int]()
    environment = {"BAGUNI_TRITON_REPOSITORY": str(stack.triton_repository), "BAGUNI_RELEASES": str(stack.releases)}
    with pytest.MonkeyPatch.context() as patch:
        for port in ("HTTP_PORT", "GRPC_PORT", "METRICS_PORT"):
            patch.setattr(triton, port, free_port())
        patch.setattr(triton, "FOLLOW_S", 0.2)
        running = threading.Thread(
            target=lambda: statuses.append(triton.run(environment, stopping, lambda c: from_package(local_stack, c)))
        )
        running.start()
        try:
            eventually(lambda: is_up(f"http://127.0.0.1:{triton.HTTP_PORT}/v2/health/ready"))
            yield f"127.0.0.1:{triton.GRPC_PORT}"
        finally:
            stopping.set()
            running.join(timeout=COMMAND_S)
    assert statuses == [0]


def from_package(local_stack: LocalStack, command: list[str]) -> subprocess.Popen[bytes]:
    """The container's command, with the program and the Python backend of the package."""
    site = next(local_stack.settings.servers_python.parent.parent.glob("lib/python*/site-packages"))
    libraries = f"{site / 'nvidia_pytriton.libs'}:{sysconfig.get_config_var('LIBDIR')}"
    program = site / "pytriton/tritonserver/bin" / command[0]
    backends = f"--backend-directory={local_stack.settings.root / 'triton-work/backends'}"
    return subprocess.Popen(
        [program, *command[1:], backends],
        env={**os.environ, "LD_LIBRARY_PATH": libraries},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def is_up(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1):
            return True
    except OSError:
        return False


def holds(url: str, release: Release) -> bool:
    with closing(SyncInferenceClient(url, release.release_id, release.signature)) as inference:
        return inference.is_loaded()


def test_a_replica_that_is_ready_has_the_active_release(replica: str, active_release: Release) -> None:
    assert holds(replica, active_release)


def test_a_replica_loads_what_it_lacks(replica: str, active_release: Release) -> None:
    with closing(client.InferenceServerClient(replica)) as asked:
        asked.unload_model(triton_model_name("scorer", active_release.release_id))
    eventually(lambda: holds(replica, active_release))


def test_a_model_that_cannot_be_loaded_is_said(replica: str) -> None:
    with pytest.raises(OSError, match="500"):
        triton.load_missing(["scorer_r0"], f"http://127.0.0.1:{triton.HTTP_PORT}")


def test_it_tells_what_autoscalers_ask(replica: str) -> None:
    adapter = yaml.safe_load((repository() / "deploy/kubernetes/autoscaling/adapter.yaml").read_text())
    queries = " ".join(rule["metricsQuery"] for rule in adapter["rules"]["custom"])
    with urllib.request.urlopen(f"http://127.0.0.1:{triton.METRICS_PORT}/metrics", timeout=30) as reply:
        told = reply.read().decode()
    asked = set(re.findall(r"\bnv_\w+", queries))
    assert len(asked) == 2
    for name in asked:
        assert f"\n{name}{{" in told, name


def test_a_release_is_loaded_on_every_replica(
    replica: str, stack: Endpoints, active_release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No name stands for two addresses here, so the name server's answer is given."""
    both = [stack.triton_url, replica]
    monkeypatch.setattr(activation, "replicas", lambda _: both)
    store = ReleaseStore(stack.releases)
    candidate = store.add(renamed(active_release, tmp_path / "r", "r20990401_0000beef").path)
    with published(store, candidate, stack):
        assert [holds(url, candidate) for url in both] == [True, True]
    assert [holds(url, candidate) for url in both] == [False, False]
    assert [holds(url, active_release) for url in both] == [True, True]
    shutil.rmtree(store.root / candidate.release_id)
