"""What can be seen of a request afterwards: its trace, its log lines, and the exposure that joins to clicks."""

from __future__ import annotations

import json
import queue
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
import redis
from kafka import KafkaConsumer
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from baguni.domain.events import EXPOSURE_TOPIC
from baguni.domain.exposure_token import Exposure
from baguni.domain.history import Action, HistoryEvent
from baguni.domain.release import Release
from baguni.settings import Endpoints
from baguni.stores.history_store import HistoryWriter
from baguni.v1 import exposures_pb2
from baguni.v1 import recommendation_pb2 as pb
from baguni.v1 import recommendation_pb2_grpc as pb_grpc
from deploy.local.settings import free_port
from tests.gateway_process import GatewayProcess, gateway_process

pytestmark = pytest.mark.stack
OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]
TRACE_ID, PARENT_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """What an OpenTelemetry collector receives."""

    def __init__(self) -> None:
        self.spans: queue.Queue[Span] = queue.Queue()

    def Export(self, request, context):  # noqa: N802
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                for span in scope.spans:
                    self.spans.put(span)
        return trace_service_pb2.ExportTraceServiceResponse()

    def of_trace(self, trace_id: str, root: str, timeout_s: float = 10) -> dict[str, Span]:
        """The spans of a trace by name, once its root is there: children end before it."""
        found: dict[str, Span] = {}
        while root not in found:
            span = self.spans.get(timeout=timeout_s)
            if span.trace_id.hex() == trace_id:
                found[span.name] = span
        return found


@pytest.fixture(scope="module")
def collector() -> Iterator[tuple[Collector, int]]:
    server, port, receiver = grpc.server(ThreadPoolExecutor(2)), free_port(), Collector()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(receiver, server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    yield receiver, port
    server.stop(None)


@pytest.fixture(scope="module")
def gateway(
    stack: Endpoints, active_release: Release, collector, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    settings = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector[1]}",
        "OTEL_BSP_SCHEDULE_DELAY": 100,
        "log_format": "json",
        "fallback_items": 0,  # so that Milvus can be missed
    }
    with gateway_process(stack, tmp_path_factory.mktemp("telemetry"), **settings) as started:
        yield started


@pytest.fixture
def stub(gateway: GatewayProcess) -> Iterator[pb_grpc.RecommendationServiceStub]:
    with grpc.insecure_channel(gateway.address, options=OWN_CONNECTION) as channel:
        yield pb_grpc.RecommendationServiceStub(channel)


@pytest.fixture
def shopper(stack: Endpoints) -> str:
    """One whom every gateway of this module sees for the first time."""
    user_id = f"traced-{time.monotonic_ns()}"
    events = [HistoryEvent("bread-rye", Action.ORDERED, 1_712_000_000_000, "o1")]
    with redis.Redis.from_url(stack.redis_url) as client:
        HistoryWriter(client).apply({user_id: events})
    return user_id


def test_a_trace_goes_through_with_a_span_for_each_stage(stub, shopper, collector) -> None:
    metadata = [("traceparent", f"00-{TRACE_ID}-{PARENT_ID}-01")]
    answered = stub.Recommend(pb.RecommendRequest(user_id=shopper), timeout=30, metadata=metadata)
    assert answered.degradation_tier == pb.DEGRADATION_TIER_FULL
    root = "baguni.v1.RecommendationService/Recommend"
    spans = collector[0].of_trace(TRACE_ID, root)
    assert set(spans) == {root, "history", "encode", "search", "score"}
    assert spans[root].parent_span_id.hex() == PARENT_ID
    assert {spans[name].parent_span_id for name in set(spans) - {root}} == {spans[root].span_id}
    attributes = {attribute.key: attribute.value for attribute in spans[root].attributes}
    assert attributes["rpc.grpc.status_code"].int_value == 0
    servers = {name: spans[name].attributes[0].value.string_value for name in ("history", "encode", "search")}
    assert servers == {"history": "redis", "encode": "triton", "search": "milvus"}
    assert shopper not in str(spans)


def test_a_callers_mistake_is_no_error_of_the_trace(stub, collector) -> None:
    trace_id = TRACE_ID[::-1]
    with pytest.raises(grpc.RpcError):
        stub.Recommend(pb.RecommendRequest(), metadata=[("traceparent", f"00-{trace_id}-{PARENT_ID}-01")])
    (span,) = collector[0].of_trace(trace_id, "baguni.v1.RecommendationService/Recommend").values()
    assert span.status.code == 0
    assert span.attributes[-1].value.int_value == grpc.StatusCode.INVALID_ARGUMENT.value[0]


def test_a_warning_says_which_request_and_which_trace_it_is_of(stub, shopper, gateway, local_stack) -> None:
    """With Milvus away the item's neighbours cannot be had: an UNAVAILABLE, with a line in the log."""
    trace_id = TRACE_ID.replace("4", "5")  # not that of the other tests, whose spans are counted
    local_stack.stop_process("milvus")
    request = pb.SimilarItemsRequest(item_id="bread-rye", space=pb.SPACE_CONTENT, request_id="find-me")
    try:
        with pytest.raises(grpc.RpcError) as failure:
            stub.SimilarItems(request, timeout=30, metadata=[("traceparent", f"00-{trace_id}-{PARENT_ID}-01")])
        assert failure.value.code() is grpc.StatusCode.UNAVAILABLE
        assert failure.value.details() == "milvus is unavailable"  # what Milvus said stays inside
    finally:
        local_stack.restart("milvus")
    lines = [json.loads(line) for line in gateway.log.read_text().splitlines() if line.startswith("{")]
    found = [line for line in lines if line["request_id"] == "find-me"]
    assert len(found) == 1
    assert found[0]["levelname"] == "WARNING"
    assert found[0]["trace_id"] == trace_id
    assert "part=milvus" in found[0]["message"]


def test_what_was_served_goes_to_kafka_under_the_token_that_clicks_bring_back(stub, shopper, stack) -> None:
    consumer = KafkaConsumer(
        EXPOSURE_TOPIC,
        bootstrap_servers=stack.kafka_bootstrap,
        auto_offset_reset="earliest",
        consumer_timeout_ms=15_000,
    )
    try:
        answered = stub.Recommend(pb.RecommendRequest(user_id=shopper, placement="home", page_size=5), timeout=30)
        record = next(record for record in consumer if record.key == shopper.encode())
    finally:
        consumer.close()
    served = exposures_pb2.ListServed.FromString(record.value)
    assert dict(record.headers)["ce_type"] == b"baguni.v1.ListServed"
    assert served.exposure_token == answered.exposure_token
    assert Exposure.decode(served.exposure_token, stack.token_signer()).placement == "home" == served.placement
    assert list(served.items) == list(answered.items)
    assert served.user_id == shopper
    assert served.release_id == answered.release_id
    assert abs(served.event_time.ToMilliseconds() - time.time() * 1000) < 60_000


def test_a_broker_that_is_away_costs_no_request(stack, active_release, shopper, tmp_path: Path) -> None:
    nowhere = stack.model_copy(update={"kafka_bootstrap": "127.0.0.1:1"})
    with (
        gateway_process(nowhere, tmp_path) as gateway,
        grpc.insecure_channel(gateway.address, options=OWN_CONNECTION) as channel,
    ):
        stub = pb_grpc.RecommendationServiceStub(channel)
        for _ in range(50):
            answered = stub.Recommend(pb.RecommendRequest(user_id=shopper), timeout=30)
            assert answered.degradation_tier == pb.DEGRADATION_TIER_FULL
