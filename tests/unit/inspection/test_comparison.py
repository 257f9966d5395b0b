"""Two lists, place by place."""

from __future__ import annotations

from inspection.comparison import Overlap, overlap


def test_moves_are_places_gained_from_the_first_list_to_the_second() -> None:
    assert overlap(["a", "b", "c"], ["b", "d", "a"]) == Overlap(2, (1, None, -2))


def test_equal_lists_have_everything_in_its_place() -> None:
    assert overlap(["a", "b"], ["a", "b"]) == Overlap(2, (0, 0))


def test_lists_of_nothing_share_nothing() -> None:
    assert overlap([], ["a"]) == Overlap(0, (None,))
