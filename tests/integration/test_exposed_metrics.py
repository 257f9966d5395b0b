"""What the dashboards and alerts ask for is what running servers tell Prometheus."""

from __future__ import annotations

from urllib.request import urlopen

import pytest

from baguni.clients.gateway import GatewayClient
from baguni.clients.item_index import ItemIndex
from baguni.domain.release import Release
from baguni.settings import Endpoints
from baguni.v1 import recommendation_pb2 as pb
from deploy.local.stack import LocalStack
from tests.manifests import MILVUS_METRICS, TRITON_METRICS
from tests.waiting import eventually

pytestmark = pytest.mark.stack


def told(port: int) -> set[str]:
    """Names of the samples at a port."""
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as reply:
        lines = reply.read().decode().splitlines()
    return {line.split("{")[0].split(" ")[0] for line in lines if line and not line.startswith("#")}


def test_triton_milvus_and_our_processes(running: Endpoints, local_stack: LocalStack, active_release: Release) -> None:
    client = GatewayClient(running.gateway_address)
    client.recommend(pb.RecommendRequest(user_id="somebody", exclude_purchased=True))
    client.generate_top_items(pb.GenerateTopItemsRequest(user_ids=["somebody"]))
    item_id = active_release.catalog.items[0].item_id
    client.similar_items(pb.SimilarItemsRequest(item_id=item_id, space=pb.SPACE_CONTENT))  # Milvus searches
    client.close()
    settings = local_stack.settings
    assert told(settings.triton_metrics_port) >= TRITON_METRICS
    index = ItemIndex(running.milvus_uri, "r_metrics", active_release.catalog)
    index.fill(active_release)  # Milvus may have been started anew by another test: it counts from its start
    index.drop()
    index.close()
    eventually(lambda: told(settings.milvus_metrics_port) >= MILVUS_METRICS)
    assert told(settings.gateway_metrics_port) >= {"baguni_request_duration_seconds_bucket", "baguni_release_info"}
    assert "baguni_rewinds_total" in told(settings.user_consumer_metrics_port)
