"""Releases in an object store: push from where they are made, pull to where they are served.

    URL/
      r20261124_1f3a9c02/      the parts, then manifest.json: an upload without it is no release yet
      ACTIVE.json              {"release_id": …}

Any fsspec URL is a store. `s3://BUCKET/PREFIX` is read by Arrow's client, with the usual variables: AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_REGION, and AWS_ENDPOINT_URL for a store that is not Amazon's.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import fsspec
from fsspec.implementations.local import LocalFileSystem

from baguni.domain.errors import InvalidInputError, NotFoundError, ReleaseMismatchError, UnavailableError
from baguni.domain.release import (
    MANIFEST,
    POINTER,
    RELEASE_ID,
    Release,
    ReleaseStore,
    link_or_copy,
    load_release,
    parse_manifest,
    parse_object,
    sha256_of,
)
from baguni.domain.staging import staging

log = logging.getLogger(__name__)

CHUNK = 8 << 20  # bytes that are read at once; S3's parts have at least five million
CONNECT_S, REQUEST_S, ATTEMPTS = 3.0, 30.0, 3
VERIFY_S = 3_600.0  # a release of a million items is hashed in seconds
Progress = Callable[[str], None]


class RemoteReleases:
    """Releases below a URL. Every method raises UnavailableError where the store does not answer or refuses."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        try:
            self._files, self._root = _file_system(self.url)
        except (ImportError, ValueError) as error:
            expected = (
                "expected s3://BUCKET/PREFIX, a folder, or another URL that fsspec and what is installed can open"
            )
            raise InvalidInputError(f"{url!r} is no release store: {error}; {expected}", "url") from error

    def ids(self) -> list[str]:
        """Return all releases whose upload was finished, sorted by name, which begins with the day."""
        with self._reached():
            return sorted(PurePosixPath(path).parent.name for path in self._files.glob(f"{self._root}/*/{MANIFEST}"))

    def active_id(self) -> str | None:
        """The release that the pointer names, None before the first."""
        with self._reached():
            path = f"{self._root}/{POINTER}"
            if not self._files.exists(path):
                return None
            content = self._files.cat_file(path)
        return str(parse_object(content, f"{self.url}/{POINTER}", {"release_id": str})["release_id"])

    def push(self, release: Release, progress: Progress = lambda stage: None) -> None:
        """Upload what is not there yet, the manifest last. A part is one object, and an object appears whole or not at all.

        A second push after an interruption sends what is missing, or has another size.
        """
        verified = load_release(release.path)
        sizes = {name: (release.path / name).stat().st_size for name in verified.manifest["parts"]}
        with self._reached():
            there = self._sizes(release.release_id)
            missing = [name for name in sizes if there.get(name) != sizes[name]]
            for position, name in enumerate(missing, start=1):
                progress(f"{name} ({position} of {len(missing)})")
                self._send(release.path / name, f"{release.release_id}/{name}")
            there = self._sizes(release.release_id)
            wrong = [f"{n} has {there.get(n, 0)} of {size} bytes" for n, size in sizes.items() if there.get(n) != size]
            if wrong:
                raise UnavailableError(self.url, f"it did not keep all of {release.release_id}: {'; '.join(wrong)}")
            self._send(release.path / MANIFEST, f"{release.release_id}/{MANIFEST}")

    def point_to(self, release_id: str) -> None:
        """Make a release that is there the active one: one object."""
        with self._reached():
            if not self._files.exists(f"{self._root}/{release_id}/{MANIFEST}"):
                raise NotFoundError(self._unknown(release_id))
            self._write(BytesIO(json.dumps({"release_id": release_id}).encode()), POINTER)

    def pull(self, release_id: str, store: ReleaseStore, progress: Progress = lambda stage: None) -> Release:
        """Bring a release into a store; the same release at once if it is there. One process at a time brings it.

        Parts that an interrupted pull has brought are kept, one that it had begun is continued; each is checked against its
        sha256. The release appears when all are right; one that is damaged here stays until then, and its sound parts do not
        travel again. Raises ReleaseMismatchError naming the parts that are not right, NotFoundError naming the releases that
        are there, and InvalidInputError for an id that is no folder's name.
        """
        if not RELEASE_ID.fullmatch(release_id):
            expected = f"expected {RELEASE_ID.pattern}"
            raise InvalidInputError(f"{release_id!r} of {self.url} is no release id; {expected}", "release_id")
        with staging(store.root, "pulling", release_id) as folder:
            release = _sound(store, release_id)
            if release is None:
                with self._reached():
                    release = self._pull(release_id, store, folder / "release", progress)
            shutil.rmtree(folder, ignore_errors=True)
        return release

    def _pull(self, release_id: str, store: ReleaseStore, folder: Path, progress: Progress) -> Release:
        path = f"{self._root}/{release_id}/{MANIFEST}"
        if not self._files.exists(path):
            raise NotFoundError(self._unknown(release_id))
        content = self._files.cat_file(path)
        where = f"{self.url}/{release_id}/{MANIFEST}"
        manifest = parse_manifest(content, where)
        if manifest["release_id"] != release_id:
            raise ReleaseMismatchError(f"{where} says it is release {manifest['release_id']}, expected {release_id}")
        problems = []
        for position, (name, digest) in enumerate(manifest["parts"].items(), start=1):
            target = folder / name
            progress(f"{name} ({position} of {len(manifest['parts'])})")
            _reuse(store.root / release_id / name, target)
            problem = self._fetch(f"{release_id}/{name}", target, digest)
            problems += [f"{name} {problem}"] if problem else []
        if problems:
            raise ReleaseMismatchError(f"release {release_id} in {self.url} is damaged: {'; '.join(problems)}")
        for surplus in [file for file in folder.rglob("*") if file.is_file()]:  # of a release that was damaged
            if surplus.relative_to(folder).as_posix() not in manifest["parts"]:
                surplus.unlink()
        (folder / MANIFEST).write_bytes(content)
        store.install(load_release(folder))  # nothing that the manifest does not name
        return load_release(store.root / release_id, verify=False)

    def _fetch(self, key: str, target: Path, digest: str) -> str:
        """Bring one part, from where an earlier attempt stopped; what is wrong with it, or nothing."""
        if target.is_file():
            if sha256_of(target) == digest:
                return ""
            target.unlink()
        begun = target.with_name(f"{target.name}.begun")
        source_path = f"{self._root}/{key}"
        if not self._files.exists(source_path):
            return "is missing"
        for _ in range(2):  # what had been begun may be another object's beginning: then once more, from the start
            offset = begun.stat().st_size if begun.is_file() else 0
            with self._files.open(source_path, "rb", block_size=CHUNK) as source, begun.open("ab") as file:
                source.seek(offset)
                while block := source.read(CHUNK):
                    file.write(block)
            if sha256_of(begun) == digest:
                os.replace(begun, target)
                return ""
            begun.unlink()
            if not offset:
                break
        return "does not match its sha256"

    def _write(self, source: BinaryIO, key: str) -> None:
        """One object. A folder would show a file that is half written: there it is renamed when it is whole."""
        target = f"{self._root}/{key}"
        in_folder = isinstance(self._files, LocalFileSystem)
        if in_folder:
            self._files.makedirs(str(PurePosixPath(target).parent), exist_ok=True)
        written = f"{target}.begun" if in_folder else target
        with self._files.open(written, "wb") as file:
            shutil.copyfileobj(source, file, CHUNK)
        if in_folder:
            os.replace(written, target)

    def _send(self, path: Path, key: str) -> None:
        with path.open("rb") as source:
            self._write(source, key)

    def _sizes(self, release_id: str) -> dict[str, int]:
        folder = f"{self._root}/{release_id}"
        found: dict[str, dict[str, Any]] = self._files.find(folder, detail=True)
        return {PurePosixPath(path).relative_to(folder).as_posix(): int(about["size"]) for path, about in found.items()}

    def _unknown(self, release_id: str) -> str:
        known = ", ".join(self.ids()) or "none: `baguni release push` brings some"
        return f"there is no release {release_id!r} in {self.url}; releases there: {known}"

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UnavailableError(self.url, str(error)) from error


def follow(
    remote: RemoteReleases, store: ReleaseStore, progress: Progress = lambda stage: None, verifies: bool = True
) -> Release | None:
    """Bring the remote's active release and point to it; None if there is none or it is active already. `verifies`: hash
    one that is active already, and bring it again if it is damaged."""
    release_id = remote.active_id()
    if release_id is None:
        return None
    if release_id == store.active_id():
        is_sound = not verifies or _sound(store, release_id) is not None
        return None if is_sound else remote.pull(release_id, store, progress)
    release = remote.pull(release_id, store, progress)
    store.point_to(release_id)
    return release


class Follower:
    """Follows a remote's pointer again and again. Verifies the active release every VERIFY_S; keeps the last `keep` that were
    active, if that is not None, and those that are `served` by then."""

    def __init__(
        self,
        remote: RemoteReleases,
        store: ReleaseStore,
        keep: int | None = None,
        served: Callable[[], Collection[str]] = frozenset,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._remote, self._store, self._keep, self._served, self._clock = remote, store, keep, served, clock
        self._verified_s = -math.inf
        self._old: set[str] = set()

    def look(self, progress: Progress = lambda stage: None) -> Release | None:
        """`follow`, and verify what is active already if that is due."""
        now_s = self._clock()
        verifies = now_s - self._verified_s >= VERIFY_S
        brought = follow(self._remote, self._store, progress, verifies)
        if verifies or brought is not None:
            self._verified_s = now_s
        if brought is not None and self._keep is not None:
            self._old = {*self._store.ids()}
        return brought

    def remove_old(self) -> None:
        """Remove what was there when the active release came, and is not served any more: gateways serve the one before for
        some seconds, experiments others for weeks. Raises UnavailableError if what is served is not known."""
        self._old &= {*self._store.ids()} - {*self._store.last_active(self._keep or 1)}
        if self._old:
            needed = {*self._served()}
            self._store.remove(self._old - needed)
            self._old &= needed


def _file_system(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it."""
    if not url.startswith("s3://"):
        files, path = fsspec.core.url_to_fs(url)
        return files, str(path)
    from fsspec.implementations.arrow import ArrowFSWrapper
    from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem

    endpoint = urlsplit(os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", ""))
    more = {"endpoint_override": endpoint.netloc, "scheme": endpoint.scheme} if endpoint.netloc else {}
    files = S3FileSystem(
        region=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1",
        connect_timeout=CONNECT_S,
        request_timeout=REQUEST_S,
        retry_strategy=AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        **more,
    )
    return ArrowFSWrapper(files, use_listings_cache=False, skip_instance_cache=True), url.removeprefix("s3://")


def _sound(store: ReleaseStore, release_id: str) -> Release | None:
    """Return a release of the store, None if it is damaged or not there."""
    if not (store.root / release_id).exists():
        return None
    try:
        return store.get(release_id)
    except (NotFoundError, ReleaseMismatchError) as error:
        log.warning("bringing what is damaged again: %s", error)
        return None


def _reuse(stored: Path, target: Path) -> None:
    """Put a part of a damaged release where it is brought to, unless an earlier attempt has brought it: it may be a sound
    one."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if stored.is_file() and not target.is_file():
        link_or_copy(str(stored), str(target))
