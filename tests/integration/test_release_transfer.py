"""Releases through an object store: a real S3 server and a folder, processes that are killed, parts that are damaged."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import pytest
from click.testing import CliRunner
from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem, S3FileSystem

from baguni.cli.releases import release as release_command
from baguni.domain.errors import InvalidInputError, NotFoundError, ReleaseMismatchError, UnavailableError
from baguni.domain.release import MANIFEST, POINTER, Release, ReleaseStore, write_manifest
from baguni.releases.release_transfer import VERIFY_S, Follower, RemoteReleases, follow
from baguni.stores.served import KEY
from deploy.local.settings import free_port
from tests.redis_server import redis_server
from tests.waiting import COMMAND_S, eventually

ROOT = Path(__file__).parents[2]
SERVER = ROOT / ".venv-s3/bin/moto_server"
BAGUNI = Path(sys.executable).with_name("baguni")
NUM_PARTS, PART_BYTES = 12, 6 << 20
PATIENCE_S = 60.0
PART = "triton/model/1/model.onnx"


class Remote:
    """A store, and its objects as others see them."""

    def __init__(self, url: str, files: FileSystem, root: str) -> None:
        self.url, self.files, self.root = url, files, root
        self.releases = RemoteReleases(url)

    def names(self) -> set[str]:
        """None where nothing was written yet: Arrow may find no folder, or one that a push makes while it looks."""
        try:
            found = self.files.get_file_info(FileSelector(self.root, allow_not_found=True, recursive=True))
        except FileNotFoundError:
            return set()
        return {f.path.removeprefix(f"{self.root}/") for f in found if f.type is FileType.File}

    def write(self, name: str, content: bytes) -> None:
        if isinstance(self.files, LocalFileSystem):
            self.files.create_dir(str(Path(self.root, name).parent))
        with self.files.open_output_stream(f"{self.root}/{name}") as file:
            file.write(content)

    def read(self, name: str) -> bytes:
        with self.files.open_input_stream(f"{self.root}/{name}") as file:
            return bytes(file.read())

    def delete(self, name: str) -> None:
        self.files.delete_file(f"{self.root}/{name}")


@pytest.fixture(scope="module")
def s3_files() -> Iterator[S3FileSystem]:
    """A server that speaks S3, and a bucket in it."""
    if not SERVER.is_file():
        pytest.skip("make tools makes .venv-s3")
    port = free_port()
    process = subprocess.Popen([SERVER, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        files = S3FileSystem(endpoint_override=f"127.0.0.1:{port}", scheme="http", allow_bucket_creation=True)

        def has_bucket() -> bool:
            assert process.poll() is None
            try:
                files.create_dir("shop")
            except OSError:
                return False
            return True

        eventually(has_bucket, "the S3 server makes a bucket")
        yield files
    process.terminate()
    process.wait(COMMAND_S)


@pytest.fixture(params=["s3", "folder"])
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> Remote:
    if request.param == "folder":
        return Remote(f"file://{tmp_path}/remote", LocalFileSystem(), f"{tmp_path}/remote")
    return Remote(f"s3://shop/{tmp_path.name}", request.getfixturevalue("s3_files"), f"shop/{tmp_path.name}")


@pytest.fixture
def here(tmp_path: Path) -> ReleaseStore:
    return ReleaseStore(tmp_path / "here")


@pytest.fixture
def there(tmp_path: Path) -> ReleaseStore:
    return ReleaseStore(tmp_path / "there")


def make(store: ReleaseStore, content: str = "a", **large: int) -> Release:
    path = store.root.parent / f"made-{content}"
    (path / "triton/model/1").mkdir(parents=True)
    (path / PART).write_bytes(b"weights of " + content.encode())
    for name, size in large.items():
        (path / name).write_bytes(os.urandom(size))
    return store.add(write_manifest(path, {"dataset": "test"}).path)


def make_large(store: ReleaseStore) -> Release:
    return make(store, "large", **{f"part-{number:02}": PART_BYTES for number in range(NUM_PARTS)})


def contents(release: Release) -> dict[str, bytes]:
    return {p.relative_to(release.path).as_posix(): p.read_bytes() for p in release.path.rglob("*") if p.is_file()}


def killed(arguments: list[str], begun: Callable[[], bool]) -> None:
    """Run a command, and kill -9 it as soon as it has begun."""
    process = subprocess.Popen([BAGUNI, *arguments], cwd=ROOT)
    eventually(lambda: begun() or process.poll() is not None, "the command has begun", interval_s=0.002)
    assert process.poll() is None, "it ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    assert process.wait(COMMAND_S) == -signal.SIGKILL


def test_what_was_pushed_is_pulled(remote: Remote, here: ReleaseStore, there: ReleaseStore) -> None:
    release = make(here)
    remote.releases.push(release)
    assert remote.releases.ids() == [release.release_id]
    assert contents(remote.releases.pull(release.release_id, there)) == contents(release)
    assert there.ids() == [release.release_id]
    assert [p.name for p in there.root.iterdir()] == [release.release_id]


def test_an_upload_without_its_manifest_is_no_release(remote: Remote, here: ReleaseStore, there: ReleaseStore) -> None:
    release = make(here)
    remote.releases.push(release)
    remote.delete(f"{release.release_id}/{MANIFEST}")
    assert remote.releases.ids() == []
    with pytest.raises(NotFoundError, match=f"{release.release_id}.*releases there: none"):
        remote.releases.pull(release.release_id, there)
    with pytest.raises(NotFoundError):
        remote.releases.point_to(release.release_id)


def test_a_killed_push_shows_nothing_and_is_continued(remote: Remote, here: ReleaseStore, there: ReleaseStore) -> None:
    release = make_large(here)
    command = ["release", "--releases", str(here.root), "push", release.release_id, "--url", remote.url]
    killed(command, lambda: len(remote.names()) > 2)
    assert len(remote.names()) < NUM_PARTS + 1
    assert remote.releases.ids() == []

    sent: list[str] = []
    remote.releases.push(release, sent.append)
    assert 0 < len(sent) < NUM_PARTS + 1
    assert contents(remote.releases.pull(release.release_id, there)) == contents(release)


def test_a_killed_pull_shows_nothing_and_is_continued(remote: Remote, here: ReleaseStore, there: ReleaseStore) -> None:
    release = make_large(here)
    remote.releases.push(release)
    brought = there.root / f".pulling-{release.release_id}/release"
    command = ["release", "--releases", str(there.root), "pull", release.release_id, "--url", remote.url]
    killed(command, lambda: len(list(brought.glob("part-*"))) > 2)
    assert there.ids() == []
    kept = {p: p.stat().st_mtime_ns for p in brought.glob("part-??")}
    assert 0 < len(kept) < NUM_PARTS

    pulled = remote.releases.pull(release.release_id, there)
    assert contents(pulled) == contents(release)
    assert {p.name: (pulled.path / p.name).stat().st_mtime_ns for p in kept} == {p.name: t for p, t in kept.items()}


@pytest.mark.parametrize("beginning", ["its own", "another's"])
def test_a_part_that_was_begun_is_continued(
    remote: Remote, here: ReleaseStore, there: ReleaseStore, beginning: str
) -> None:
    release = make(here, one=PART_BYTES)
    remote.releases.push(release)
    half = (release.path / "one").read_bytes()[: PART_BYTES // 2]
    begun = there.root / f".pulling-{release.release_id}/release/one.begun"
    begun.parent.mkdir(parents=True)
    begun.write_bytes(half if beginning == "its own" else bytes(len(half)))
    assert contents(remote.releases.pull(release.release_id, there)) == contents(release)


def test_damaged_and_missing_parts_are_named_and_can_be_mended(
    remote: Remote, here: ReleaseStore, there: ReleaseStore
) -> None:
    release = make(here, one=1000, two=1000)
    remote.releases.push(release)
    remote.write(f"{release.release_id}/one", b"x" * 1000)
    remote.delete(f"{release.release_id}/two")
    with pytest.raises(ReleaseMismatchError, match=r"one does not match its sha256; two is missing"):
        remote.releases.pull(release.release_id, there)
    assert there.ids() == []
    for name in ("one", "two"):
        remote.write(f"{release.release_id}/{name}", (release.path / name).read_bytes())
    assert contents(remote.releases.pull(release.release_id, there)) == contents(release)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "changed": lambda path: (path / PART).write_bytes(b"other weights"),
    "missing": lambda path: (path / PART).unlink(),
    "surplus": lambda path: (path / "surplus").write_text("x"),
    "cut": lambda path: (path / PART).write_bytes(b""),
    "manifest cut": lambda path: (path / MANIFEST).write_text("{"),
    "manifest missing": lambda path: (path / MANIFEST).unlink(),
    "all missing": lambda path: [shutil.rmtree(path), path.mkdir()],
}
damaged = pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)


@damaged
def test_a_release_that_was_damaged_here_is_mended_by_the_next_pull(
    remote: Remote, here: ReleaseStore, there: ReleaseStore, damage: Callable[[Path], object]
) -> None:
    release = make(here)
    remote.releases.push(release)
    pulled = remote.releases.pull(release.release_id, there)
    damage(pulled.path)
    with pytest.raises((ReleaseMismatchError, NotFoundError)):
        there.get(release.release_id)
    assert contents(remote.releases.pull(release.release_id, there)) == contents(release)
    assert [path.name for path in there.root.iterdir()] == [release.release_id]


def test_sound_parts_of_a_damaged_release_do_not_travel_again(
    remote: Remote, here: ReleaseStore, there: ReleaseStore
) -> None:
    release = make(here, one=1000)
    remote.releases.push(release)
    pulled = remote.releases.pull(release.release_id, there)
    (pulled.path / PART).unlink()
    remote.delete(f"{release.release_id}/one")
    assert contents(remote.releases.pull(release.release_id, there)) == contents(release)


@damaged
def test_the_active_release_is_mended_by_who_follows(
    remote: Remote, here: ReleaseStore, there: ReleaseStore, damage: Callable[[Path], object]
) -> None:
    release = make(here)
    remote.releases.push(release)
    remote.releases.point_to(release.release_id)
    now_s = 0.0
    follower = Follower(remote.releases, there, clock=lambda: now_s)
    assert follower.look() is not None
    for begins in (follower, Follower(remote.releases, there, clock=lambda: now_s)):
        assert (begins.look() is None) == (begins is follower)  # who begins verifies, who has just verified does not
        damage(there.root / release.release_id)
    assert follower.look() is None
    now_s = VERIFY_S
    mended = follower.look()
    assert mended is not None
    assert contents(mended) == contents(release)
    assert there.active_id() == release.release_id
    damage(mended.path)
    arguments = ["--releases", str(there.root), "pull", "--url", remote.url]
    assert "and active." in CliRunner().invoke(release_command, arguments).output
    assert contents(there.get(release.release_id)) == contents(release)


def test_a_follower_keeps_what_is_served_as_long_as_it_is(here: ReleaseStore, there: ReleaseStore) -> None:
    remote = RemoteReleases(here.root.parent.joinpath("remote").as_uri())
    served: set[str] | None = set()

    def ask() -> set[str]:
        if served is None:
            raise UnavailableError("redis", "away")
        return served

    follower = Follower(remote, there, keep=1, served=ask)
    a, b, c, d = (make(here, content).release_id for content in "abcd")
    for release_id, then in ((a, {a}), (b, {a, b}), (c, {a, c}), (d, None)):
        served = then
        remote.push(here.get(release_id))
        remote.point_to(release_id)
        follower.look()
        with nullcontext() if then is not None else pytest.raises(UnavailableError):
            follower.remove_old()
        assert there.active_id() == release_id
    assert set(there.ids()) == {a, c, d}
    remote.pull(b, there)  # for an experiment that begins
    served = {c, d}
    follower.look()
    follower.remove_old()
    assert set(there.ids()) == {b, c, d}
    remote.point_to(c)  # as a rollback does: it was to be removed once nobody serves it
    served = {c}
    follower.look()
    follower.remove_old()
    assert set(there.ids()) == {c}


def test_a_part_that_was_cut_short_is_sent_again(remote: Remote, here: ReleaseStore) -> None:
    release = make(here, one=1000)
    remote.write(f"{release.release_id}/one", b"x" * 10)
    remote.releases.push(release)
    assert remote.read(f"{release.release_id}/one") == (release.path / "one").read_bytes()


def test_a_damaged_release_is_not_pushed(remote: Remote, here: ReleaseStore) -> None:
    release = make(here)
    (release.path / PART).write_bytes(b"other weights")
    with pytest.raises(ReleaseMismatchError, match=PART):
        remote.releases.push(release)
    assert remote.names() == set()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{", "no JSON"),
        (b'{"release_id": "r1", "created_at": ""}', "no 'parts'"),
        (b'{"release_id": "r1", "parts": {}}', "no 'created_at'"),
        (b'{"release_id": "r2", "created_at": "", "parts": {}}', "release r2, expected r1"),
        (b'{"release_id": "r1", "created_at": "", "parts": {"../../../stolen": "0"}}', "expected relative paths"),
        (b'{"release_id": "r1", "created_at": "", "parts": {"/etc/passwd": "0"}}', "expected relative paths"),
        (b'{"release_id": "r1", "created_at": "", "parts": {"a": 7}}', "expected relative paths and their sha256"),
    ],
)
def test_a_manifest_that_lies_is_refused(remote: Remote, there: ReleaseStore, content: bytes, says: str) -> None:
    remote.write(f"r1/{MANIFEST}", content)
    with pytest.raises(ReleaseMismatchError, match=says):
        remote.releases.pull("r1", there)
    assert there.ids() == []


@pytest.mark.parametrize("name", ["", "..", "../elsewhere", "a/b"])
def test_a_pointer_out_of_the_store_is_refused(remote: Remote, there: ReleaseStore, name: str) -> None:
    remote.write(POINTER, json.dumps({"release_id": name}).encode())
    with pytest.raises(InvalidInputError, match="no release id; expected"):
        follow(remote.releases, there)
    assert not there.root.exists()


def test_the_pointer_is_followed(remote: Remote, here: ReleaseStore, there: ReleaseStore) -> None:
    assert follow(remote.releases, there) is None
    for content in ("a", "b"):
        release = make(here, content)
        remote.releases.push(release)
        remote.releases.point_to(release.release_id)
        brought = follow(remote.releases, there)
        assert brought is not None
        assert brought.release_id == there.active_id() == release.release_id
        assert follow(remote.releases, there) is None
    assert there.previous_id() == here.ids()[0]


def test_a_store_that_is_away_is_named(here: ReleaseStore, monkeypatch: pytest.MonkeyPatch) -> None:
    release = make(here)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with pytest.raises(UnavailableError, match="s3://shop/away"):
        RemoteReleases("s3://shop/away").push(release)


def test_a_bucket_that_does_not_exist_is_named(s3_files: S3FileSystem, here: ReleaseStore) -> None:
    with pytest.raises(UnavailableError, match="s3://nobodys/releases"):
        RemoteReleases("s3://nobodys/releases").push(make(here))


def test_an_url_of_another_kind_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"'ftpx://a/b' is no release store.*expected s3://"):
        RemoteReleases("ftpx://a/b")


def test_the_command_pushes_what_is_active_and_pulls_it(
    remote: Remote, here: ReleaseStore, there: ReleaseStore
) -> None:
    release = make(here)
    here.point_to(release.release_id)

    def run(store: ReleaseStore, *arguments: str) -> str:
        environment = {"BAGUNI_RELEASES_URL": remote.url}
        result = CliRunner().invoke(release_command, ["--releases", str(store.root), *arguments], env=environment)
        assert result.exit_code == 0, result.output
        return result.output

    assert f"{release.release_id} is in {remote.url}, and active there." in run(here, "push")
    assert f"{release.release_id} is in {there.root}, and active." in run(there, "pull")
    assert f"has what is active in {remote.url}: {release.release_id}" in run(there, "pull")
    assert there.active_id() == release.release_id


def test_a_follower_waits_for_the_first_release_and_keeps_as_many_as_it_is_told(
    s3_files: S3FileSystem, here: ReleaseStore, there: ReleaseStore, tmp_path: Path
) -> None:
    """Beside those that are served."""
    remote = Remote(f"s3://shop/{here.root.parent.name}", s3_files, f"shop/{here.root.parent.name}")
    command = ["release", "--releases", str(there.root), "pull", "--follow", "--keep", "1", "--url", remote.url]
    port = free_port()
    environment = {**os.environ, "BAGUNI_REDIS_URL": f"redis://127.0.0.1:{port}/0"}
    with redis_server(port, tmp_path) as client, following(command, environment) as process:
        ids: list[str] = []
        for content, kept in (("first", 1), ("second", 2), ("third", 2)):
            release = make(here, content)
            ids.append(release.release_id)
            client.zadd(KEY, {f"{ids[0]} experiment:1": time.time() + 3_600})
            remote.releases.push(release)
            remote.releases.point_to(release.release_id)

            def left() -> tuple[str | None, set[str]]:
                assert process.poll() is None
                return there.active_id(), {path.parent.name for path in there.root.glob(f"*/{MANIFEST}")}

            wanted = (ids[-1], {ids[0], ids[-1]})
            assert len(wanted[1]) == kept
            eventually(lambda wanted=wanted, left=left: left() == wanted, f"{wanted} is left", left)
        client.delete(KEY)
        eventually(lambda: left()[1] == {ids[-1]}, "what is served no more is removed", left)


@contextmanager
def following(command: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([BAGUNI, *command], cwd=ROOT, env=environment)
    try:
        yield process
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(COMMAND_S)
