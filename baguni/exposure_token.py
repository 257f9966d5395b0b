"""The token of a page that was served. Clicks, carts and orders that it led to send it back, and are joined to it."""

from __future__ import annotations

from typing import NamedTuple

from baguni.errors import InvalidInputError
from baguni.sealed import seal, unseal

MAX_TOKEN = 1_024  # characters; those of the gateway have some 250


class Exposure(NamedTuple):
    """Which page was served, by which release, where and when."""

    request_id: str
    release_id: str
    placement: str
    time_ms: int

    def encode(self) -> str:
        """As a token."""
        return seal(self._asdict())

    @classmethod
    def decode(cls, token: str) -> Exposure:
        """Inverse of `encode`; fields of a newer gateway are ignored. Raises InvalidInputError for anything else."""
        if len(token) > MAX_TOKEN:
            raise InvalidInputError(
                f"exposure_token has {len(token)} characters, expected at most {MAX_TOKEN}", "exposure_token"
            )
        try:
            fields = unseal(token)
            return cls(
                str(fields["request_id"]), str(fields["release_id"]), str(fields["placement"]), int(fields["time_ms"])
            )
        except (ValueError, TypeError, KeyError) as error:
            raise InvalidInputError(
                "exposure_token is damaged, expected that of a RecommendResponse", "exposure_token"
            ) from error
