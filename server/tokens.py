"""The opaque strings of the API: page tokens, which pin a list to its release and moment, and exposure tokens, which join
what happens later to the list that was shown. Both carry a checksum, so that a damaged one is told from a good one.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from baguni.errors import InvalidInputError

CHECKSUM_BYTES = 6


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
        return _seal(asdict(self))

    @classmethod
    def decode(cls, token: str) -> PageToken:
        """Inverse of `encode`. Raises InvalidInputError for anything else."""
        try:
            return cls(**_open(token))
        except (ValueError, TypeError, binascii.Error) as error:
            raise InvalidInputError(
                "page_token is damaged, expected the next_page_token of the page before", "page_token"
            ) from error


def exposure_token(request_id: str, release_id: str, placement: str, time_ms: int) -> str:
    """What a click or an order sends back."""
    return _seal({"request_id": request_id, "release_id": release_id, "placement": placement, "time_ms": time_ms})


def read_exposure_token(token: str) -> dict[str, Any]:
    """What an exposure token says. Raises ValueError if it is damaged."""
    return _open(token)


def query_hash(serialised: bytes) -> str:
    """A short name for a request."""
    return hashlib.sha256(serialised).hexdigest()[:16]


def _seal(fields: dict[str, Any]) -> str:
    payload = json.dumps(fields, separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(hashlib.sha256(payload).digest()[:CHECKSUM_BYTES] + payload).decode()


def _open(token: str) -> dict[str, Any]:
    raw = base64.urlsafe_b64decode(token.encode())
    checksum, payload = raw[:CHECKSUM_BYTES], raw[CHECKSUM_BYTES:]
    if hashlib.sha256(payload).digest()[:CHECKSUM_BYTES] != checksum:
        raise ValueError("checksum")
    return dict(json.loads(payload))
