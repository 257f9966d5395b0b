"""Exposures and actions from the topics are the tables that an analysis reads."""

from __future__ import annotations

import time
import uuid
from contextlib import closing
from pathlib import Path

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from kafka import KafkaProducer

from analysis.tables import read_parquet, read_topics, write_parquet
from baguni.domain.events import EXPOSURE_TOPIC, cloud_event_headers, producible
from baguni.settings import Endpoints
from baguni.v1 import events_pb2, exposures_pb2
from baguni.v1 import recommendation_pb2 as pb

pytestmark = pytest.mark.stack


def test_what_the_topics_hold_is_read_once_and_kept_in_files(stack: Endpoints, tmp_path: Path) -> None:
    user_id, visitor, key = (f"{kind}-{uuid.uuid4().hex[:8]}" for kind in ("user", "visitor", "experiment"))
    seconds = int(time.time())
    now = Timestamp(seconds=seconds, nanos=5_000_000)
    assigned = [pb.ExperimentAssignment(experiment_key=key, variation_key="model")]
    served = [
        exposures_pb2.ListServed(user_id=user_id, experiment_assignments=assigned, event_time=now),
        exposures_pb2.ListServed(anonymous_id=visitor, experiment_assignments=assigned, event_time=now),
        exposures_pb2.ListServed(user_id=user_id, event_time=now),  # in no experiment
        exposures_pb2.ListServed(  # looked into, not shown
            user_id=f"{user_id}-inspected", request_id="inspect-1", experiment_assignments=assigned, event_time=now
        ),
    ]
    lines = [
        events_pb2.OrderLine(item_id="a", quantity=2, unit_price=1.5),
        events_pb2.OrderLine(item_id="b", unit_price=4),
    ]
    done = [
        events_pb2.OrderPlaced(user_id=user_id, order_id="o", lines=lines, event_time=now),
        events_pb2.OrderPlaced(
            user_id=user_id, order_id="o", lines=lines, event_time=now
        ),  # a producer that tried again
        events_pb2.ItemClicked(user_id=visitor, item_id="a", event_time=now),
        events_pb2.CartAdded(user_id=user_id, item_id="a", event_time=now),
        events_pb2.OrderCancelled(user_id=user_id, order_id="o", event_time=now),  # no action
    ]
    with closing(KafkaProducer(bootstrap_servers=stack.kafka_bootstrap)) as producer:
        for exposure in served:
            headers = cloud_event_headers(exposure, uuid.uuid4().hex, "test")
            producer.send(EXPOSURE_TOPIC, value=exposure.SerializeToString(), headers=headers)
        producer.send(EXPOSURE_TOPIC, value=b"\xff\xff noise", headers=[])
        for message in done:
            producer.send(**producible(message, uuid.uuid4().hex, "test"))
        producer.flush()
    found = read_topics(stack.kafka_bootstrap)
    ours = found.exposures[found.exposures["experiment"] == key]
    time_ms = seconds * 1000 + 5
    assert sorted(map(tuple, ours.to_numpy().tolist())) == [
        (u, key, "model", time_ms) for u in sorted((user_id, visitor))
    ]
    actions = found.actions[found.actions["unit_id"].isin([user_id, visitor])]
    assert sorted(map(tuple, actions.to_numpy().tolist())) == sorted(
        [(user_id, "order", time_ms, 7.0), (visitor, "click", time_ms, 0.0), (user_id, "cart", time_ms, 0.0)]
    )
    write_parquet(found, tmp_path)
    again = read_parquet(tmp_path / "exposures.parquet", tmp_path / "actions.parquet")
    assert again.exposures.to_numpy().tolist() == found.exposures.to_numpy().tolist()
    assert again.actions.to_numpy().tolist() == found.actions.to_numpy().tolist()
