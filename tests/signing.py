"""Tokens as a holder of the key could sign them, whatever their fields are: they verify, so only validation can refuse them."""

from __future__ import annotations

import json

from hypothesis import strategies as st
from itsdangerous.encoding import base64_encode

from baguni.domain.signed_tokens import TokenSigner

SIGNER = TokenSigner(["a key for these tests"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def sign(kind: str, fields: object, signer: TokenSigner = SIGNER) -> str:
    """Sign anything that JSON can write, also what itsdangerous refuses to: lone surrogates and lists."""
    signing = signer._serializer(kind).make_signer(f"baguni.{kind}".encode())
    return signing.sign(base64_encode(json.dumps(fields).encode())).decode()
