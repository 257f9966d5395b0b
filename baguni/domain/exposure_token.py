"""The token of a page that was served. Clicks, carts and orders that it led to send it back, and are joined to it."""

from __future__ import annotations

from typing import NamedTuple

from baguni.domain.errors import InvalidInputError
from baguni.domain.events import MAX_PLACEMENT
from baguni.domain.history import LATEST_TIME_MS
from baguni.domain.signed_tokens import TokenSigner, integer_field, text_field

KIND = "exposure"
MAX_TOKEN = 2_048  # characters; those of the gateway have some 200, with the longest names 1,700
MAX_NAME = 256  # characters of a request's and of a release's id


class Exposure(NamedTuple):
    """A served page: its request, the release that made it, where and when it was served."""

    request_id: str
    release_id: str
    placement: str
    time_ms: int

    def encode(self, signer: TokenSigner) -> str:
        """Serialise to a signed, URL-safe token."""
        return signer.sign(KIND, self._asdict())

    @classmethod
    def decode(cls, token: str, signer: TokenSigner) -> Exposure:
        """Inverse of `encode`; ignores fields of a newer gateway. Raises InvalidInputError, and nothing else, for any other
        text: one with a wrong signature, or with a field of another type or range."""
        if len(token) > MAX_TOKEN:
            raise InvalidInputError(
                f"exposure_token has {len(token)} characters, expected at most {MAX_TOKEN}", "exposure_token"
            )
        try:
            fields = signer.verify(KIND, token)
            return cls(
                text_field(fields, "request_id", MAX_NAME),
                text_field(fields, "release_id", MAX_NAME),
                text_field(fields, "placement", MAX_PLACEMENT),
                integer_field(fields, "time_ms", 1, LATEST_TIME_MS),
            )
        except ValueError as error:
            raise InvalidInputError(
                f"exposure_token is damaged, expected that of a RecommendResponse: {error}", "exposure_token"
            ) from error
