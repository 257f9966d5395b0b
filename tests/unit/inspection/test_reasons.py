"""What drove an item, by leaving out."""

from __future__ import annotations

import numpy as np

from baguni.domain.history import Action, HistoryEvent
from inspection.reasons import SMALLEST, Reason, left_out, strongest


def test_leaving_out_an_item_leaves_out_every_event_of_it_and_no_other() -> None:
    milk, bread = (HistoryEvent("milk", Action.ORDERED, 1, "o1"), HistoryEvent("bread", Action.ORDERED, 1, "o1"))
    click = HistoryEvent("milk", Action.CLICKED, 2)
    assert left_out((milk, bread, click), ["milk", "bread"]) == [(bread,), (milk, click)]


def test_the_strongest_reasons_are_those_without_which_the_score_falls_most() -> None:
    score_I = np.array([5, 1], np.float32)
    without_HI = np.array([[4, 1], [2, 3], [5, 0.5], [4.5, 1]], np.float32)
    assert strongest(["a", "b", "c", "d"], score_I, without_HI, count=2) == [
        [Reason("b", 5 - 2), Reason("a", 5 - 4)],
        [Reason("c", 1 - 0.5)],
    ]


def test_what_hardly_matters_and_what_raises_a_score_when_left_out_is_no_reason() -> None:
    without_HI = np.array([[1 - SMALLEST / 2], [1.5]], np.float32)
    assert strongest(["a", "b"], np.array([1], np.float32), without_HI) == [[]]
