"""The token of a next page, which pins a list to its release and moment."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass

from baguni.errors import InvalidInputError
from baguni.sealed import seal, unseal


@dataclass(frozen=True)
class PageToken:
    """Where the next page begins: `offset` items into the list made from `release_id` as of `now_ms`, with or without the
    generative head's say (`rescored`). `query` is the hash of the request's other fields, which must not change between
    pages."""

    release_id: str
    now_ms: int
    offset: int
    rescored: bool
    query: str

    def encode(self) -> str:
        """As a string."""
        return seal(asdict(self))

    @classmethod
    def decode(cls, token: str) -> PageToken:
        """Inverse of `encode`. Raises InvalidInputError for anything else."""
        try:
            return cls(**unseal(token))
        except (ValueError, TypeError) as error:
            raise InvalidInputError(
                "page_token is damaged, expected the next_page_token of the page before", "page_token"
            ) from error


def query_hash(serialised: bytes) -> str:
    """A short name for a request."""
    return hashlib.sha256(serialised).hexdigest()[:16]
