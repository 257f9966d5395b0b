"""A month without anybody looking: thirty nights, each with a new release that is activated and an old one that is pruned.
`make test-releases` writes benchmarks/results/releases.json.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from baguni.clients.item_index import collections_of_releases
from baguni.domain.release import Release, ReleaseStore
from baguni.releases.activation import activate
from baguni.releases.pruning import prune
from baguni.settings import Endpoints
from baguni.stores.redis_client import connect
from baguni.stores.served import served
from baguni.v1 import recommendation_pb2 as pb
from baguni.v1 import recommendation_pb2_grpc as pb_grpc
from benchmarks.result import Row
from deploy.local.stack import LocalStack
from tests.faults.memory import listening, memory_mb
from tests.gateway_process import GatewayProcess, gateway_process
from tests.integration.test_release_switch import loaded_models
from tests.tiny_release import renamed
from tests.waiting import eventually

pytestmark = [pytest.mark.stack, pytest.mark.fault, pytest.mark.timeout(3_600)]
NIGHTS, KEPT = 30, 2
FROM_NIGHT = 2  # from its end on, nothing may grow
PAGES = 200  # asked for every day


def test_thirty_nights(
    record: Callable[[Row], None],
    local_stack: LocalStack,
    stack: Endpoints,
    tiny_release: Release,
    active_release: Release,
    tmp_path: Path,
) -> None:
    store = ReleaseStore(stack.releases)
    counts: dict[str, list[float]] = {}
    failed = 0
    with gateway_process(stack, tmp_path, processes=2) as gateway, grpc.insecure_channel(gateway.address) as channel:
        stub = pb_grpc.RecommendationServiceStub(channel)
        for night in range(1, NIGHTS + 1):
            release = renamed(tiny_release, tmp_path / f"night-{night}", f"r2098{night:04}_0000aaaa")
            store.add(release.path)
            activate(store, release.release_id, stack)
            failed += _ask_until_served(stub, release.release_id)
            with connect(stack.redis_url) as client:
                eventually(lambda: served(client) == {release.release_id}, "no process serves an older release")  # noqa: B023
            prune(store, stack, KEPT)
            for name, number in _counted(local_stack, stack, store, gateway).items():
                counts.setdefault(name, []).append(number)
        store.add(tiny_release.path)  # it was pruned
        activate(store, active_release.release_id, stack)
    record(Row.at_most(f"{NIGHTS} nights: pages that failed, {PAGES} a day", failed, "", 0))
    for name, numbers in counts.items():
        first, most = numbers[FROM_NIGHT - 1], max(numbers[FROM_NIGHT - 1 :])
        record(Row.at_most_times(f"{NIGHTS} nights: {name}, the most", most, "", 1.1, ("after the second", first)))


def _ask_until_served(stub: pb_grpc.RecommendationServiceStub, release_id: str) -> int:
    """Ask for a day's pages, then until the new release answers. Returns how many failed."""
    answers: list[str] = []

    def ask(user_id: str) -> str:
        try:
            answers.append(stub.Recommend(pb.RecommendRequest(user_id=user_id, page_size=3), timeout=30).release_id)
        except grpc.RpcError as error:
            answers.append(str(error))
        return answers[-1]

    for number in range(PAGES):
        ask(f"u{number:03}")
    eventually(lambda: ask("u000") == release_id, f"{release_id} is served", lambda: answers[-1])
    return sum(not answer.startswith("r") for answer in answers)


def _counted(
    local_stack: LocalStack, endpoints: Endpoints, store: ReleaseStore, gateway: GatewayProcess
) -> dict[str, float]:
    """Return what may grow, by name."""
    return {
        "models in Triton": len(loaded_models(endpoints)),
        "collections in Milvus": len(collections_of_releases(endpoints.milvus_uri)),
        "folders of models": len(list(endpoints.triton_repository.iterdir())),
        "releases in the store": len(store.ids()),
        "MB of Triton's memory": memory_mb(listening(local_stack.settings.triton_port)),
        "MB of the gateway's memory": memory_mb(gateway.process),
    }
