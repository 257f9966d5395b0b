"""The token of a next page, which pins a list to its release and moment."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass

from baguni.domain.errors import InvalidInputError
from baguni.domain.history import LATEST_TIME_MS
from baguni.domain.signed_tokens import TokenSigner, integer_field, text_field, truth_field

KIND = "page"
MAX_TOKEN = 1_024  # characters; those of the gateway have some 200
MAX_NAME = 256
MAX_OFFSET = 1_000_000  # far beyond any list


@dataclass(frozen=True)
class PageToken:
    """Start of the next page: `offset` items into the list made from `release_id` as of `now_ms`, with or without the
    generative head's say (`rescored`). `query` is the hash of the request's other fields, which must not change between
    pages."""

    release_id: str
    now_ms: int
    offset: int
    rescored: bool
    query: str

    def encode(self, signer: TokenSigner) -> str:
        """Serialise to a signed, URL-safe token."""
        return signer.sign(KIND, asdict(self))

    @classmethod
    def decode(cls, token: str, signer: TokenSigner) -> PageToken:
        """Inverse of `encode`. Raises InvalidInputError, and nothing else, for any other text: one with a wrong signature, or
        with a field of another type or range."""
        if len(token) > MAX_TOKEN:
            raise InvalidInputError(
                f"page_token has {len(token)} characters, expected at most {MAX_TOKEN}", "page_token"
            )
        try:
            fields = signer.verify(KIND, token)
            return cls(
                text_field(fields, "release_id", MAX_NAME),
                integer_field(fields, "now_ms", 1, LATEST_TIME_MS),
                integer_field(fields, "offset", 0, MAX_OFFSET),
                truth_field(fields, "rescored"),
                text_field(fields, "query", MAX_NAME),
            )
        except ValueError as error:
            raise InvalidInputError(
                f"page_token is damaged, expected the next_page_token of the page before: {error}", "page_token"
            ) from error


def query_hash(serialised: bytes) -> str:
    """Return a short hash of a request."""
    return hashlib.sha256(serialised).hexdigest()[:16]
