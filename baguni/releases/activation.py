"""Put a release onto the servers, and switch to it.

Nothing moves until everything is there: models loaded in Triton, collections filled in Milvus, all with the release's id, and
the changes of items that the active release has. Then one atomic write of the pointer switches every gateway.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from baguni.clients.channels import replicas
from baguni.clients.inference import SyncInferenceClient, unload_models
from baguni.clients.item_index import IndexedItem, ItemIndex
from baguni.domain.errors import EngineError, ReleaseMismatchError
from baguni.domain.release import Release, ReleaseStore, link_or_copy
from baguni.domain.signature import GOLDEN_OUTPUTS, model_specs
from baguni.releases.item_updates import ItemServers, ItemUpdates, carry_over
from baguni.settings import Endpoints
from baguni.stores.lease import held
from baguni.stores.live_items import LiveItemWriter
from baguni.stores.redis_client import connect
from baguni.stores.served import keeper_name, kept_open, served

GOLDEN_TIMEOUT_S = 30.0
MAX_GOLDEN_DISTANCE = 0.05  # of the length of the expected vector: int8 stays within 0.02, fp16 within 0.001
NO_ITEM = -1e8  # log-likelihoods of places without an item are below
RESTORE_ROWS = 500

OnStage = Callable[[str], None]


def activate(
    store: ReleaseStore,
    release_id: str,
    endpoints: Endpoints,
    on_stage: OnStage = lambda stage: None,
    drain_s: float | None = None,
) -> Release:
    """Make a release the one that is served. Repeating it for the active release restores what a server lost.

    The models of other releases stay in Triton, ready for a rollback, unless `drain_s` says after how many seconds they
    are unloaded: longer than gateways take to follow the pointer, a few seconds, and to finish what they have begun, up to
    their longest deadline.

    Raises ReleaseMismatchError if a part is damaged or a server holds another release's, EngineError if the engines are for
    another GPU, UnavailableError if a server does not answer; the pointer has not moved then. What fails while others are
    unloaded is an UnavailableError too, and the release is active already.
    """
    with held(endpoints.redis_url, f"activate {release_id}", on_stage) as lease:
        on_stage("verify")
        release = store.get(release_id)
        publish(release, endpoints, on_stage)
        active_id = store.active_id()
        if active_id != release_id:
            if active_id is not None:
                on_stage("apply the changes of items")
                carry_over_items(active_id, release, endpoints)
            lease.check()
            store.point_to(release_id, lease.number)
        if drain_s is not None:
            on_stage("drain")
            time.sleep(drain_s)
            lease.check()
            unload_others(release, endpoints)
    return release


def unload_others(release: Release, endpoints: Endpoints) -> list[str]:
    """Unload from each Triton the models of every other release that no gateway serves, and return the releases' ids."""
    with closing(connect(endpoints.redis_url)) as client:
        kept = {release.release_id, *served(client)}
    models = tuple(model_specs(release.signature))
    unloaded = [
        unload_models(address, models, lambda release_id: release_id not in kept)
        for address in replicas(endpoints.triton_url)
    ]
    return sorted({release_id for each in unloaded for release_id in each})


@contextmanager
def _tritons(release: Release, endpoints: Endpoints) -> Iterator[list[SyncInferenceClient]]:
    """A client of each Triton."""
    with ExitStack() as opened:
        yield [
            opened.enter_context(closing(SyncInferenceClient(address, release.release_id, release.signature)))
            for address in replicas(endpoints.triton_url)
        ]


@contextmanager
def published(store: ReleaseStore, release: Release, endpoints: Endpoints) -> Iterator[None]:
    """`publish` for a while: at the end everything is as it was, unless the release has become the active one meanwhile, or
    another process serves it or needs it. `prune` removes it later then."""
    release_id = release.release_id
    with kept_open(endpoints.redis_url, release_id), _tritons(release, endpoints) as tritons:
        with held(endpoints.redis_url, f"load {release_id} for a while"):
            had_not = [inference for inference in tritons if not inference.is_loaded()]
            was_filled = publish(release, endpoints)
        try:
            yield
        finally:
            with held(endpoints.redis_url, f"take {release_id} away again"):
                undone = not _is_needed(store, release_id, endpoints)
                for inference in had_not if undone else ():
                    inference.unload()
                if undone and not was_filled:
                    with closing(ItemIndex(endpoints.milvus_uri, release_id)) as index:
                        index.drop()


def _is_needed(store: ReleaseStore, release_id: str, endpoints: Endpoints) -> bool:
    """Return whether a release is active, or some process but this one has it open, such as a gateway with an experiment."""
    with closing(connect(endpoints.redis_url)) as client:
        return release_id in {store.active_id(), *served(client, besides=keeper_name())}


def publish(release: Release, endpoints: Endpoints, on_stage: OnStage = lambda stage: None) -> bool:
    """Load a release into every Triton and Milvus, beside those that are there, and check that it arrived whole. Returns
    whether Milvus had it already."""
    check_device(release, endpoints)
    on_stage("load models into Triton")
    copy_models(release, endpoints.triton_repository)
    with _tritons(release, endpoints) as tritons:
        for inference in tritons:
            inference.load()
        on_stage("ask the golden queries")
        for inference in tritons:
            check_golden_queries(release, inference)
    on_stage("fill Milvus")
    index = ItemIndex(endpoints.milvus_uri, release.release_id, release.catalog)
    try:
        was_built = index.fill(release, on_stage)
        if was_built:
            restore_live_items(index, release, endpoints.redis_url)
        index.check()
        return not was_built
    finally:
        index.close()


def check_device(release: Release, endpoints: Endpoints) -> None:
    """Raise EngineError if the release's engines were built for another GPU than Triton's: that of this machine, unless
    BAGUNI_COMPUTE_CAPABILITY says what it is."""
    engine = release.manifest.get("engine")
    if engine is None:
        return
    built, found = engine["compute_capability"], endpoints.compute_capability or compute_capability()
    if built != found:
        raise EngineError(
            f"the engines of {release.release_id} were built for compute capability {built} with TensorRT "
            f"{engine['tensorrt']}, Triton's GPU has {found}: export the release again on that machine"
        )


def compute_capability() -> str:
    """Return the compute capability of this machine's first GPU, such as "8.9". Raises EngineError without a GPU."""
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError) as error:
        raise EngineError("there is no NVIDIA GPU here: TensorRT engines are built and run on one") from error


def check_golden_queries(release: Release, inference: SyncInferenceClient) -> None:
    """Raise ReleaseMismatchError unless Triton answers the release's known users as its training did: what is loaded, built
    and run there is what was evaluated."""
    for model, output in GOLDEN_OUTPUTS.items():
        expected = release.golden_queries[output]
        spec = model_specs(release.signature)[model]
        inputs = {tensor.name: release.golden_queries[tensor.name] for tensor in spec.inputs}
        served = inference.infer(model, inputs, GOLDEN_TIMEOUT_S)[output]
        distance = golden_distance(served, expected)
        if not (distance <= MAX_GOLDEN_DISTANCE).all():
            raise ReleaseMismatchError(
                f"Triton's {model} of {release.release_id} does not answer known users as it did in training: "
                f"{np.nanmax(distance):.3f} of a vector's length away, expected at most {MAX_GOLDEN_DISTANCE}"
            )


def golden_distance(served: NDArray[np.float32], expected: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the distance of each answer from the expected one, as a share of its length."""
    real = expected > NO_ITEM  # a small catalogue does not fill every place
    missing = np.linalg.norm(np.where(real, served - expected, 0), axis=-1)
    return np.asarray(missing / np.maximum(np.linalg.norm(np.where(real, expected, 0), axis=-1), 1e-6))


def restore_live_items(index: ItemIndex, release: Release, redis_url: str) -> None:
    """Bring a collection that was built from the release up to the items' changes since then, those included that a consumer
    makes meanwhile: what it writes to the collection may be written over."""
    with closing(connect(redis_url)) as client:
        live_items = LiveItemWriter(client, release.release_id)
        while changed := live_items.changes():
            for start in range(0, len(changed), RESTORE_ROWS):
                batch = changed[start : start + RESTORE_ROWS]
                present = [IndexedItem(x.item, x.item_vector, x.content_vector) for x in batch if not x.removed]
                removed = [x.item.item_id for x in batch if x.removed]
                if present:
                    index.upsert(present)
                if removed:
                    index.delete(removed)


def carry_over_items(from_id: str, release: Release, endpoints: Endpoints) -> None:
    """Bring a release up to the changes of items that another has."""
    with (
        closing(connect(endpoints.redis_url)) as client,
        closing(ItemServers.opened(release, endpoints, client)) as servers,
    ):
        carry_over(LiveItemWriter(client, from_id), ItemUpdates(release, servers))


def copy_models(release: Release, repository: Path) -> None:
    """Put the release's models where Triton looks for them: linked where the file system allows, else copied."""
    for source in release.triton_dir.iterdir():
        target = repository / source.name
        if not target.exists():
            partial = repository / f".{source.name}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(source, partial, copy_function=link_or_copy)
            partial.rename(target)
