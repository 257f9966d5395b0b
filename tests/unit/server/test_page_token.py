"""Page tokens: what a gateway signed comes back; whatever else is in one is refused as the caller's mistake."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baguni.domain.errors import InvalidInputError
from server.edge.page_token import KIND, MAX_OFFSET, MAX_TOKEN, PageToken
from tests.signing import JSON, SIGNER, sign

FIELDS: dict[str, Any] = {
    "release_id": "r_1",
    "now_ms": 1_700_000_000_000,
    "offset": 20,
    "rescored": True,
    "query": "0123456789abcdef",
}


def signed(**changed: Any) -> str:
    return sign(KIND, {**FIELDS, **changed})


def test_a_token_comes_back() -> None:
    assert PageToken.decode(PageToken(**FIELDS).encode(SIGNER), SIGNER) == PageToken(**FIELDS)


@pytest.mark.parametrize(
    "changed",
    [
        {"offset": -3},
        {"offset": [1]},
        {"offset": 2.0},
        {"offset": False},
        {"offset": MAX_OFFSET + 1},
        {"offset": 10**600},
        {"release_id": 7},
        {"release_id": None},
        {"release_id": "\ud800"},
        {"now_ms": float("nan")},
        {"now_ms": 0},
        {"rescored": 1},
        {"query": {}},
    ],
    ids=str,
)
def test_a_field_of_another_type_or_range_is_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match="page_token is damaged"):
        PageToken.decode(signed(**changed), SIGNER)


@pytest.mark.parametrize("token", ["", "x", "\ud800", "A" * (MAX_TOKEN + 1), signed()[:-1], sign("exposure", FIELDS)])
def test_a_token_that_no_gateway_signed_is_refused(token: str) -> None:
    with pytest.raises(InvalidInputError, match="page_token"):
        PageToken.decode(token, SIGNER)


@given(st.dictionaries(st.sampled_from([*FIELDS, "other"]), JSON, max_size=5))
def test_whatever_a_holder_of_the_key_signs_only_pages_are_read(fields: dict[str, Any]) -> None:
    try:
        token = PageToken.decode(signed(**fields), SIGNER)
    except InvalidInputError:
        return
    assert 0 <= token.offset <= MAX_OFFSET
    assert token.rescored in (True, False)
