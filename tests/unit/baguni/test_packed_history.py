"""How changes and histories are packed; that Redis' Lua understands them is tested with a real Redis."""

from __future__ import annotations

import contextlib

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baguni.domain.history import Action, Cancellation, Deletion, History, HistoryEvent, build
from baguni.domain.packed_history import DamagedHistoryError, pack_changes, unpack_history, unpack_version


def test_adjacent_lines_of_an_order_are_one_entry_and_numbers_are_stored_as_such() -> None:
    packed = pack_changes(
        [
            HistoryEvent("7", Action.ORDERED, 5, "o1"),
            HistoryEvent("rye", Action.ORDERED, 5, "o1"),
            HistoryEvent("7", Action.ORDERED, 6, "o1"),
            HistoryEvent("07", Action.CLICKED, 7),
            Cancellation("12", 8),
            Deletion(4),
        ],
        max_events=9,
    )
    expected = [5, 1, ["o1", 7, "rye"], 6, 1, ["o1", 7], 7, 2, "07", 8, 4, 12, 4, 5, 0]
    assert packed.flat == expected
    assert packed.first == [0, 2, 3, 4, 5]


@pytest.mark.parametrize("item_id", ["0", "9" * 15, "9" * 16, "00", "-1", "1.0", "٣", "²", " 1", "우유", "a|b"])
def test_every_id_comes_back_as_it_was(item_id: str) -> None:
    (_, _, stored) = pack_changes([HistoryEvent(item_id, Action.CLICKED, 1)], max_events=9).flat
    assert str(stored) == item_id
    assert isinstance(stored, int) == (item_id in ("0", "9" * 15))


def test_of_an_order_longer_than_a_history_the_lines_that_it_would_keep_are_left() -> None:
    lines = [HistoryEvent(str(number), Action.ORDERED, 5, "o1") for number in range(30)]
    packed = pack_changes([*lines, lines[0]], max_events=4)
    assert packed.flat == [5, 1, ["o1", 6, 7, 8, 9]]  # by their text, as in `build`
    assert tuple(str(item) for item in packed.flat[2][1:]) == tuple(e.item_id for e in build(lines, 4))


def test_changes_are_split_by_lines() -> None:
    order = [HistoryEvent(str(number), Action.ORDERED, 5, "o1") for number in range(3)]
    clicks = [HistoryEvent("7", Action.CLICKED, time_ms) for time_ms in range(6, 9)]
    packed = pack_changes([*order, *clicks], max_events=9)
    assert [lines for _, lines in packed.pieces(4)] == [4, 2]
    assert [lines for _, lines in packed.pieces(2)] == [3, 2, 1]
    assert [part for flat, _ in packed.pieces(2) for part in flat] == packed.flat


@given(st.binary(max_size=60), st.booleans())
def test_whatever_is_stored_is_a_history_or_damaged(value: bytes, has_head: bool) -> None:
    with contextlib.suppress(DamagedHistoryError):
        assert isinstance(unpack_history(bytes(28) + value if has_head else value), History)


@pytest.mark.parametrize(
    "entry",
    [
        (1, 0, "rye"),
        (1, -1, "rye"),
        (1, 5, "rye"),
        (1, True, "rye"),
        (-1, 2, "rye"),
        (1 << 63, 2, "rye"),
        (1.5, 2, "rye"),
        (float("nan"), 2, "rye"),
        (1, 2, ["o", "rye"]),
        (1, 1, "rye"),
        (1, 1, []),
        (1, 2, None),
        (1, 2, {}),
        (None, 2, "rye"),
    ],
    ids=repr,
)
def test_what_decodes_and_is_no_event_is_damaged(entry: tuple[object, ...]) -> None:
    """It would fail where the models' input is made of it: for a whole batch of users."""
    with pytest.raises(DamagedHistoryError, match="bytes are no history"):
        unpack_history(bytes(28) + b"".join(map(msgpack.packb, entry)))


def test_what_is_not_there_is_an_empty_history_of_version_0() -> None:
    for nothing in (None, b""):
        assert unpack_history(nothing) == History()
        assert unpack_version(nothing) == 0
