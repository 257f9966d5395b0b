"""Removing releases that nobody needs: from Triton, from Milvus, from Redis, from the disks. Every step asks what is there, so
one that was interrupted goes on when it is repeated.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Collection, Iterable
from contextlib import closing
from pathlib import Path

import redis

from baguni.clients.channels import replicas
from baguni.clients.inference import unload_models
from baguni.clients.item_index import collections_of_releases, drop_collection, is_current
from baguni.domain.errors import InvalidInputError
from baguni.domain.release import Release, ReleaseStore
from baguni.domain.signature import model_specs
from baguni.settings import Endpoints
from baguni.stores.lease import held
from baguni.stores.redis_client import connect, shared_redis_errors
from baguni.stores.served import served

SCANNED = 1_000
# Exactly the keys of stores/live_items.py: a user may be called "items:rye", and has a history under "baguni:{items:rye}:h".
_ITEM_KEYS = re.compile(r"baguni:\{items:([A-Za-z0-9_]{1,64})\}(:changes|:sequence|:claims|:times)?")
_GROUP_KEYS = "baguni:positions:baguni-items-"  # then the release, then the suffix of groups


def prune(
    store: ReleaseStore, endpoints: Endpoints, keep: int, on_stage: Callable[[str], None] = lambda stage: None
) -> list[str]:
    """Remove every release but the last `keep` that were active, the active one among them, and those that some gateway serves,
    for an experiment for example. Returns the ids of what was removed anywhere. Nothing is removed before the first activation.
    Raises InvalidInputError, LeaseError, UnavailableError."""
    if keep < 1:
        raise InvalidInputError(f"keep is {keep}, expected at least 1: the active release stays", "keep")
    with held(endpoints.redis_url, "prune", on_stage) as lease, closing(connect(endpoints.redis_url)) as client:
        active_id = store.active_id()
        if active_id is None:
            return []
        active = store.get(active_id, verify=False)
        kept = {*store.last_active(keep), *served(client)}
        removed: set[str] = set()
        places: dict[str, Callable[[], set[str]]] = {
            "Triton": lambda: _from_triton(active, endpoints, kept),
            "Milvus": lambda: _from_milvus(endpoints, kept),
            "disk": lambda: _from_disk(active, store, endpoints.triton_repository, kept),
            "Redis": lambda: _from_redis(client, kept, removed),
        }
        for place, remove in places.items():
            lease.check()
            on_stage(f"remove from {place}")
            removed |= remove()
        return sorted(removed)


def _from_triton(active: Release, endpoints: Endpoints, kept: Collection[str]) -> set[str]:
    models = tuple(model_specs(active.signature))
    return {
        release_id
        for address in replicas(endpoints.triton_url)
        for release_id in unload_models(address, models, lambda release_id: release_id not in kept)
    }


def _from_milvus(endpoints: Endpoints, kept: Collection[str]) -> set[str]:
    """Remove collections of releases that nobody needs, and those that an earlier version made for others."""
    removed = set()
    for name, owner in collections_of_releases(endpoints.milvus_uri):
        if owner not in kept or not is_current(name, owner):
            drop_collection(endpoints.milvus_uri, name)
            removed.add(owner)
    return removed - {*kept}


def _from_redis(client: redis.Redis, kept: Collection[str], removed: Collection[str]) -> set[str]:
    """Remove changed items, and the positions of consumers of releases that were removed elsewhere: in the key of a position,
    anything may follow the id."""
    found = set()
    with shared_redis_errors():
        for key in client.scan_iter("baguni:{items:*", count=SCANNED):
            match = _ITEM_KEYS.fullmatch(key.decode(errors="replace"))
            if match and match[1] not in kept:
                client.unlink(key)
                found.add(match[1])
        for key in client.scan_iter(f"{_GROUP_KEYS}*", count=SCANNED):
            group = key.decode(errors="replace").removeprefix(_GROUP_KEYS)
            if any(group == each or group.startswith(f"{each}-") for each in {*removed, *found} - {*kept}):
                client.unlink(key)
    return found


def _from_disk(active: Release, store: ReleaseStore, repository: Path, kept: Collection[str]) -> set[str]:
    models = "|".join(model_specs(active.signature))
    for folder in _folders(repository):
        found = re.fullmatch(rf"\.?({models})_([A-Za-z0-9_]+?)(\.partial)?", folder.name)
        if found and found[2] not in kept:
            shutil.rmtree(folder)
    return set(store.remove_but(kept))


def _folders(path: Path) -> Iterable[Path]:
    return [each for each in path.iterdir() if each.is_dir()] if path.is_dir() else []
