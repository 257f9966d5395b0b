"""What becomes of served pages, as Prometheus is told it: the gateway counts pages, the consumer what they led to."""

from __future__ import annotations

import time
import uuid
from urllib.request import urlopen

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from baguni.domain.events import LOOKED_AT
from baguni.domain.release import Release
from baguni.settings import Endpoints
from baguni.v1 import events_pb2
from baguni.v1 import recommendation_pb2 as pb
from baguni.v1 import recommendation_pb2_grpc as pb_grpc
from deploy.local.stack import LocalStack
from tests.integration.streams import Shop, timestamp
from tests.waiting import eventually

pytestmark = pytest.mark.stack


def told(port: int, **labels: str) -> dict[str, float]:
    """Values of the counters with these labels, by name and, where they have one, action."""
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as reply:
        families = text_string_to_metric_families(reply.read().decode())
    samples = [sample for family in families for sample in family.samples if labels.items() <= sample.labels.items()]
    counted = [sample for sample in samples if sample.name.endswith("_total")]
    return {" ".join((s.name, *filter(None, [s.labels.get("action")]))): s.value for s in counted}


def test_what_pages_led_to_counts_for_their_placement_and_release(
    running: Endpoints, local_stack: LocalStack, active_release: Release
) -> None:
    (placement,) = running.placement_names
    user_id, now_ms = uuid.uuid4().hex, int(time.time() * 1000)
    settings = local_stack.settings
    unreadable = "baguni_unreadable_exposure_tokens_total"
    before = told(settings.user_consumer_metrics_port)[unreadable]
    with grpc.insecure_channel(running.gateway_address) as channel:
        stub = pb_grpc.RecommendationServiceStub(channel)
        request = pb.RecommendRequest(user_id=user_id, placement=placement, page_size=3)
        served = [stub.Recommend(request, timeout=30) for _ in range(4)]
        request.request_id = f"{LOOKED_AT}1"
        looked_at = stub.Recommend(request, timeout=30)
    of_it = {"placement": placement, "release": active_release.release_id}
    assert told(settings.gateway_metrics_port, **of_it) == {"baguni_pages_total": 4, "baguni_page_items_total": 12}

    item_ids = [item.item_id for item in served[0].items]

    def click(item_id: str, token: str) -> events_pb2.ItemClicked:
        return events_pb2.ItemClicked(
            user_id=user_id, item_id=item_id, event_time=timestamp(now_ms), exposure_token=token
        )

    order = events_pb2.OrderPlaced(
        user_id=user_id,
        order_id="o1",
        lines=[events_pb2.OrderLine(item_id=item_id) for item_id in item_ids],
        event_time=timestamp(now_ms),
        exposure_token=served[1].exposure_token,
    )
    cart = events_pb2.CartAdded(
        user_id=user_id, item_id=item_ids[0], event_time=timestamp(now_ms), exposure_token=served[0].exposure_token
    )
    first = click(item_ids[0], served[0].exposure_token)
    shop = Shop(running)
    for event in (first, first, click(item_ids[1], served[2].exposure_token), order, order, cart):
        shop.send(event)
    shop.send(click(item_ids[2], looked_at.exposure_token))
    shop.send(click("another", "what the app made of it"))
    shop.close()
    eventually(lambda: told(settings.user_consumer_metrics_port)[unreadable] == before + 1)
    counted = told(settings.user_consumer_metrics_port, **of_it)
    assert counted == {
        f"baguni_attributed_events_total {a}": n for a, n in {"clicked": 2, "ordered": 1, "carted": 1}.items()
    }
