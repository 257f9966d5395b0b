"""Captured requests can be taken back: those of a user, and those that are too old, while others are being written."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baguni.v1 import recommendation_pb2 as pb
from server.settings import ServerSettings
from server.telemetry.capture import (
    Capture,
    Recorded,
    Removal,
    Skipped,
    captured_of,
    log_files,
    read_log,
    remove_from_unused,
)
from server.telemetry.metrics import Metrics

DAY_MS = 86_400_000
# Ids that stand elsewhere in a line, too, or begin like one another.
IDS = ["rye", "u1", "u10", "userId", '"', "a\\", "\u2028", "소금", "request", "'u1'"]


def recorded(user_id: str, written_ms: int, item_id: str = "rye", is_anonymous: bool = False) -> Recorded:
    request = pb.RecommendRequest(user_id=user_id)
    if is_anonymous:
        request = pb.RecommendRequest(anonymous=pb.AnonymousUser(anonymous_id=user_id))
    return Recorded(request, "q", "r", 1, 0, False, "FULL", (item_id,), 1.0, {}, "", True, written_ms)


def capture(folder: Path, name: str = "host.online-0", max_bytes: int = 1 << 20) -> Capture:
    settings = ServerSettings(capture_bytes=max_bytes, capture_share=1.0)
    return Capture(folder, name, settings, Metrics([]))


def users(folder: Path) -> list[str]:
    skipped = Skipped()
    found = [each.request for each in read_log(log_files(folder), skipped)]
    assert skipped == Skipped()
    return [request.user_id or request.anonymous.anonymous_id for request in found]


def now_ms() -> int:
    return int(time.time() * 1000)


@pytest.mark.parametrize("seed", range(5))
def test_every_request_of_a_user_goes_and_no_other(tmp_path: Path, seed: int) -> None:
    """Wherever it is by then: in the file that is being written, or in the one before it."""
    chosen = random.Random(seed)
    written, own = [], capture(tmp_path, max_bytes=20_000)
    for _ in range(30):
        line = recorded(chosen.choice(IDS), now_ms(), chosen.choice(IDS), is_anonymous=chosen.random() < 0.3)
        written.append(line.request.user_id or line.request.anonymous.anonymous_id)
        own.add(line)
    for user_id in chosen.sample(IDS, 4):
        num = written.count(user_id)
        assert sum(count for _, count in captured_of(tmp_path, user_id)) == num
        assert own.forget({user_id: math.inf}) == num
        written = [each for each in written if each != user_id]
        assert users(tmp_path) == written
        own.add(recorded("after", now_ms()))
        written.append("after")
    own.close()
    assert users(tmp_path) == written


@pytest.mark.parametrize("seed", range(5))
def test_what_a_user_who_came_back_asks_for_stays(tmp_path: Path, seed: int) -> None:
    """A request stays if it was written after the time that counts for its user; one that does not say when it was goes."""
    chosen, own, kept = random.Random(seed), capture(tmp_path), []
    until_ms = {user_id: now_ms() - chosen.randrange(DAY_MS) for user_id in chosen.sample(IDS, 4)}
    for _ in range(60):
        user_id = chosen.choice(IDS)
        near_ms = until_ms.get(user_id, now_ms())
        written_ms = chosen.choice(
            [0, near_ms - chosen.randrange(9_000), near_ms, near_ms + 1 + chosen.randrange(9_000)]
        )
        own.add(recorded(user_id, written_ms, is_anonymous=chosen.random() < 0.3))
        if user_id not in until_ms or written_ms > until_ms[user_id]:
            kept.append(user_id)
    assert own.forget(until_ms) == 60 - len(kept)
    assert users(tmp_path) == kept
    own.close()


def test_requests_that_are_written_meanwhile_stay(tmp_path: Path) -> None:
    own, num_lines = capture(tmp_path, max_bytes=30_000_000), 3_000
    writing = threading.Thread(
        target=lambda: [own.add(recorded(f"u{number % 2}", now_ms())) for number in range(num_lines)]
    )
    writing.start()
    removed = 0
    while writing.is_alive():
        removed += own.forget({"u0": math.inf})
    removed += own.forget({"u0": math.inf})
    assert removed == num_lines / 2
    assert users(tmp_path) == ["u1"] * (num_lines // 2)
    own.close()


def test_what_is_too_old_goes_also_where_nobody_writes_any_more(tmp_path: Path) -> None:
    """A pod that is gone has left its files; a line that does not say its age is as old as its file."""
    gone = tmp_path / "pod-7.online-0.jsonl"
    old, new = recorded("old", now_ms() - 8 * DAY_MS), recorded("new", now_ms())
    undated = json.loads(new.line())
    del undated["written_ms"]
    gone.write_text(f"{old.line()}\n{new.line()}\n{json.dumps(undated)}\n")
    before = tmp_path / "pod-7.online-0.jsonl.1"
    before.write_text(old.line() + "\n")
    own = capture(tmp_path)
    own.add(old)
    own.add(new)
    assert own.forget({}) == 3
    assert sorted(users(tmp_path)) == ["new"] * 3
    assert not before.exists()
    own.close()


def test_files_that_are_not_a_gateways_are_not_touched(tmp_path: Path) -> None:
    """A folder may have been used for other things before."""
    names = ["events.jsonl", "online.jsonl", "online-0.jsonl.gz", "u1.jsonl.1", "bulk-0.jsonl", "upload.partial"]
    for name in names:
        (tmp_path / name).write_text(recorded("u1", 1).line() + "\nno JSON\n")
    assert remove_from_unused(tmp_path, Removal({"u1": math.inf}, before_ms=now_ms())) == 0
    assert captured_of(tmp_path, "u1") == []
    assert sorted(path.name for path in tmp_path.glob("[!.]*")) == sorted(names)


def test_two_processes_that_tidy_up_at_once_lose_no_request(tmp_path: Path) -> None:
    """A pod is gone: only the file before its last is left, and one that was put aside."""
    for number, name in enumerate(["pod.online-0.jsonl.1", "pod.online-0.jsonl.17"]):
        lines = [recorded(f"u{(n + number) % 3}", now_ms(), str(n)).line() + "\n" for n in range(300)]
        (tmp_path / name).write_text("".join(lines))
    with ThreadPoolExecutor(4) as pool:
        removals = [Removal({f"u{n % 2}": math.inf}) for n in range(40)]
        removed = sum(pool.map(lambda removal: remove_from_unused(tmp_path, removal), removals))
    removed += sum(remove_from_unused(tmp_path, removal) for removal in removals[:2])
    assert removed == 400
    assert users(tmp_path) == ["u2"] * 200


def test_a_file_that_another_process_writes_is_left_to_it(tmp_path: Path) -> None:
    code = (
        "import sys; from tests.unit.server.test_capture import *\n"
        "own = capture(Path(sys.argv[1]), 'other.online-0'); own.add(recorded('u1', now_ms()))\n"
        "print('written', flush=True); sys.stdin.readline(); print(own.forget({'u1': math.inf}), flush=True)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "written\n"
        removal = Removal({"u1": math.inf})
        assert remove_from_unused(tmp_path, removal) == 0
        assert [path.name for path, _ in captured_of(tmp_path, "u1")] == ["other.online-0.jsonl"]
        assert users(tmp_path) == ["u1"]
        other.stdin.write("\n")
        other.stdin.flush()
        assert other.stdout.readline() == "1\n"
    assert users(tmp_path) == []


def test_what_a_killed_process_left_half_written_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "host.online-1.jsonl"
    path.write_text(recorded("u2", now_ms()).line() + "\n" + recorded("u1", now_ms()).line()[:40])
    (tmp_path / "host.online-1.partial").write_text(recorded("u1", now_ms()).line())
    assert remove_from_unused(tmp_path, Removal({"u1": math.inf})) == 1
    assert users(tmp_path) == ["u2"]
    assert [each.name for each in tmp_path.glob("[!.]*")] == [path.name]


def cut(line: bytes, where: float) -> bytes:
    return line[: 1 + int(where * (len(line) - 2))]


DAMAGES = (
    st.floats(0, 1).map(lambda where: lambda line: cut(line, where) + b"\n")  # a full disk, and a newline later
    | st.floats(0, 1).map(lambda where: lambda line: cut(line, where) + line + b"\n")  # a kill, and the next process
    | st.binary(max_size=20).map(lambda noise: lambda line: b"\0" + b"".join(noise.split()) + b"\n")  # no power
    | st.sampled_from([b"\n", b"[]\n", b"{}\n", b"null\n", b"[" * 100_000 + b"\n"]).map(
        lambda other: lambda line: other
    )
)


@given(st.lists(st.tuples(st.sampled_from(IDS), st.none() | DAMAGES), max_size=12), st.booleans())
def test_lines_that_are_damaged_are_counted_and_no_other_is_lost(
    tmp_path_factory: pytest.TempPathFactory, written: list, is_cut_at_the_end: bool
) -> None:
    file = tmp_path_factory.getbasetemp() / "host.online-0.jsonl"
    lines = [(recorded(user_id, 1).line().encode(), damage) for user_id, damage in written]
    content = b"".join(damage(line) if damage else line + b"\n" for line, damage in lines)
    file.write_bytes(content + (cut(recorded("소금", 1).line().encode(), 0.5) if is_cut_at_the_end else b""))
    skipped = Skipped()
    found = [each.request.user_id for each in read_log([file], skipped)]
    assert found == [user_id for user_id, damage in written if damage is None]
    assert skipped.num_lines == len(written) - len(found) + is_cut_at_the_end
    assert bool(str(skipped)) == (skipped.num_lines > 0)


def test_a_file_that_is_gone_is_counted(tmp_path: Path) -> None:
    own = capture(tmp_path / "pod-0")
    own.add(recorded("u1", now_ms()))
    own.close()
    (tmp_path / "host.online-0.jsonl").symlink_to(tmp_path / "gone")  # listed, and gone when it is looked at
    (file,) = log_files(tmp_path)
    assert log_files(file) == [file]
    assert log_files(tmp_path / "nowhere") == []
    skipped = Skipped()
    assert len(list(read_log([tmp_path / "gone", file], skipped))) == 1
    assert str(skipped) == "files that are gone: 1"


def test_files_are_listed_oldest_first(tmp_path: Path) -> None:
    names = ["a.online-0.jsonl", "pod/b.online-0.jsonl.1", "pod/b.online-0.jsonl", "c.online-1.jsonl"]
    for age, name in enumerate(reversed(names)):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("")
        os.utime(path, (1_000 - age, 1_000 - age))
    assert log_files(tmp_path) == [tmp_path / name for name in names]


def test_files_that_rotate_meanwhile_are_no_error(tmp_path: Path) -> None:
    own, is_over = capture(tmp_path, max_bytes=1_100), threading.Event()

    def rotate() -> None:
        while not is_over.is_set():
            own.add(recorded("u1", now_ms()))

    writing = threading.Thread(target=rotate)
    writing.start()
    try:
        for _ in range(300):
            captured_of(tmp_path, "u1")
            list(read_log(log_files(tmp_path), Skipped()))
    finally:
        is_over.set()
        writing.join()
        own.close()


@pytest.mark.parametrize(
    "gone", [("host.online-0.jsonl",), ("host.online-0.jsonl.1",), ("host.online-0.jsonl", "host.online-0.jsonl.1")]
)
def test_files_that_somebody_removed_stop_neither_capturing_nor_forgetting(
    tmp_path: Path, gone: tuple[str, ...]
) -> None:
    captured = capture(tmp_path, max_bytes=2_000)
    for _ in range(40):  # fills a file, so that there are two
        captured.add(recorded("a", now_ms()))
    for name in gone:
        (tmp_path / name).unlink()
    captured.forget({"b": math.inf})
    captured.add(recorded("b", now_ms()))
    captured.add(recorded("c", now_ms()))
    assert captured.forget({"b": math.inf}) == 1
    assert users(tmp_path)[-1] == "c"
    captured.close()


def test_a_folder_that_cannot_be_written_for_a_moment_stops_nothing(tmp_path: Path) -> None:
    """No descriptor, or no room for a file, between the rename and the new file."""
    captured = capture(tmp_path)
    captured.add(recorded("a", now_ms()))
    file = captured._file
    assert file is not None
    opens = file._open

    def fails() -> None:
        file._open = opens
        raise OSError(24, "Too many open files")

    file._open = fails
    with pytest.raises(OSError, match="Too many"):
        captured.forget({"a": math.inf})
    captured.add(recorded("b", now_ms()))
    assert captured.forget({"a": math.inf}) == 1
    captured.add(recorded("c", now_ms()))
    assert users(tmp_path) == ["b", "c"]
    captured.close()
