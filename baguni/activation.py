"""Putting a release onto the servers, and switching to it.

Nothing moves until everything is there: models loaded in Triton, collections filled in Milvus, all carrying the
release's id. Then one atomic write of the pointer switches every gateway.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import redis

from baguni.inference import SyncInferenceClient
from baguni.item_index import IndexedItem, ItemIndex
from baguni.live_items import LiveItemWriter
from baguni.release import Release, ReleaseStore, link_or_copy
from baguni.settings import Endpoints

REDIS_TIMEOUT_S = 5.0
RESTORE_ROWS = 500

OnStage = Callable[[str], None]


def activate(
    store: ReleaseStore, release_id: str, endpoints: Endpoints, on_stage: OnStage = lambda stage: None
) -> Release:
    """Make a release the one that is served. Repeating it for the active release restores what a server lost.

    Raises ReleaseMismatchError if a part is damaged or a server holds another release's, UnavailableError if one does
    not answer; the pointer has not moved then.
    """
    on_stage("verify")
    release = store.get(release_id)
    publish(release, endpoints, on_stage)
    if store.active_id() != release_id:
        store.point_to(release_id)
    return release


def publish(release: Release, endpoints: Endpoints, on_stage: OnStage = lambda stage: None) -> None:
    """Load a release into Triton and Milvus, beside those that are there, and check that it arrived whole."""
    on_stage("load models into Triton")
    copy_models(release, endpoints.triton_repository)
    inference = SyncInferenceClient(endpoints.triton_url, release.release_id, release.signature)
    try:
        inference.load()
    finally:
        inference.close()
    on_stage("fill Milvus")
    index = ItemIndex(endpoints.milvus_uri, release.release_id)
    try:
        if index.fill(release):
            restore_live_items(index, release, endpoints.redis_url)
        index.check()
    finally:
        index.close()


def restore_live_items(index: ItemIndex, release: Release, redis_url: str) -> None:
    """Bring a collection that was built from the release up to the items' changes since then, if there were any."""
    client = redis.Redis.from_url(redis_url, socket_timeout=REDIS_TIMEOUT_S)
    try:
        changed = LiveItemWriter(client, release.release_id).changes()
    finally:
        client.close()
    for start in range(0, len(changed), RESTORE_ROWS):
        batch = changed[start : start + RESTORE_ROWS]
        present = [IndexedItem(x.item, x.item_vector, x.content_vector) for x in batch if not x.removed]
        removed = [x.item.item_id for x in batch if x.removed]
        if present:
            index.upsert(present)
        if removed:
            index.delete(removed)


def copy_models(release: Release, repository: Path) -> None:
    """Put the release's models where Triton looks for them: linked where the file system allows, else copied."""
    for source in release.triton_dir.iterdir():
        target = repository / source.name
        if not target.exists():
            partial = repository / f".{source.name}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(source, partial, copy_function=link_or_copy)
            partial.rename(target)
