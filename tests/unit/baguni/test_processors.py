"""Threads follow the quota of a container, not the processors of its machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from baguni.processors import available_processors

ALL = len(os.sched_getaffinity(0))


def cgroup(folder: Path, content: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in content.items():
        (folder / name).write_text(text + "\n")


@pytest.mark.parametrize(
    ("own", "files"),
    [
        ("0::/", {"": {"cpu.max": "50000 100000"}}),  # version 2, inside a container: its group is the root
        ("0::/pods/a", {"pods/a": {"cpu.max": "max 100000"}, "pods": {"cpu.max": "100000 100000"}}),  # of a parent
        ("3:cpu,cpuacct:/docker/x", {"cpu/docker/x": {"cpu.cfs_quota_us": "30000", "cpu.cfs_period_us": "100000"}}),
        ("3:cpu:/docker/x", {"cpu": {"cpu.cfs_quota_us": "30000", "cpu.cfs_period_us": "100000"}}),  # mounted inside
    ],
    ids=["version 2", "a parent's", "version 1", "version 1 inside"],
)
def test_a_quota_of_less_than_a_processor_is_one(tmp_path: Path, own: str, files: dict[str, dict[str, str]]) -> None:
    (tmp_path / "own").write_text(own + "\n")
    for folder, content in files.items():
        cgroup(tmp_path / "cgroup" / folder, content)
    assert available_processors(tmp_path / "cgroup", tmp_path / "own") == 1


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"cpu.max": "max 100000"},
        {"cpu.max": "6400000 100000"},
        {"cpu.max": "0 0"},
        {"cpu.max": ""},
        {"cpu.max": "many"},
        {"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"},
        {"cpu.cfs_quota_us": "30000"},
    ],
    ids=str,
)
@pytest.mark.parametrize("own", ["0::/", "", "garbage", "1:cpu:/", "0::/../../elsewhere", "4:memory:/"])
def test_without_a_quota_that_is_smaller_it_is_what_the_scheduler_allows(
    tmp_path: Path, own: str, content: dict[str, str]
) -> None:
    (tmp_path / "own").write_text(own + "\n")
    cgroup(tmp_path / "cgroup", content)
    cgroup(tmp_path / "cgroup" / "cpu", content)
    assert available_processors(tmp_path / "cgroup", tmp_path / "own") == ALL
    assert available_processors(tmp_path / "nowhere", tmp_path / "nothing") == ALL


def test_it_stands_alone() -> None:
    """Models in Triton have a copy of it and nothing else of ours."""
    source = Path(available_processors.__code__.co_filename).read_text()
    assert "import baguni" not in source
    assert "from baguni" not in source
