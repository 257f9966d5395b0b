"""How changes and histories are packed; that Redis' Lua understands them is tested with a real Redis."""

from __future__ import annotations

import pytest

from baguni.history import Action, Cancellation, Deletion, History, HistoryEvent
from baguni.packed_history import pack_changes, unpack_history, unpack_version


def test_adjacent_lines_of_an_order_are_one_entry_and_numbers_are_stored_as_such() -> None:
    packed = pack_changes(
        [
            HistoryEvent("7", Action.ORDERED, 5, "o1"),
            HistoryEvent("rye", Action.ORDERED, 5, "o1"),
            HistoryEvent("7", Action.ORDERED, 6, "o1"),
            HistoryEvent("07", Action.CLICKED, 7),
            Cancellation("12", 8),
            Deletion(4),
        ]
    )
    expected = [5, 1, ["o1", 7, "rye"], 6, 1, ["o1", 7], 7, 2, "07", 8, 4, 12, 4, 5, 0]
    assert packed.flat == expected
    assert packed.first == [0, 2, 3, 4, 5]


@pytest.mark.parametrize("item_id", ["0", "9" * 15, "9" * 16, "00", "-1", "1.0", "٣", "²", " 1", "우유", "a|b"])
def test_every_id_comes_back_as_it_was(item_id: str) -> None:
    (_, _, stored) = pack_changes([HistoryEvent(item_id, Action.CLICKED, 1)]).flat
    assert str(stored) == item_id
    assert isinstance(stored, int) == (item_id in ("0", "9" * 15))


def test_what_is_not_there_is_an_empty_history_of_version_0() -> None:
    for nothing in (None, b""):
        assert unpack_history(nothing) == History()
        assert unpack_version(nothing) == 0
