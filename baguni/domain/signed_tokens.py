"""Opaque tokens that leave the process and come back: fields with an HMAC, so that only a holder of the key can make one.

This module knows keys and signatures. What the fields mean, and which values they may have, is the business of each kind of
token: `baguni.domain.exposure_token` and `server.edge.page_token`.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from itsdangerous import BadData, Signer, URLSafeSerializer
from itsdangerous.encoding import base64_encode
from pydantic import SecretStr

from baguni.domain.errors import InvalidInputError

LEAST_KEY_LENGTH = 16  # characters


class TokenSigner:
    """Signs and verifies tokens with keys, newest first: the first one signs, every one verifies.

    >>> signer = TokenSigner(["a key of this gateway"])
    >>> signer.verify("page", signer.sign("page", {"offset": 20}))
    {'offset': 20}
    """

    def __init__(self, keys: Sequence[str]) -> None:
        short = [len(key) for key in keys if len(key) < LEAST_KEY_LENGTH]
        if short or not keys:
            raise InvalidInputError(
                f"token_keys has {f'a key of {short[0]} characters' if short else 'no key'}, expected keys of at least "
                f"{LEAST_KEY_LENGTH} characters, the newest first, with commas",
                "token_keys",
            )
        self._keys = list(reversed(keys))  # itsdangerous signs with the last
        self._serializers: dict[str, URLSafeSerializer] = {}
        self._signers: dict[str, Signer] = {}

    @classmethod
    def from_setting(cls, token_keys: SecretStr) -> TokenSigner:
        """Return a signer for the setting `token_keys`: keys with commas, the newest first."""
        return cls([key.strip() for key in token_keys.get_secret_value().split(",")])

    def sign(self, kind: str, fields: Mapping[str, Any]) -> str:
        """Serialise fields to a URL-safe token of a kind; a token of one kind does not verify as another. Text in the fields
        must be UTF-8."""
        # As the serializer does, which would make a signer and try to compress each time: a third of the time.
        payload = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
        return self._signer(kind).sign(base64_encode(payload)).decode()

    def verify(self, kind: str, token: str) -> dict[str, Any]:
        """Return the fields of a token of this kind. Raises ValueError for anything that no holder of a key signed."""
        try:
            fields = self._serializer(kind).loads(token)
        except (BadData, UnicodeError, RecursionError) as error:
            raise ValueError(f"the token does not verify: {error}") from error
        if not isinstance(fields, dict):
            raise ValueError(f"the token holds a {type(fields).__name__}, expected fields")
        return fields

    def _serializer(self, kind: str) -> URLSafeSerializer:
        if kind not in self._serializers:
            self._serializers[kind] = URLSafeSerializer(
                self._keys, salt=f"baguni.{kind}", signer_kwargs={"digest_method": hashlib.sha256}
            )
        return self._serializers[kind]

    def _signer(self, kind: str) -> Signer:
        if kind not in self._signers:
            serializer = self._serializer(kind)
            self._signers[kind] = serializer.make_signer(serializer.salt)
        return self._signers[kind]


def new_key() -> str:
    """Return a random key."""
    return secrets.token_urlsafe(32)


def text_field(fields: Mapping[str, Any], name: str, longest: int) -> str:
    """Return a field that must be text of at most `longest` characters, all of which UTF-8 can encode. Raises ValueError."""
    value = fields.get(name)
    if not isinstance(value, str) or len(value) > longest:
        raise ValueError(f"{name} is {_shortened(value)}, expected text of at most {longest} characters")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} has a lone surrogate, expected text that UTF-8 can encode") from error
    return value


def integer_field(fields: Mapping[str, Any], name: str, low: int, high: int) -> int:
    """Return a field that must be an integer from `low` to `high`. Raises ValueError."""
    value = fields.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{name} is {_shortened(value)}, expected an integer from {low} to {high}")
    return value


def truth_field(fields: Mapping[str, Any], name: str) -> bool:
    """Return a field that must be true or false. Raises ValueError."""
    value = fields.get(name)
    if not isinstance(value, bool):
        raise ValueError(f"{name} is {_shortened(value)}, expected true or false")
    return value


def _shortened(value: object) -> str:
    if isinstance(value, int) and value.bit_length() > 64:
        return f"an integer of {value.bit_length()} bits"  # Python refuses to print one of more than 4,300 digits
    return ascii(value)[:80]
