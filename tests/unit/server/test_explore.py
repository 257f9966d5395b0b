"""Chance in the order of lists: how often an item stands at a place is what is said of it."""

from __future__ import annotations

from collections import Counter

import pytest

from server.experiments.choices import Exploration
from server.experiments.explore import explored

EXPLORATION = Exploration(share=0.3, among=6)


def whole(number: int, exploration: Exploration = EXPLORATION, num_items: int = 9) -> list[int]:
    return explored(exploration, f"u{number}", 0, "home", num_items, range(num_items))[0].tolist()


def test_items_stand_where_they_stand_as_often_as_is_said() -> None:
    lists, said, counts, shuffled = 20_000, {}, Counter[tuple[int, int]](), 0
    for number in range(lists):
        rank_P, how = explored(EXPLORATION, f"u{number}", 0, "home", 9, range(9))
        shuffled += how.shuffled
        for place, rank in enumerate(rank_P.tolist()):
            counts[rank, place] += 1
            assert said.setdefault((rank, place), how.propensities[place]) == how.propensities[place]
    assert shuffled / lists == pytest.approx(0.3, abs=0.01)
    assert len(said) == 6 * 6 + 3
    for at, propensity in said.items():
        error = (propensity * (1 - propensity) / lists) ** 0.5
        assert abs(counts[at] / lists - propensity) <= 4.5 * error
    for place in range(9):
        assert sum(propensity for (_, at), propensity in said.items() if at == place) == pytest.approx(1)


def test_pages_of_a_list_are_of_one_order() -> None:
    for number in range(50):
        pages = [
            explored(EXPLORATION, f"u{number}", 7, "home", 9, range(start, start + 2)) for start in range(0, 10, 2)
        ]
        ranks = [rank for rank_P, _ in pages for rank in rank_P.tolist()]
        assert sorted(ranks) == list(range(9))
        assert ranks == explored(EXPLORATION, f"u{number}", 7, "home", 9, range(9))[0].tolist()
        assert [len(how.propensities) for _, how in pages] == [2, 2, 2, 2, 1]


def test_another_moment_or_place_is_another_order() -> None:
    always = Exploration(share=0.999, among=9)
    orders = {tuple(explored(always, "u", ms, place, 9, range(9))[0].tolist()) for ms in range(20) for place in "ab"}
    assert len(orders) == 40


@pytest.mark.parametrize("num_items", [0, 1, 3])
def test_short_lists(num_items: int) -> None:
    rank_P, how = explored(EXPLORATION, "u", 0, "home", num_items, range(5))
    assert sorted(rank_P.tolist()) == list(range(num_items))
    assert how.among == num_items
    assert len(how.propensities) == num_items
