"""Tokens of served pages: what they say comes back, and nothing else is taken for one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baguni.errors import InvalidInputError
from baguni.exposition import OTHER, BoundedNames
from baguni.exposure_token import MAX_TOKEN, Exposure
from baguni.sealed import seal

PAGE = Exposure("q1", "r_1", "home", 1_700_000_000_000)


@given(st.text(max_size=64), st.text(max_size=64))
def test_a_token_says_which_page_it_was(request_id: str, placement: str) -> None:
    page = Exposure(request_id, "r_1", placement, 5)
    assert Exposure.decode(page.encode()) == page


def test_a_newer_gateway_may_say_more() -> None:
    assert Exposure.decode(seal({**PAGE._asdict(), "variation": "b"})) == PAGE


@pytest.mark.parametrize(
    "token",
    [
        "",
        "home",
        "한글",
        PAGE.encode()[:-4],
        PAGE.encode().swapcase(),
        seal({"request_id": "q1"}),
        seal({**PAGE._asdict(), "time_ms": None}),
        seal([1, 2]),  # type: ignore[arg-type]
        "A" * (MAX_TOKEN + 1),
    ],
)
def test_what_is_no_token_is_said_to_be_none(token: str) -> None:
    with pytest.raises(InvalidInputError, match="exposure_token"):
        Exposure.decode(token)


def test_names_beyond_the_most_are_others() -> None:
    name = BoundedNames(2)
    assert [name(each) for each in ("a", "b", "c", "a", "d", "b", OTHER)] == ["a", "b", OTHER, "a", OTHER, "b", OTHER]
