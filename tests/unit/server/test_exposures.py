"""The event that reports a served page."""

from __future__ import annotations

import pytest

from baguni.v1 import recommendation_pb2 as pb
from server.experiments.explore import Explored
from server.telemetry.exposures import Served, list_served


@pytest.mark.parametrize(
    ("user_id", "anonymous_id", "kind"), [("u1", "", "user_id"), ("", "a1", "anonymous_id"), ("", "", "anonymous_id")]
)
def test_an_exposure_names_who_got_the_page(user_id: str, anonymous_id: str, kind: str) -> None:
    items = [pb.RecommendedItem(item_id="rye", position=3, score=0.5)]
    response = pb.RecommendResponse(exposure_token="t", request_id="r", release_id="r1", items=items)
    event = list_served(
        response, Served(user_id, anonymous_id, "home", 1_712_000_000_123), Explored(0.1, 4, True, (0.5,))
    )
    assert event.WhichOneof("subject") == kind
    assert getattr(event, kind) == (user_id or anonymous_id)
    assert event.event_time.ToMilliseconds() == 1_712_000_000_123
    assert (event.placement, event.release_id, event.items[0].item_id) == ("home", "r1", "rye")
    assert list(event.exploration.propensities) == [0.5]
