"""Releases: the unit of change. One directory, one manifest with the sha256 of each part, one id.

A store is a directory of releases and a pointer to the active one. Switching and rolling back are one atomic write.
It knows files, not servers: putting a release onto Triton and Milvus is `baguni.releases.activation`.

    STORE/
      r20261124_1f3a9c02/      manifest.json, catalog.parquet, semantic_ids.npz, …, triton/<model>_<release>/…
      ACTIVE.json              {"release_id": …, "history": [earlier ids, newest last]}
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baguni.domain.catalog import Catalog
from baguni.domain.errors import BaguniError, InvalidInputError, NotFoundError, ReleaseMismatchError
from baguni.domain.semantic_ids import SemanticIds, SemanticIdTable, read_ids
from baguni.domain.signature import ModelSignature
from baguni.domain.staging import remove_abandoned, staging

log = logging.getLogger(__name__)
PART_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")  # of each level
RELEASE_ID = re.compile(r"[A-Za-z0-9_]{1,64}")
MANIFEST = "manifest.json"
POINTER = "ACTIVE.json"
RESERVED_IDS = "reserved_ids.json"


@dataclass(frozen=True)
class Release:
    """A release on disk whose parts have been verified. Parts are read when asked for; big ones are memory-mapped."""

    path: Path
    manifest: Mapping[str, Any]

    @property
    def release_id(self) -> str:
        """The id that names it everywhere."""
        return str(self.manifest["release_id"])

    @cached_property
    def signature(self) -> ModelSignature:
        """The tensors of its models."""
        return ModelSignature.load(self.path / "signature.json")

    @cached_property
    def catalog(self) -> Catalog:
        """The items as they were when it was built."""
        return Catalog.load(self.path / "catalog.parquet")

    @cached_property
    def semantic_ids(self) -> SemanticIdTable:
        """Codes by item index."""
        return SemanticIdTable.load(self.path / "semantic_ids.npz")

    @cached_property
    def reserved_ids(self) -> SemanticIds:
        """Semantic IDs of items that earlier releases had, or consumers took over, and that are not in its catalogue."""
        path = self.path / RESERVED_IDS
        return read_ids(path) if path.is_file() else {}

    @property
    def published_ids(self) -> SemanticIds:
        """Semantic IDs of its items, and those that are reserved."""
        rows = zip(self.catalog.items, self.semantic_ids.codes_NL.tolist(), strict=True)
        return {**self.reserved_ids, **{item.item_id: tuple(codes) for item, codes in rows}}

    @cached_property
    def item_vectors(self) -> NDArray[np.float32]:
        """[N, vector_dim] in the collaborative space; the last component is the item's bias, the user's there is 1."""
        return np.asarray(np.load(self.path / "item_vectors.npy", mmap_mode="r"))

    @cached_property
    def content_vectors(self) -> NDArray[np.float32]:
        """[N, content_dim], unit length, in the content space."""
        return np.asarray(np.load(self.path / "content_vectors.npy", mmap_mode="r"))

    @cached_property
    def popularity(self) -> NDArray[np.float32]:
        """[N] orders lately, for cold starts."""
        return np.asarray(np.load(self.path / "popularity.npy", mmap_mode="r"))

    @cached_property
    def golden_queries(self) -> dict[str, NDArray[Any]]:
        """Inputs of the models that read histories for some known users, and what training answered: the outputs that
        `GOLDEN_OUTPUTS` names."""
        with np.load(self.path / "golden_queries.npz") as arrays:
            return dict(arrays)

    @property
    def triton_dir(self) -> Path:
        """Its part of a Triton model repository."""
        return self.path / "triton"

    @property
    def trained_until_ms(self) -> int | None:
        """The moment at which its training ended, ms UTC; None if a version made it that did not say so."""
        until_ms = self.manifest.get("trained_until_ms")
        return None if until_ms is None else int(until_ms)

    @property
    def metrics(self) -> Mapping[str, Any]:
        """Metrics of its evaluation."""
        return dict(self.manifest.get("metrics", {}))


def write_manifest(path: Path, fields: Mapping[str, Any]) -> Release:
    """Describe the finished directory `path`: hash every file, derive the id, write the manifest last.

    The id is the day and the hash of all parts, so equal contents have equal ids and no two differ under one.
    """
    parts = {name: sha256_of(path / name) for name in _files(path)}
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    manifest = {
        "release_id": fields.get("release_id") or f"r{datetime.now(UTC):%Y%m%d}_{digest[:8]}",
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        **{key: value for key, value in fields.items() if key != "release_id"},
        "parts": parts,
    }
    _write_atomically(path / MANIFEST, manifest)
    return Release(path, manifest)


def load_release(path: Path, verify: bool = True) -> Release:
    """Open a release directory. Raises ReleaseMismatchError naming each part that does not match its manifest."""
    if not (path / MANIFEST).is_file():
        raise NotFoundError(f"{path} is not a release: it has no {MANIFEST}")
    manifest = parse_manifest((path / MANIFEST).read_bytes(), str(path / MANIFEST))
    if verify:
        problems = _problems(path, manifest["parts"])
        if problems:
            raise ReleaseMismatchError(f"release {manifest['release_id']} is damaged: {'; '.join(problems)}")
    return Release(path, manifest)


def parse_manifest(content: bytes, where: str) -> dict[str, Any]:
    """Return the fields of a manifest. Raises ReleaseMismatchError for one that lacks a field, whose id is no name for paths,
    collections and models, or whose parts are no relative paths."""
    manifest = parse_object(content, where, {"release_id": str, "created_at": str, "parts": dict})
    if not RELEASE_ID.fullmatch(manifest["release_id"]):
        raise ReleaseMismatchError(
            f"{where}: release_id is {manifest['release_id'][:80]!a}, expected {RELEASE_ID.pattern}"
        )
    for name, digest in manifest["parts"].items():
        if not _is_part_name(name) or not isinstance(digest, str):
            raise ReleaseMismatchError(
                f"{where}: parts has {name[:80]!a}: {str(digest)[:80]!a}, expected relative paths and their sha256"
            )
    return manifest


def _is_part_name(name: str) -> bool:
    """Return whether every level is a plain name, as every file system takes it."""
    return all(PART_NAME.fullmatch(each) and each not in (".", "..") for each in name.split("/"))


class ReleaseStore:
    """A directory of releases and the pointer to the active one. Safe to read while another process writes."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def ids(self) -> list[str]:
        """Return all releases, oldest first. One whose manifest cannot be read is logged and left out."""
        found = []
        for path in self.root.glob(f"*/{MANIFEST}"):
            try:
                found.append(self.get(path.parent.name, verify=False))
            except (BaguniError, OSError) as error:
                log.warning("left out: %s", error)
        return [r.release_id for r in sorted(found, key=lambda r: (r.manifest["created_at"], r.release_id))]

    def get(self, release_id: str, verify: bool = True) -> Release:
        """The release of that id, verified unless told otherwise."""
        path = self.root / release_id
        if not (path / MANIFEST).is_file():
            known = ", ".join(self.ids()) or "none: train one with `baguni train`"
            raise NotFoundError(f"there is no release {release_id!r}; known releases: {known}")
        release = load_release(path, verify)
        if release.release_id != release_id:
            raise ReleaseMismatchError(f"{path} says it is release {release.release_id}, expected {release_id}")
        return release

    def add(self, path: Path) -> Release:
        """Copy a finished release directory into the store under its id, and return the release of the store. A half-copied
        release is never visible. The same parts again change nothing, or replace those that are damaged. Raises
        InvalidInputError if the store has other parts under this id."""
        release = load_release(path)
        target = self.root / release.release_id
        with staging(self.root, "adding", release.release_id) as folder:
            try:
                if self._has(target, release):
                    return load_release(
                        target, verify=False
                    )  # a command that was killed after it had published, and is run again
                copied = folder / "release"
                shutil.rmtree(copied, ignore_errors=True)
                shutil.copytree(path, copied, copy_function=link_or_copy)
                self.install(load_release(copied, verify=False))
            finally:
                shutil.rmtree(folder, ignore_errors=True)
        return load_release(target, verify=False)

    @staticmethod
    def _has(target: Path, release: Release) -> bool:
        """Return whether a release is there, and undamaged."""
        try:
            parts = load_release(target, verify=False).manifest["parts"]
            if parts == release.manifest["parts"]:
                return not _problems(target, parts)
        except (NotFoundError, ReleaseMismatchError):  # not there, or its manifest is damaged
            return False
        raise InvalidInputError(f"release {release.release_id} is already in the store, with other parts")

    def install(self, release: Release) -> None:
        """Move a finished release from beside the store's into its place. Where a damaged one is, part after part replaces it:
        readers find every part, before or after."""
        target, source = self.root / release.release_id, release.path
        if not target.exists():
            source.rename(target)
            return
        log.warning("replace what is damaged of %s", target)
        for name in [*release.manifest["parts"], MANIFEST]:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(source / name, target / name)
        for surplus in set(_files(target)) - release.manifest["parts"].keys():
            (target / surplus).unlink()

    def active_id(self) -> str | None:
        """The active release's id, None before the first activation."""
        pointer = self._pointer()
        return pointer["release_id"] if pointer else None

    def point_to(self, release_id: str, lease_number: int = 0) -> None:
        """Make a release the active one: one atomic write. The release must be in the store and undamaged. Raises
        ReleaseMismatchError if a holder of a later lease has moved the pointer since."""
        self.get(release_id)
        pointer = self._pointer()
        last_number = int(pointer.get("lease", 0)) if pointer else 0
        if 0 < lease_number < last_number:
            raise ReleaseMismatchError(
                f"{self.root / POINTER} was moved under lease {last_number}, after lease {lease_number}: nothing was changed"
            )
        earlier = [*pointer["history"], pointer["release_id"]] if pointer else []
        history = [r for r in earlier if r != release_id][-20:]
        number = max(lease_number, last_number)
        leased = {"lease": number} if number else {}
        _write_atomically(self.root / POINTER, {"release_id": release_id, "history": history, **leased})

    def previous_id(self) -> str:
        """The release that was active before; raises NotFoundError if there was none."""
        pointer = self._pointer()
        if not pointer or not pointer["history"]:
            raise NotFoundError("there is no earlier release to roll back to")
        return str(pointer["history"][-1])

    def last_active(self, count: int) -> list[str]:
        """The active release and those that were before it, `count` in all, newest last; none before the first activation."""
        pointer = self._pointer()
        return [*pointer["history"], pointer["release_id"]][-count:] if pointer else []

    def remove(self, release_ids: Collection[str]) -> list[str]:
        """Remove releases, and what interrupted commands left; the ids of what was removed. Processes that have one open keep
        what they have read."""
        removed = [release_id for release_id in self.ids() if release_id in release_ids]
        for release_id in removed:
            (self.root / release_id / MANIFEST).unlink()  # from here on it is none
            shutil.rmtree(self.root / release_id)
        for folder in self.root.iterdir():
            if folder.is_dir() and RELEASE_ID.fullmatch(folder.name) and not (folder / MANIFEST).exists():
                shutil.rmtree(folder)
        remove_abandoned(self.root)
        return removed

    def remove_but(self, kept: Collection[str]) -> list[str]:
        """`remove` every release but these."""
        return self.remove({*self.ids()} - {*kept})

    def _pointer(self) -> dict[str, Any] | None:
        path = self.root / POINTER
        return _read_object(path, {"release_id": str, "history": list}) if path.is_file() else None


def _read_object(path: Path, fields: Mapping[str, type]) -> dict[str, Any]:
    return parse_object(path.read_bytes(), str(path), fields)


def parse_object(content: bytes, where: str, fields: Mapping[str, type]) -> dict[str, Any]:
    """A JSON object with these fields. Raises ReleaseMismatchError for anything else."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ReleaseMismatchError(f"{where} is no JSON: {error}") from error
    for name, kind in fields.items():
        if not isinstance(found, dict) or not isinstance(found.get(name), kind):
            raise ReleaseMismatchError(f"{where} has no {name!r}, expected an object with {', '.join(fields)}")
    return dict(found)


def sha256_of(path: Path) -> str:
    """The file's sha256 in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _problems(path: Path, parts: Mapping[str, str]) -> list[str]:
    missing = [f"{name} is missing" for name in parts if not (path / name).is_file()]
    extra = [f"{name} is not in the manifest" for name in _files(path) if name not in parts]
    changed = [
        f"{name} does not match its sha256"
        for name, digest in parts.items()
        if (path / name).is_file() and sha256_of(path / name) != digest
    ]
    return [*missing, *extra, *changed]


def _files(path: Path) -> list[str]:
    files = (p for p in sorted(path.rglob("*")) if p.is_file() and p.name != MANIFEST)
    return [p.relative_to(path).as_posix() for p in files]


def _write_atomically(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        json.dump(content, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(file.name, path)


def link_or_copy(source: str, target: str) -> str:
    """A hard link where the file system allows one, else a copy: for shutil.copytree."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target
