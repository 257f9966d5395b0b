"""The peers: each formula by hand, and the protocol's own numbers on Complete Journey."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baguni.domain.catalog import Catalog, Item
from baguni.domain.errors import InvalidInputError
from baguni.domain.history import Action
from benchmarks.quality.peers import (
    AMAZON,
    COMPLETE_JOURNEY,
    FirstPurchases,
    ItemKnn,
    TifuKnn,
    Tuned,
    filled,
    peer_lists,
)
from trainer.data.complete_journey import prepare
from trainer.data.dataset import Dataset
from trainer.data.queries import OrderQueries, Purchases, log_purchases
from trainer.data.reading import load_dataset
from trainer.data.splits import local_ms
from trainer.metrics import per_order
from trainer.peers import (
    Ease,
    FrequencyAndEase,
    Peer,
    PersonalFrequency,
    Popularity,
    UserVectors,
    ease_by_items,
    ease_by_users,
)

DAY = 86_400_000
Order = tuple[int, float, list[int]]  # user, day, items

LOG: list[Order] = [
    (0, 1, [0, 1]),
    (0, 5, [0, 2]),
    (0, 9, [0]),
    (1, 2, [1, 3]),
    (1, 8, [1, 2]),
    (2, 3, [0, 1, 3]),
]


def shop(orders: list[Order], num_items: int = 5, timezone: str = "UTC") -> Dataset:
    """Users' orders, in the order in which they are given where times are equal."""
    lines = [(user, item, number, int(day * DAY)) for number, (user, day, items) in enumerate(orders) for item in items]
    user, item, number, time = (np.array(column, np.int64) for column in zip(*lines, strict=True))
    sort = np.lexsort((item, number, time, user))
    return Dataset(
        "tiny",
        timezone,
        Catalog([Item(str(index), str(index)) for index in range(num_items)], {}),
        tuple(str(index) for index in range(int(user.max()) + 1)),
        tuple(f"order {index}" for index in range(len(orders))),
        user[sort],
        item[sort],
        np.full(len(sort), int(Action.ORDERED)),
        number[sort],
        time[sort],
    )


def log_of(orders: list[Order], now_day: float = 10) -> Purchases:
    return log_purchases(shop(orders), int(now_day * DAY))


def window(orders: list[Order], start_day: float) -> OrderQueries:
    return OrderQueries.of(shop(orders), int(start_day * DAY), min_orders=1)


def test_every_order_of_the_window_is_a_query_with_its_truth() -> None:
    queries = window([*LOG, (3, 11, [0]), (1, 11, [3, 4]), (0, 12, [4]), (1, 12, [4, 0])], 10)
    assert queries.user_Q.tolist() == [0, 1, 1]  # user 3 has no order before the window
    assert queries.first_Q.tolist() == [True, True, False]
    assert [column.tolist() for column in queries.truth()] == [[0, 1, 1, 2, 2], [4, 3, 4, 0, 4]]
    assert [column.tolist() for column in queries.truth(novel=True)] == [[0, 1, 2], [4, 4, 0]]


def test_the_history_is_all_that_came_before_and_no_line_of_the_order_itself() -> None:
    queries = window([*LOG, (1, 11, [3, 4]), (0, 12, [4]), (1, 12, [4, 0])], 10)
    events = queries.history(1, 3)
    assert events.row_E.tolist() == [0] * 4 + [1] * 6
    assert events.item_E.tolist() == [1, 3, 1, 2, 1, 3, 1, 2, 3, 4]
    assert len(set(events.order_E.tolist())) == 2 + 3  # the user's orders are other orders in each row
    bought = queries.purchases(1, 3)
    assert bought.num_orders_B.tolist() == [2, 3]
    assert bought.item_P.tolist() == events.item_E.tolist()
    assert bought.back_P.tolist() == [1, 1, 0, 0, 2, 2, 1, 1, 0, 0]
    assert bought.age_days_P.tolist() == [9, 9, 3, 3, 10, 10, 4, 4, 1, 1]


def test_of_two_orders_of_one_instant_the_second_has_the_first_in_its_history() -> None:
    queries = window([*LOG, (2, 11, [4]), (2, 11, [4, 2])], 10)
    assert queries.history(0, 1).item_E.tolist() == [0, 1, 3]
    assert queries.history(1, 2).item_E.tolist() == [0, 1, 3, 4]
    assert queries.purchases(1, 2).item_P.tolist() == [0, 1, 3, 4]
    assert queries.truth(novel=True)[1].tolist() == [4, 2]


def test_days_are_those_of_the_stores_clock_also_when_the_clock_changes() -> None:
    zone = "America/New_York"  # the clock went back on 5 November 2017
    at = [local_ms(datetime(2017, month, day), zone) / DAY for month, day in ((11, 3), (12, 1))]
    log = log_purchases(shop([(0, at[0], [0])], timezone=zone), round(at[1] * DAY))
    assert log.age_days_P.tolist() == [28]


def test_popularity_counts_lines_buyers_or_first_purchases_of_the_window() -> None:
    log = log_of(LOG)
    assert np.floor(Popularity().counts(log)).tolist() == [4, 4, 2, 2, 0]
    assert np.floor(Popularity(5).counts(log)).tolist() == [2, 1, 2, 0, 0]  # orders of the days 5, 8 and 9
    assert np.floor(Popularity(None, "buyers").counts(log)).tolist() == [2, 3, 2, 2, 0]
    assert np.floor(Popularity(7, "first purchases").counts(log)).tolist() == [1, 1, 2, 1, 0]


def test_popularity_of_a_window_breaks_ties_by_popularity_ever() -> None:
    counts = Popularity(1).counts(log_of(LOG))  # the day 9: one line of item 0
    assert counts.tolist() == pytest.approx([1 + 4 / 5, 4 / 5, 2 / 5, 2 / 5, 0])


def test_frequency_and_recency_weights_by_hand() -> None:
    queries = window([*LOG, (0, 10, [3])], 10).purchases()
    weights = PersonalFrequency(decay_days=4, order_decay=0.5).weights(queries)
    oldest, middle, newest = np.exp(-9 / 4) / 4, np.exp(-5 / 4) / 2, np.exp(-1 / 4)
    assert weights.tolist() == pytest.approx([oldest, oldest, middle, middle, newest])


def test_every_bought_item_comes_before_every_other_and_these_by_popularity() -> None:
    score = PersonalFrequency(fill_days=5).fit(log_of(LOG))(window([*LOG, (1, 10, [4])], 10).purchases())[0]
    assert np.argsort(-score, kind="stable").tolist() == [1, 2, 3, 0, 4]  # 2 is more popular lately than 3


def test_tifu_vector_of_three_baskets_by_hand() -> None:
    peer = TifuKnn(group_size=2, within_decay=0.9, group_decay=0.7, num_neighbours=1, own_share=0.5)
    vector = peer.vectors(log_of(LOG[:3])).toarray()[0]
    newest, middle, oldest = 1 / 2 / 2, 0.9 / 2 / 2, 0.7 / 2 / 2  # two groups; the older one holds a single order
    assert vector.tolist() == pytest.approx([newest + middle + oldest, oldest, middle, 0, 0])


def test_tifu_mixes_the_user_with_the_nearest_other_user() -> None:
    peer = TifuKnn(group_size=1, within_decay=1, group_decay=1, num_neighbours=1, own_share=0.75)
    orders: list[Order] = [(0, 1, [0, 1]), (1, 1, [0, 1, 2]), (2, 1, [3, 4])]
    score = peer.fit(log_of(orders))(window([*orders, (0, 10, [0])], 10).purchases())[0]
    assert score.tolist() == pytest.approx([1, 1, 0.25, 0, 0])


def test_item_knn_by_cosine_of_orders_by_hand() -> None:
    peer = ItemKnn("cosine", 5, "orders", UserVectors(log_counts=False))
    score = peer.fit(log_of(LOG))(window([*LOG, (2, 10, [4])], 10).purchases())[0]
    together = np.array([[4, 2, 1, 1, 0], [2, 4, 1, 2, 0], [1, 1, 2, 0, 0], [1, 2, 0, 2, 0], [0, 0, 0, 0, 1]])
    cosine = together / np.sqrt(np.outer(together.diagonal(), together.diagonal()))
    assert score.tolist() == pytest.approx(cosine[[0, 1, 3]].sum(axis=0).tolist())


@pytest.mark.parametrize("solve", [ease_by_items, ease_by_users])
def test_ease_is_what_direct_inversion_gives(solve) -> None:
    vectors = UserVectors().of(log_of(LOG))
    inverse = np.linalg.inv(vectors.toarray().T @ vectors.toarray() + 2.5 * np.eye(5))
    weights = -inverse / inverse.diagonal()
    np.fill_diagonal(weights, 0)
    query = UserVectors(decay_days=3).of(log_of(LOG))
    np.testing.assert_allclose(solve(vectors, 2.5)(query), query.toarray() @ weights, rtol=1e-4, atol=1e-6)


def test_user_vectors_are_logs_of_decayed_counts() -> None:
    vector = UserVectors(decay_days=10).of(log_of(LOG)).toarray()[1]
    late, early = np.exp(-0.2), np.exp(-0.8)
    assert vector.tolist() == pytest.approx([0, np.log(1 + late + early), np.log(1 + late), np.log(1 + early), 0])


def test_the_mix_is_the_share_of_decayed_orders_plus_a_part_of_ease() -> None:
    ease = Ease(2.5)
    peer = FrequencyAndEase(PersonalFrequency(order_decay=0.5), ease, ease_share=0.1)
    queries = window([*LOG, (0, 10, [3])], 10).purchases()
    score = peer.fit(log_of(LOG))(queries)[0]
    share = np.array([7 / 4, 1 / 4, 1 / 2, 0, 0]) / (7 / 4)
    assert score.tolist() == pytest.approx((share + 0.1 * ease.fit(log_of(LOG))(queries)[0]).tolist())


def test_what_is_bought_for_the_first_time_by_hand() -> None:
    """The log of EASE, of the first purchases in the last ten days, and of the likeness of texts to what the user bought."""
    ease, first = Ease(2.5, UserVectors()), Popularity(10, "first purchases")
    text_NT = np.array([[1, 0], [0, 2], [3, 3], [1, 0], [-1, 0]], np.float32)  # of any length
    peer = FirstPurchases(ease, first, 0.3, 0.2, text_days=20, sharpness=4, text_NT=text_NT)
    queries, log = window([*LOG, (0, 10, [3])], 10).purchases(), log_of(LOG)
    unit = text_NT / np.linalg.norm(text_NT, axis=1, keepdims=True)
    bought_N = np.log1p(queries.matrix(np.exp(-queries.age_days_P / 20)).toarray()[0])
    like_N = bought_N @ np.exp(4 * (unit @ unit.T - 1))
    expected = np.log(ease.fit(log)(queries)[0].clip(min=0) + 1e-3) + 0.3 * np.log(first.counts(log) + 0.5)
    assert peer.fit(log)(queries)[0].tolist() == pytest.approx(
        (expected + 0.2 * np.log(like_N + 1e-3)).tolist(), rel=1e-5
    )
    with pytest.raises(InvalidInputError, match="need the texts"):
        replace(peer, text_NT=None).fit(log)


def test_a_peer_that_reads_texts_gets_them() -> None:
    dataset = shop(random_orders(2), 30)
    queries = OrderQueries.of(dataset, 25 * DAY, min_orders=1)
    peer = FirstPurchases(Ease(3.0), Popularity(30, "first purchases"), 0.3, 5.0)
    texts = [np.random.default_rng(seed).normal(size=(30, 4)).astype(np.float32) for seed in (0, 1)]
    lists = [peer_lists(dataset, queries, Tuned(Ease(3.0), peer), texts=lambda text=text: text) for text in texts]
    assert (lists[0]["all"] == lists[1]["all"]).all()
    assert (lists[0]["novel"] != lists[1]["novel"]).any()


PEERS: list[Peer] = [
    Popularity(20, "buyers"),
    PersonalFrequency(9, 0.9, 20),
    TifuKnn(2, 0.9, 0.7, 3, 0.5),
    ItemKnn("bm25", 4),
    ItemKnn("cosine", 30, "orders"),
    Ease(3.0),
    FrequencyAndEase(PersonalFrequency(9, 0.9, 20), Ease(3.0)),
]


def random_orders(seed: int, num_items: int = 30) -> list[Order]:
    rng = np.random.default_rng(seed)
    days = np.sort(rng.uniform(0, 40, 60))
    return [
        (int(rng.integers(12)), float(day), rng.choice(num_items, int(rng.integers(1, 6)), replace=False).tolist())
        for day in days
    ]


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 1000))
def test_a_novel_list_never_names_what_the_user_had_ordered_and_no_list_repeats_itself(seed: int) -> None:
    dataset = shop(random_orders(seed), 30)
    queries = OrderQueries.of(dataset, 25 * DAY, min_orders=1)
    bought = queries.purchases()
    owned = np.zeros((len(queries), 30), bool)
    owned[bought.row_P, bought.item_P] = True
    for peer in PEERS:
        lists = peer_lists(dataset, queries, Tuned(peer, peer), seed=seed)
        for row, top in enumerate(lists["novel"].tolist()):
            assert not owned[row, [item for item in top if item >= 0]].any(), peer
            assert sum(item >= 0 for item in top) == min(10, 30 - owned[row].sum())
        assert all(len(set(top)) == 10 for top in lists["all"].tolist())


@pytest.mark.parametrize("peer", [peer for peer in PEERS if not isinstance(peer, ItemKnn) or peer.num_neighbours == 30])
def test_other_item_numbers_give_the_same_scores(peer: Peer) -> None:
    orders = random_orders(3)
    renamed = np.random.default_rng(0).permutation(30)
    other: list[Order] = [(user, day, renamed[items].tolist()) for user, day, items in orders]
    scores = []
    for version in (orders, other):
        queries = OrderQueries.of(shop(version, 30), 25 * DAY, min_orders=1)
        scores.append(peer.fit(log_purchases(shop(version, 30), 25 * DAY))(queries.purchases()))
    np.testing.assert_allclose(scores[1][:, renamed], scores[0], rtol=1e-6, atol=1e-9)


def test_equal_scores_are_ranked_by_chance_and_the_same_chance_for_the_same_seed() -> None:
    dataset = shop([(0, 1, [0]), (0, 20, [1])], 50)
    queries = OrderQueries.of(dataset, 10 * DAY, min_orders=1)
    peer = Tuned(Popularity(), Popularity())
    firsts = [
        peer_lists(dataset, queries, peer, settings=["novel"], seed=seed)["novel"][0].tolist() for seed in (0, 0, 1)
    ]
    assert firsts[0] == firsts[1] != firsts[2]


def test_users_without_any_order_before_are_ranked_too() -> None:
    dataset = shop(random_orders(1), 30)
    queries = OrderQueries.of(dataset, 0, min_orders=0)
    assert (queries.purchases().num_orders_B == 0).any()
    for peer in PEERS:
        assert np.isfinite(peer.fit(log_purchases(dataset, 25 * DAY))(queries.purchases())).all(), peer


def test_users_without_any_order_get_what_is_popular() -> None:
    dataset = shop(random_orders(1), 30)
    queries, log = OrderQueries.of(dataset, 0, min_orders=0), log_purchases(dataset, 25 * DAY)
    bought, popular = queries.purchases(), Popularity().fit(log)
    unknown = bought.num_orders_B == 0
    for peer in PEERS:
        own, scores = peer.fit(log)(bought), filled(peer.fit(log), popular)(bought)
        np.testing.assert_array_equal(scores[unknown], popular(bought)[unknown])
        np.testing.assert_array_equal(scores[~unknown], own[~unknown])


# Written by the reference protocol, one loop over baskets, on the same data: mean over the orders of December. Lists of
# the setting "novel" reach items of equal popularity, which it ranks by number and we by chance: hence the tolerance.
CONTRACT = {
    ("global popularity", "all", "rolling"): (0.31905, 0.06604, 0.05155, 0.06965),
    ("global popularity", "all", "first"): (0.39142, 0.07583, 0.05569, 0.08458),
    ("global popularity", "novel", "rolling"): (0.06180, 0.01531, 0.01417, 0.01168),
    ("global popularity", "novel", "first"): (0.09140, 0.01993, 0.01764, 0.01660),
    ("popularity, 4 weeks", "all", "rolling"): (0.31718, 0.06667, 0.05192, 0.06853),
    ("popularity, 4 weeks", "all", "first"): (0.39142, 0.07753, 0.05646, 0.08387),
    ("popularity, 4 weeks", "novel", "rolling"): (0.08477, 0.01996, 0.01828, 0.01429),
    ("popularity, 4 weeks", "novel", "first"): (0.11726, 0.02611, 0.02335, 0.01935),
    ("personal frequency", "all", "rolling"): (0.56821, 0.21606, 0.17946, 0.20260),
    ("personal frequency", "all", "first"): (0.61996, 0.22812, 0.17418, 0.22710),
}


@pytest.fixture(scope="module")
def december(tmp_path_factory: pytest.TempPathFactory) -> OrderQueries:
    path = tmp_path_factory.mktemp("complete-journey")
    prepare(path)
    dataset = load_dataset(path)
    november_ms, december_ms = (local_ms(datetime(2017, month, 1), dataset.store_timezone) for month in (11, 12))
    return OrderQueries.of(dataset, december_ms, eligible_before_ms=november_ms)


def test_december_has_the_orders_of_the_protocol(december: OrderQueries) -> None:
    novel = np.unique(december.truth(novel=True)[0])
    assert (len(december), int(december.first_Q.sum())) == (10_732, 1_934)
    assert (len(novel), int(december.first_Q[novel].sum())) == (8_446, 1_663)
    assert len(december.true_item_P) / len(december) == pytest.approx(9.123, abs=5e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["global popularity", "popularity, 4 weeks", "personal frequency"])
def test_popularity_agrees_with_the_reference_protocol(december: OrderQueries, name: str) -> None:
    lists = peer_lists(december.dataset, december, COMPLETE_JOURNEY[name])
    for (peer, setting, mode), expected in CONTRACT.items():
        if peer != name:
            continue
        row, item = december.truth(setting == "novel")
        kept = np.unique(row)
        chosen = december.first_Q[kept] if mode == "first" else np.ones(len(kept), bool)
        values = per_order(lists[setting][kept], np.searchsorted(kept, row), item)
        means = [float(values[metric][chosen].mean()) for metric in ("HR", "Recall_min", "Recall", "NDCG")]
        exact = setting == "all" and peer != "personal frequency"
        assert means == pytest.approx(expected, abs=1e-5 if exact else 5e-4), (peer, setting, mode)


def test_every_data_set_of_the_benchmark_has_the_same_kinds_of_peers() -> None:
    assert set(AMAZON) <= set(COMPLETE_JOURNEY)
