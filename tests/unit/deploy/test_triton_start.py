"""What Triton's container does beside Triton; that Triton itself does as it is told is a matter of the integration tests."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from baguni.domain.release import POINTER
from deploy.containers import triton


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """Releases and a repository with the models of two of them."""
    for model in ("scorer_r1", "user_encoder_r1", "user_encoder_r2"):
        (tmp_path / "triton" / model).mkdir(parents=True)
    (tmp_path / "releases").mkdir()
    return tmp_path


def point_to(shop: Path, release_id: str) -> None:
    (shop / "releases" / POINTER).write_text(json.dumps({"release_id": release_id, "history": []}))


def test_models_of_the_active_release_only(shop: Path) -> None:
    assert triton.active_models(shop / "triton", shop / "releases") == []
    point_to(shop, "r1")
    assert triton.active_models(shop / "triton", shop / "releases") == ["scorer_r1", "user_encoder_r1"]
    arguments = triton.command(shop / "triton", ["scorer_r1"])
    assert "--load-model=scorer_r1" in arguments
    assert "--strict-readiness=false" in arguments


def test_it_ends_with_its_server(shop: Path) -> None:
    environment = {"BAGUNI_TRITON_REPOSITORY": str(shop / "triton"), "BAGUNI_RELEASES": str(shop / "releases")}

    def short(_: list[str]) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(7)"])
        process.wait()
        return process

    assert triton.run(environment, threading.Event(), short) == 7


def test_told_to_stop_it_tells_its_server(shop: Path) -> None:
    environment = {"BAGUNI_TRITON_REPOSITORY": str(shop / "triton"), "BAGUNI_RELEASES": str(shop / "releases")}
    stopping = threading.Event()
    stopping.set()
    status = triton.run(
        environment, stopping, lambda _: subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    )
    assert status == -15
