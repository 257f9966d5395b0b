"""The gateway over real Redis, Milvus, Triton and broker: the three RPCs, and what happens to bad input."""

from __future__ import annotations

import urllib.request
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict

import grpc
import numpy as np
import pytest
import redis
import tritonclient.grpc as triton
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.error_details_pb2 import BadRequest, RetryInfo
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from baguni.clients.inference import SyncInferenceClient, triton_inputs
from baguni.domain.history import Action, HistoryEvent
from baguni.domain.release import Release
from baguni.domain.sequences import event_batch, model_inputs
from baguni.domain.signature import EVERYTHING, NUM_CANDIDATES, triton_model_name
from baguni.settings import Endpoints
from baguni.stores.history_store import HistoryWriter
from baguni.v1 import events_pb2
from baguni.v1 import recommendation_pb2 as pb
from baguni.v1 import recommendation_pb2_grpc as pb_grpc
from server.edge.page_token import KIND, PageToken
from tests.gateway_process import gateway_process
from tests.signing import sign
from tests.waiting import eventually

pytestmark = [pytest.mark.stack, pytest.mark.slow]
NOW_MS = 1_712_000_000_000
DAY_MS = 86_400_000


@pytest.fixture
def stub(running: Endpoints) -> Iterator[pb_grpc.RecommendationServiceStub]:
    with grpc.insecure_channel(running.gateway_address) as channel:
        yield pb_grpc.RecommendationServiceStub(channel)


@pytest.fixture
def shopper(running: Endpoints, active_release: Release) -> str:
    """A user with two orders of bread and milk, of this test alone."""
    user_id = f"user-{uuid.uuid4().hex[:8]}"
    with redis.Redis.from_url(running.redis_url) as client:
        HistoryWriter(client).apply({user_id: orders("bread-rye", "milk-fresh", "milk-white")})
    return user_id


def orders(*item_ids: str) -> list[HistoryEvent]:
    return [
        HistoryEvent(item_id, Action.ORDERED, NOW_MS - week * 7 * DAY_MS, f"order-{week}")
        for week in (1, 2)
        for item_id in item_ids
    ]


def now() -> Timestamp:
    return Timestamp(seconds=NOW_MS // 1000)


def ids(items: object) -> list[str]:
    return [item.item_id for item in items]  # type: ignore[attr-defined]


def fully(stub, request: pb.RecommendRequest) -> pb.RecommendResponse:
    """Return an answer of all parts: on a busy machine, or after an outage, one may be left out."""

    def full() -> pb.RecommendResponse | None:
        response = stub.Recommend(request)
        return response if response.degradation_tier == pb.DEGRADATION_TIER_FULL else None

    return eventually(full, "an answer of all parts", lambda: stub.Recommend(request).degradation_tier)


def category(path: str) -> pb.Filter:
    return pb.Filter(attribute="category", any_of=pb.StringSet(values=[path]))


def test_recommend_gives_a_full_page_from_one_release(stub, shopper, active_release) -> None:
    response = stub.Recommend(pb.RecommendRequest(user_id=shopper, page_size=10, now=now(), request_id="r-1"))
    assert len(set(ids(response.items))) == 10
    assert response.request_id == "r-1"
    assert response.release_id == active_release.release_id
    assert response.degradation_tier == pb.DEGRADATION_TIER_FULL
    assert [item.position for item in response.items] == list(range(10))
    scores = [item.score for item in response.items]
    assert scores == sorted(scores, reverse=True)
    assert response.exposure_token


def test_recommend_scores_are_the_models_own(stub, shopper, active_release) -> None:
    """Every item's score is u · v plus its repeat score: the list is what ranking the whole catalogue exactly gives."""
    everything = [item.item_id for item in active_release.catalog.items]
    request = pb.RecommendRequest(user_id=shopper, page_size=20, now=now())
    approximate = stub.Recommend(request)
    request.candidate_item_ids.extend(everything)
    exact = stub.Recommend(request)
    assert ids(approximate.items) == ids(exact.items)
    scores = [[item.score for item in response.items] for response in (approximate, exact)]
    np.testing.assert_allclose(*scores, rtol=1e-5)


def test_the_generative_head_has_its_share_in_the_order(stub, shopper, running, active_release) -> None:
    signature, table = active_release.signature, active_release.semantic_ids
    events = event_batch([orders("bread-rye", "milk-fresh", "milk-white")], active_release.catalog.index)
    inputs = model_inputs(events, np.array([NOW_MS]), signature.max_tokens, signature.store_timezone)
    arrays = triton_inputs(inputs, table.codes_NL, signature)
    codes_CL = np.full((1, NUM_CANDIDATES, signature.num_levels), -1, np.int32)
    codes_CL[0, : len(table)] = table.codes_NL
    client = SyncInferenceClient(running.triton_url, active_release.release_id, signature)
    try:
        encoded = client.infer("user_encoder", arrays, 10.0)
        scored = client.infer("scorer", {**arrays, "candidate_codes": codes_CL}, 10.0)
    finally:
        client.close()
    retrieval_N = active_release.item_vectors @ encoded["user_embedding"][0, EVERYTHING]
    known_S = inputs.item_BS[0][inputs.item_BS[0] >= 0]
    retrieval_N[known_S] += encoded["repeat_score"][0, : len(known_S)]
    generative_N = scored["candidate_log_likelihood"][0, : len(table)]
    share = signature.rescored_share
    mixed_N = (1 - share) * retrieval_N + share * generative_N
    best = np.argsort(-mixed_N)[:20]
    response = fully(stub, pb.RecommendRequest(user_id=shopper, page_size=20, now=now()))
    assert share > 0
    assert ids(response.items) == [active_release.catalog.items[index].item_id for index in best]
    np.testing.assert_allclose([item.score for item in response.items], mixed_N[best], rtol=1e-4)
    assert list(best) != list(np.argsort(-retrieval_N)[:20])


def test_without_the_scorer_a_list_stands_in_the_order_of_retrieval_and_says_so(
    stub, shopper, running, active_release
) -> None:
    client = triton.InferenceServerClient(running.triton_url)
    scorer = triton_model_name("scorer", active_release.release_id)
    try:
        client.unload_model(scorer)
        response = stub.Recommend(pb.RecommendRequest(user_id=shopper, page_size=10, now=now()))
        new_only = stub.Recommend(pb.RecommendRequest(user_id=shopper, page_size=10, now=now(), exclude_purchased=True))
    finally:
        client.load_model(scorer)
        client.close()
    assert response.degradation_tier == pb.DEGRADATION_TIER_RETRIEVAL_ORDER
    assert len(response.items) == 10
    assert new_only.degradation_tier == pb.DEGRADATION_TIER_FULL  # nobody is asked about what is new
    assert len(fully(stub, pb.RecommendRequest(user_id=shopper, page_size=10, now=now())).items) == 10


def test_pages_have_no_gaps_and_no_repeats(stub, shopper) -> None:
    whole = fully(stub, pb.RecommendRequest(user_id=shopper, page_size=45, now=now()))
    request = pb.RecommendRequest(user_id=shopper, page_size=20, now=now())
    paged, token = [], ""
    for _ in range(3):
        request.page_token = token
        response = stub.Recommend(request)
        paged += ids(response.items)
        token = response.next_page_token
    assert paged[:45] == ids(whole.items)
    assert len(set(paged)) == len(paged) == 60
    assert not token


def test_a_list_that_began_without_the_generative_head_goes_on_without(stub, shopper, running, active_release) -> None:
    client = triton.InferenceServerClient(running.triton_url)
    scorer = triton_model_name("scorer", active_release.release_id)
    request = pb.RecommendRequest(user_id=shopper, page_size=20, now=now())
    try:
        client.unload_model(scorer)
        first = stub.Recommend(request)
    finally:
        client.load_model(scorer)
        client.close()
    pages = [first]
    while pages[-1].next_page_token:
        request.page_token = pages[-1].next_page_token
        pages.append(stub.Recommend(request))
    assert {page.degradation_tier for page in pages} == {pb.DEGRADATION_TIER_RETRIEVAL_ORDER}
    assert len({item_id for page in pages for item_id in ids(page.items)}) == 60


def test_a_callers_own_set_is_ranked_for_anybody(stub, shopper, active_release) -> None:
    asked = ["milk-aged", "bread-rye", "no-such-item", "milk-small", "bread-aged"]
    known = stub.Recommend(pb.RecommendRequest(user_id=shopper, candidate_item_ids=asked, now=now()))
    stranger = stub.Recommend(pb.RecommendRequest(user_id="nobody-ever", candidate_item_ids=asked, now=now()))
    real = [item_id for item_id in asked if item_id in active_release.catalog.index]
    assert len(real) == 4
    assert sorted(ids(known.items)) == sorted(ids(stranger.items)) == sorted(real)
    popularity = {item_id: active_release.popularity[active_release.catalog.index[item_id]] for item_id in real}
    assert [popularity[item_id] for item_id in ids(stranger.items)] == sorted(popularity.values(), reverse=True)


def test_caps_deal_the_list_and_diversity_spreads_it_over_all_pages(stub, shopper, active_release) -> None:
    plain = stub.Recommend(pb.RecommendRequest(user_id=shopper, page_size=60, now=now()))
    category_of = {item.item_id: item.category for item in active_release.catalog.items}
    for asked in (
        pb.RecommendRequest(caps=[pb.Cap(attribute="category", max_items=1)]),
        pb.RecommendRequest(diversity=0.7),
        pb.RecommendRequest(caps=[pb.Cap(attribute="category", max_items=2)], diversity=0.3),
    ):
        asked.MergeFrom(pb.RecommendRequest(user_id=shopper, page_size=60, now=now()))
        whole = stub.Recommend(asked)
        assert sorted(ids(whole.items)) == sorted(ids(plain.items))
        assert ids(whole.items) != ids(plain.items)
        if asked.caps:
            num_categories = len(set(category_of.values()))
            first_round = [category_of[item_id] for item_id in ids(whole.items)][:num_categories]
            assert max(Counter(first_round).values()) <= asked.caps[0].max_items
        asked.page_size, paged = 25, []
        for _ in range(3):
            response = stub.Recommend(asked)
            paged += ids(response.items)
            asked.page_token = response.next_page_token
        assert paged == ids(whole.items)


def test_filters_exclusions_and_purchases_are_respected(stub, shopper) -> None:
    response = stub.Recommend(
        pb.RecommendRequest(
            user_id=shopper,
            page_size=50,
            now=now(),
            filters=[category("GROCERY > MILK")],
            exclude_item_ids=["milk-aged"],
            exclude_purchased=True,
        )
    )
    assert set(ids(response.items)) == {
        f"milk-{kind}" for kind in ("rye", "organic", "family", "small", "light", "classic", "premium")
    }


@pytest.mark.parametrize("new_only", [False, True])
def test_a_filter_is_answered_the_same_with_and_without_the_vector_index(
    stub, shopper, running, tmp_path, new_only
) -> None:
    request = pb.RecommendRequest(
        user_id=shopper,
        page_size=20,
        now=now(),
        filters=[category("GROCERY > BREAD")],
        exclude_purchased=new_only,
        exclude_item_ids=["bread-aged"],
    )
    exact = stub.Recommend(request, timeout=30)
    with (
        gateway_process(running, tmp_path, exact_items=0, remembered_lists=0) as searching,
        grpc.insecure_channel(searching.address) as channel,
    ):
        searched = pb_grpc.RecommendationServiceStub(channel).Recommend(request, timeout=30)
    assert ids(exact.items) == ids(searched.items)
    assert len(exact.items) == (8 if new_only else 9)
    np.testing.assert_allclose([i.score for i in exact.items], [i.score for i in searched.items], rtol=1e-4)
    assert exact.degradation_tier == searched.degradation_tier == pb.DEGRADATION_TIER_FULL


def test_filters_that_milvus_cannot_evaluate_cost_their_caller_nothing_and_nobody_else(
    stub, shopper, running, tmp_path
) -> None:
    """g1: it refuses deep expressions, and a refusal is no outage: no breaker opens."""
    own = pb.Filter(attribute="brand", any_of=pb.StringSet(values=["own"]))
    distinct = [pb.Filter(attribute="brand", any_of=pb.StringSet(values=["own", str(n)])) for n in range(50)]
    with (
        gateway_process(running, tmp_path, exact_items=0, remembered_lists=0) as searching,
        grpc.insecure_channel(searching.address) as channel,
    ):
        asked = pb_grpc.RecommendationServiceStub(channel)

        def page_of(*filters: pb.Filter) -> pb.RecommendResponse:
            return asked.Recommend(
                pb.RecommendRequest(user_id=shopper, page_size=20, now=now(), filters=filters), timeout=30
            )

        expected = page_of(own)
        for filters in ([own] * 50, distinct, [own, *distinct[:20]]):
            for _ in range(8):
                answer = page_of(*filters)
                assert (ids(answer.items), answer.degradation_tier) == (ids(expected.items), pb.DEGRADATION_TIER_FULL)
            similar = asked.SimilarItems(
                pb.SimilarItemsRequest(item_id="bread-aged", space=pb.SPACE_CONTENT, filters=filters), timeout=30
            )
            assert len(similar.items) > 5
        with pytest.raises(grpc.RpcError, match="filters has 51 entries, expected at most 50") as failure:
            page_of(*distinct, own)
        assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert page_of().degradation_tier == pb.DEGRADATION_TIER_FULL


LARGE = {
    "events": lambda: {"anonymous": pb.AnonymousUser(recent_events=[pb.HistoryEvent()] * 500_000)},
    "filters": lambda: {"filters": [pb.Filter()] * 500_000},
    "values": lambda: {"filters": [pb.Filter(attribute="brand", any_of=pb.StringSet(values=[""] * 400_000))]},
    "candidates": lambda: {"candidate_item_ids": [""] * 500_000},
    "excluded": lambda: {"exclude_item_ids": [""] * 500_000},
    "caps": lambda: {"caps": [pb.Cap()] * 500_000},
    "attributes": lambda: {"attributes": {str(n): events_pb2.AttributeValue() for n in range(60_000)}},
    "token": lambda: {"page_token": "x" * 1_000_000},
    "user": lambda: {"user_id": "u" * 1_000_000},
}


@pytest.mark.parametrize("fields", LARGE)
def test_a_request_of_a_megabyte_is_counted_before_it_is_read(stub, fields: str) -> None:
    """g4: at most 20 violations are named, then how many more there are."""
    with pytest.raises(grpc.RpcError) as failure:
        stub.Recommend(pb.RecommendRequest(**{"user_id": "u", **LARGE[fields]()}), timeout=30)
    assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    bad_request = BadRequest()
    for detail in rpc_status.from_call(failure.value).details:
        detail.Unpack(bad_request)
    assert 0 < len(bad_request.field_violations) <= 20


def test_an_unknown_user_gets_popular_items_not_an_error(stub, active_release) -> None:
    response = stub.Recommend(pb.RecommendRequest(user_id="nobody-ever", page_size=5))
    best = np.argsort(-active_release.popularity, kind="stable")[:5]
    assert ids(response.items) == [active_release.catalog.items[i].item_id for i in best]
    assert response.degradation_tier == pb.DEGRADATION_TIER_FULL
    assert {source for item in response.items for source in item.sources} == {pb.SOURCE_POPULAR}


def test_an_anonymous_visitor_is_read_like_a_user_with_the_same_events(stub, shopper) -> None:
    events = [
        pb.HistoryEvent(
            item_id=event.item_id,
            action=int(event.action),
            order_id=event.order_id,
            event_time=Timestamp(seconds=event.time_ms // 1000),
        )
        for event in orders("bread-rye", "milk-fresh", "milk-white")
    ]
    visitor = pb.RecommendRequest(anonymous=pb.AnonymousUser(recent_events=events), page_size=15, now=now())
    known = pb.RecommendRequest(user_id=shopper, page_size=15, now=now())
    assert ids(fully(stub, visitor).items) == ids(fully(stub, known).items)


def test_generated_lists_fill_whenever_enough_items_are_allowed(stub, shopper) -> None:
    request = pb.GenerateTopItemsRequest(
        user_ids=[shopper, "nobody-ever", ""],
        k=7,
        now=now(),
        filters=[category("GROCERY > MILK")],
        exclude_item_ids=["milk-aged"],
        exclude_purchased=True,
    )

    def generated() -> pb.GenerateTopItemsResponse | None:
        answered = stub.GenerateTopItems(request)
        return None if answered.users[0].status == pb.USER_STATUS_FAILED else answered

    response = eventually(generated, "the generator is back after other tests' outages")
    statuses = [user.status for user in response.users]
    assert statuses == [pb.USER_STATUS_OK, pb.USER_STATUS_COLD_START, pb.USER_STATUS_INVALID_USER_ID]
    allowed = {f"milk-{kind}" for kind in ("rye", "organic", "family", "small", "light", "classic", "premium")}
    assert set(ids(response.users[0].items)) == allowed
    scores = [item.score for item in response.users[0].items]
    assert scores == sorted(scores, reverse=True)
    assert all(score < 0 for score in scores)


@pytest.mark.parametrize("space", [pb.SPACE_CONTENT, pb.SPACE_COLLABORATIVE])
def test_similar_items_are_close_and_never_the_item_itself(stub, space) -> None:
    response = stub.SimilarItems(pb.SimilarItemsRequest(item_id="bread-rye", space=space, page_size=10))
    assert len(ids(response.items)) == 10
    assert "bread-rye" not in ids(response.items)
    assert all(-1.001 <= item.score <= 1.001 for item in response.items)


def test_similar_to_an_unknown_item_is_not_found(stub) -> None:
    with pytest.raises(grpc.RpcError) as failure:
        stub.SimilarItems(pb.SimilarItemsRequest(item_id="no-such", space=pb.SPACE_CONTENT))
    assert failure.value.code() is grpc.StatusCode.NOT_FOUND
    assert "no-such" in failure.value.details()


def text(value: str) -> events_pb2.AttributeValue:
    return events_pb2.AttributeValue(string_value=value)


BAD_TIMES = [
    Timestamp(),
    Timestamp(seconds=-1),
    Timestamp(seconds=300_000_000_000),
    Timestamp(seconds=2**62),
    Timestamp(seconds=1, nanos=-1),
    Timestamp(seconds=1, nanos=1_000_000_000),
]
BAD_REQUESTS = [
    ("subject", pb.RecommendRequest()),
    ("user_id", pb.RecommendRequest(user_id="u" * 257)),
    ("page_size", pb.RecommendRequest(user_id="u", page_size=201)),
    ("page_size", pb.RecommendRequest(user_id="u", page_size=-1)),
    ("page_token", pb.RecommendRequest(user_id="u", page_token="made up")),
    ("placement", pb.RecommendRequest(user_id="u", placement="p" * 65)),
    ("request_id", pb.RecommendRequest(user_id="u", request_id="r" * 129)),
    ("exclude_item_ids[1]", pb.RecommendRequest(user_id="u", exclude_item_ids=["ok", ""])),
    ("candidate_item_ids", pb.RecommendRequest(user_id="u", candidate_item_ids=["i"] * 5001)),
    ("filters[0].attribute", pb.RecommendRequest(user_id="u", filters=[category("x"), pb.Filter()][1:])),
    ("filters[0].condition", pb.RecommendRequest(user_id="u", filters=[pb.Filter(attribute="brand")])),
    (
        "filters[0].attribute",
        pb.RecommendRequest(user_id="u", filters=[pb.Filter(attribute="colour", any_of=pb.StringSet(values=["red"]))]),
    ),
    (
        "filters[0]",
        pb.RecommendRequest(user_id="u", filters=[pb.Filter(attribute="price", any_of=pb.StringSet(values=["1"]))]),
    ),
    ("filters[0].any_of", pb.RecommendRequest(user_id="u", filters=[pb.Filter(attribute="brand", any_of={})])),
    ("filters[0].any_of.values[0]", pb.RecommendRequest(user_id="u", filters=[category("x" * 1_025)])),
    (f"attributes[{'country'!r}]", pb.RecommendRequest(user_id="u", attributes={"country": text("x" * 1_025)})),
    ("attributes", pb.RecommendRequest(user_id="u", attributes={"x" * 1_025: text("x")})),
    (
        "anonymous.recent_events[0].action",
        pb.RecommendRequest(anonymous=pb.AnonymousUser(recent_events=[pb.HistoryEvent(item_id="i", event_time=now())])),
    ),
    ("caps", pb.RecommendRequest(user_id="u", caps=[pb.Cap(attribute="category", max_items=1)] * 5)),
    ("caps[0].attribute", pb.RecommendRequest(user_id="u", caps=[pb.Cap(attribute="price", max_items=1)])),
    ("caps[0].max_items", pb.RecommendRequest(user_id="u", caps=[pb.Cap(attribute="category")])),
    *[("diversity", pb.RecommendRequest(user_id="u", diversity=value)) for value in (-0.1, 1.1, float("nan"))],
    *[("now", pb.RecommendRequest(user_id="u", now=time)) for time in BAD_TIMES],
    *[
        (
            "anonymous.recent_events[0].event_time",
            pb.RecommendRequest(
                anonymous=pb.AnonymousUser(
                    recent_events=[pb.HistoryEvent(item_id="i", action=int(Action.CLICKED), event_time=time)]
                )
            ),
        )
        for time in BAD_TIMES
    ],
]


@pytest.mark.parametrize(("field", "request_"), BAD_REQUESTS)
def test_a_malformed_request_is_refused_by_the_field_that_is_wrong(stub, field, request_) -> None:
    with pytest.raises(grpc.RpcError) as failure:
        stub.Recommend(request_)
    assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    details = rpc_status.from_call(failure.value).details
    bad_request = BadRequest()
    assert next(detail for detail in details if detail.Unpack(bad_request))
    assert field in [violation.field for violation in bad_request.field_violations]


@pytest.mark.parametrize(
    "fields",
    [{"offset": -3}, {"offset": [1]}, {"offset": 10**600}, {"release_id": 7}, {"rescored": None}, {"now_ms": -1}],
    ids=str,
)
def test_a_page_token_with_foreign_fields_is_the_callers_mistake(stub, shopper, running, fields) -> None:
    """g2 and g3: signed with the right key, as an insider could."""
    signer = running.token_signer()
    token = stub.Recommend(pb.RecommendRequest(user_id=shopper, page_size=5, now=now())).next_page_token
    forged = sign(KIND, {**asdict(PageToken.decode(token, signer)), **fields}, signer)
    with pytest.raises(grpc.RpcError, match="page_token") as failure:
        stub.Recommend(pb.RecommendRequest(user_id=shopper, page_size=5, page_token=forged))
    assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_page_token_of_another_request_is_refused(stub, shopper) -> None:
    token = stub.Recommend(pb.RecommendRequest(user_id=shopper, page_size=5, now=now())).next_page_token
    with pytest.raises(grpc.RpcError) as failure:
        stub.Recommend(pb.RecommendRequest(user_id="another", page_size=5, page_token=token))
    assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_the_gateway_says_that_it_is_healthy(running) -> None:
    with grpc.insecure_channel(running.gateway_address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "baguni.v1.RecommendationService"):
            reply = health.Check(health_pb2.HealthCheckRequest(service=service))
            assert reply.status == health_pb2.HealthCheckResponse.SERVING


def page(stub, user_id: str, **fields: object) -> pb.RecommendResponse:
    """Ask for ten items, as of another moment than other tests do."""
    request = pb.RecommendRequest(user_id=user_id, page_size=10, now=Timestamp(seconds=NOW_MS // 1000 + 60), **fields)
    return stub.Recommend(request, timeout=30)


def until_full(stub, user_id: str) -> None:
    """Return when everything answers again."""

    def tier() -> str:
        return pb.DegradationTier.Name(page(stub, user_id).degradation_tier)

    eventually(lambda: tier() == "DEGRADATION_TIER_FULL", "the gateway is back at full service", tier)


def test_without_redis_known_users_are_served_as_last_seen(stub, shopper, local_stack) -> None:
    before, degraded = page(stub, shopper), metric(local_stack, "baguni_degraded_total")
    local_stack.stop_process("redis")
    try:
        known, stranger = page(stub, shopper), page(stub, "nobody-ever")
        assert metric(local_stack, "baguni_degraded_total") == degraded + 2
        assert known.degradation_tier == pb.DEGRADATION_TIER_CACHED_EMBEDDING
        assert set(ids(known.items)) & set(ids(before.items))
        assert known.history_version == before.history_version
        assert stranger.degradation_tier == pb.DEGRADATION_TIER_POPULAR
        assert len(known.items) == len(stranger.items) == 10
        own = page(stub, "nobody-ever", candidate_item_ids=["milk-aged", "bread-rye"])
        assert own.degradation_tier == pb.DEGRADATION_TIER_POPULAR
        assert set(ids(own.items)) == {"milk-aged", "bread-rye"}
    finally:
        local_stack.restart("redis")
    until_full(stub, shopper)


def test_without_triton_a_new_order_is_not_seen_and_bulk_says_whom_it_failed(
    stub, shopper, running, local_stack
) -> None:
    before = page(stub, shopper)
    local_stack.stop_process("triton")
    try:
        with redis.Redis.from_url(running.redis_url) as client:
            HistoryWriter(client).apply(
                {shopper: [HistoryEvent("bread-aged", Action.ORDERED, NOW_MS - DAY_MS, "late")]}
            )
        known, stranger = page(stub, shopper), page(stub, "nobody-ever")
        assert known.degradation_tier == pb.DEGRADATION_TIER_CACHED_EMBEDDING
        assert known.history_version == before.history_version
        assert stranger.degradation_tier == pb.DEGRADATION_TIER_FULL  # nobody needs Triton to know nothing
        generated = stub.GenerateTopItems(pb.GenerateTopItemsRequest(user_ids=[shopper], now=now()), timeout=30)
        assert generated.users[0].status == pb.USER_STATUS_FAILED
    finally:
        local_stack.restart("triton")
    until_full(stub, shopper)
    assert page(stub, shopper).history_version > before.history_version


def test_without_milvus_the_gateway_searches_its_own_vectors(stub, shopper, running, local_stack, tmp_path) -> None:
    """Where the catalogue is too large for that, the items of the last search are ranked again by the rules."""
    brand = pb.Filter(attribute="brand", any_of=pb.StringSet(values=["own"]))
    requests: list[dict[str, object]] = [{}, {"exclude_purchased": True}, {"filters": [brand]}]
    each_anew: dict[str, object] = {"bulk_processes": 0, "remembered_lists": 0}
    for name in ("searching", "limited"):
        (tmp_path / name).mkdir()
    with (
        gateway_process(running, tmp_path / "searching", **each_anew) as searching,
        gateway_process(running, tmp_path / "limited", **each_anew, fallback_items=10) as limited,
        grpc.insecure_channel(searching.address) as channel,
        grpc.insecure_channel(limited.address) as limited_channel,
    ):
        anew, too_large = map(pb_grpc.RecommendationServiceStub, (channel, limited_channel))
        until_full(too_large, shopper)
        before = [page(anew, shopper, **fields) for fields in requests]
        remembered = page(stub, shopper)
        spaces = (pb.SPACE_CONTENT, pb.SPACE_COLLABORATIVE)
        alike = [pb.SimilarItemsRequest(item_id="bread-rye", space=space, page_size=10) for space in spaces]
        neighbours = [ids(stub.SimilarItems(request, timeout=30).items) for request in alike]
        local_stack.stop_process("milvus")
        try:
            assert [ids(stub.SimilarItems(request, timeout=30).items) for request in alike] == neighbours
            for fields, expected in zip(requests, before, strict=True):
                found = page(anew, shopper, **fields)
                assert found.degradation_tier == pb.DEGRADATION_TIER_FULL
                assert ids(found.items) == ids(expected.items)
                assert [item.score for item in found.items] == [item.score for item in expected.items]
            assert 'baguni_searches_total{path="fallback"}' in searching.get("/metrics")[1]
            assert ids(page(stub, shopper).items) == ids(remembered.items)
            assert metric(local_stack, "baguni_searches_total", 'path="remembered"') >= 1
            known = page(too_large, shopper)
            assert known.degradation_tier == pb.DEGRADATION_TIER_CACHED_LIST
            assert ids(known.items) == ids(before[0].items)
            left_out = ids(known.items)[0]
            assert left_out not in ids(page(too_large, shopper, exclude_item_ids=[left_out]).items)
        finally:
            local_stack.restart("milvus")
    until_full(stub, shopper)


def test_lists_are_the_same_whoever_searches(stub, shopper, running, local_stack, tmp_path) -> None:
    brand = pb.Filter(attribute="brand", any_of=pb.StringSet(values=["own"]))
    requests: list[dict[str, object]] = [
        {},
        {"exclude_purchased": True},
        {"exclude_item_ids": ["bread-rye", "milk-aged"]},
    ]
    requests += [
        {"filters": [brand]},
        {"diversity": 0.5},
        {"filters": [pb.Filter(attribute="available", **{"is": True})]},
    ]
    with (
        gateway_process(running, tmp_path, bulk_processes=0, search="exact") as exact,
        grpc.insecure_channel(exact.address) as channel,
    ):
        here = pb_grpc.RecommendationServiceStub(channel)
        until_full(here, shopper)
        until_full(stub, shopper)
        for fields in requests:
            for user_id in (shopper, "user-1", "user-7"):
                by_milvus, by_itself = page(stub, user_id, **fields), page(here, user_id, **fields)
                assert ids(by_itself.items) == ids(by_milvus.items)
        assert 'baguni_searches_total{path="exact"}' in exact.get("/metrics")[1]
        assert 'baguni_searches_total{path="milvus"}' not in exact.get("/metrics")[1]


def metric(local_stack, name: str, label: str = "") -> float:
    """Return the sum of a metric of the gateway, over all labels or over those with one."""
    address = f"http://127.0.0.1:{local_stack.settings.gateway_metrics_port}/metrics"
    with urllib.request.urlopen(address, timeout=30) as reply:
        lines = reply.read().decode().splitlines()
    found = [line for line in lines if line.split("{")[0].split(" ")[0] == name and label in line]
    return sum(float(line.rsplit(" ", 1)[1]) for line in found)


def test_metrics_count_what_was_asked_and_name_no_user(stub, shopper, local_stack, active_release) -> None:
    names = ("baguni_request_duration_seconds_count", "baguni_stage_duration_seconds_count")
    before = [metric(local_stack, name) for name in names]
    for _ in range(3):
        page(stub, shopper)
    after = [metric(local_stack, name) for name in names]
    assert after[0] == before[0] + 3
    assert after[1] > before[1]
    address = f"http://127.0.0.1:{local_stack.settings.gateway_metrics_port}/metrics"
    with urllib.request.urlopen(address, timeout=30) as reply:
        text = reply.read().decode()
    assert f'baguni_release_info{{release="{active_release.release_id}"}} 2.0' in text  # online and bulk
    assert shopper not in text


def test_overload_is_refused_at_once_and_says_when_to_try_again(stub, shopper, running) -> None:
    """Two thousand requests at a time for a gateway that answers two dozen: some get a page, the others a refusal. Each has
    rules of its own, so that none is remembered."""
    own_connection = [("grpc.use_local_subchannel_pool", 1)]
    health = health_pb2_grpc.HealthStub(grpc.insecure_channel(running.gateway_address, options=own_connection))
    requests = [
        pb.RecommendRequest(user_id=shopper, page_size=10, now=now(), exclude_item_ids=[f"no-item-{n}"])
        for n in range(2_000)
    ]
    calls = [stub.Recommend.future(request, timeout=300) for request in requests]
    healthy = health.Check(health_pb2.HealthCheckRequest(), timeout=300)
    answers = [call.exception() for call in calls]
    refusals = [error for error in answers if error is not None]
    shed = [error for error in refusals if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED]
    unseen = [
        error for error in refusals if error.code() is grpc.StatusCode.UNAVAILABLE
    ]  # streams that were not opened
    assert len(shed) + len(unseen) == len(refusals) < len(answers)
    assert shed
    retry = RetryInfo()
    assert next(detail for detail in rpc_status.from_call(shed[0]).details if detail.Unpack(retry))
    assert retry.retry_delay.seconds > 0
    assert healthy.status == health_pb2.HealthCheckResponse.SERVING
    until_full(stub, shopper)
