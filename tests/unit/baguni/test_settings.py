"""Where settings come from."""

from __future__ import annotations

from pathlib import Path

import pytest

from baguni.settings import Endpoints


def test_a_secret_comes_from_a_file_and_the_environment_goes_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "baguni_redis_url").write_text("redis://:secret@redis:6379/0\n")
    (tmp_path / "baguni_triton_url").write_text("from-file:1")
    monkeypatch.setenv("BAGUNI_SECRETS_DIR", str(tmp_path))
    monkeypatch.setenv("BAGUNI_TRITON_URL", "from-environment:1")
    endpoints = Endpoints()
    assert endpoints.redis_url == "redis://:secret@redis:6379/0"
    assert endpoints.triton_url == "from-environment:1"
    assert endpoints.milvus_uri == Endpoints.model_fields["milvus_uri"].default
