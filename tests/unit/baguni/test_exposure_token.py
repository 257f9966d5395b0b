"""Tokens of served pages: what they hold comes back, and nothing else is taken for one."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baguni.domain.errors import InvalidInputError
from baguni.domain.events import MAX_PLACEMENT
from baguni.domain.exposure_token import KIND, MAX_TOKEN, Exposure
from baguni.domain.history import LATEST_TIME_MS
from baguni.domain.signed_tokens import TokenSigner
from server.edge.validation import MAX_REQUEST_ID
from tests.signing import JSON, SIGNER, sign

PAGE = Exposure("q1", "r_1", "home", 1_700_000_000_000)


def signed(**changed: Any) -> str:
    """A token of the key's holder, with some fields changed."""
    return sign(KIND, {**PAGE._asdict(), **changed})


@given(st.text(max_size=64), st.text(max_size=64))
def test_a_token_says_which_page_it_was(request_id: str, placement: str) -> None:
    page = Exposure(request_id, "r_1", placement, 5)
    assert Exposure.decode(page.encode(SIGNER), SIGNER) == page


@pytest.mark.parametrize("letter", ["x", "\u0001", "한", "\U0001f600", '"'])
def test_the_longest_names_fit_into_a_token(letter: str) -> None:
    page = Exposure(letter * MAX_REQUEST_ID, "r" * 64, letter * MAX_PLACEMENT, LATEST_TIME_MS)
    assert Exposure.decode(page.encode(SIGNER), SIGNER) == page


@given(st.text(max_size=64), st.text(max_size=64))
def test_tokens_of_the_librarys_own_serializer_are_read_and_it_reads_ours(request_id: str, placement: str) -> None:
    """Those of the version before, which compressed what became shorter by that."""
    page = Exposure(request_id, "r" * 200, placement, 5)
    serializer = SIGNER._serializer(KIND)
    assert Exposure.decode(serializer.dumps(page._asdict()), SIGNER) == page
    assert serializer.dumps(page._asdict()).startswith(".")
    assert serializer.loads(page.encode(SIGNER)) == page._asdict()


def test_a_newer_gateway_may_say_more() -> None:
    assert Exposure.decode(signed(variation="b"), SIGNER) == PAGE


@pytest.mark.parametrize(
    "token",
    [
        "",
        "home",
        "한글",
        "\ud800",
        PAGE.encode(SIGNER)[:-4],
        PAGE.encode(SIGNER).swapcase(),
        PAGE.encode(TokenSigner(["the key of somebody else"])),
        sign("page", PAGE._asdict()),
        sign(KIND, {"request_id": "q1"}),
        sign(KIND, [1, 2]),
        signed(time_ms=float("inf")),
        signed(time_ms=None),
        signed(time_ms=True),
        signed(time_ms="1700000000000"),
        signed(time_ms=-1),
        signed(time_ms=LATEST_TIME_MS + 1),
        signed(time_ms=10**600),
        signed(placement="\ud800"),
        signed(placement="x" * 65),
        signed(release_id=["r_1"]),
        "A" * (MAX_TOKEN + 1),
    ],
)
def test_what_is_no_token_is_said_to_be_none(token: str) -> None:
    with pytest.raises(InvalidInputError, match="exposure_token"):
        Exposure.decode(token, SIGNER)


def test_a_token_of_the_version_before_is_unreadable() -> None:
    """It carried a checksum that anyone can compute."""
    payload = json.dumps(PAGE._asdict(), separators=(",", ":")).encode()
    token = base64.urlsafe_b64encode(hashlib.sha256(payload).digest()[:6] + payload).decode()
    with pytest.raises(InvalidInputError, match="exposure_token is damaged"):
        Exposure.decode(token, SIGNER)


@given(st.dictionaries(st.sampled_from([*PAGE._fields, "other"]), JSON, max_size=5))
def test_whatever_a_holder_of_the_key_signs_only_pages_are_read(fields: dict[str, Any]) -> None:
    try:
        page = Exposure.decode(signed(**fields), SIGNER)
    except InvalidInputError:
        return
    assert all(isinstance(text, str) for text in page[:3])
    assert 0 < page.time_ms <= LATEST_TIME_MS
    page.placement.encode()


def test_a_key_is_replaced_without_losing_tokens() -> None:
    old, new = "the key of last year", "the key of this year"
    before = PAGE.encode(TokenSigner([old]))
    both = TokenSigner([new, old])
    assert Exposure.decode(before, both) == PAGE
    assert Exposure.decode(PAGE.encode(both), TokenSigner([new])) == PAGE
    with pytest.raises(InvalidInputError, match="exposure_token is damaged"):
        Exposure.decode(before, TokenSigner([new]))


@pytest.mark.parametrize("keys", [[], [""], ["short"], ["long enough to be one", "short"]])
def test_a_key_that_can_be_guessed_is_refused(keys: list[str]) -> None:
    with pytest.raises(InvalidInputError, match=r"token_keys .* expected keys of at least 16 characters"):
        TokenSigner(keys)
