"""Fields as an opaque string with a checksum, which tells a damaged one from a good one. It keeps nobody from making one."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

CHECKSUM_BYTES = 6


def seal(fields: dict[str, Any]) -> str:
    """As a string that is safe in URLs."""
    payload = json.dumps(fields, separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(_checksum(payload) + payload).decode()


def unseal(token: str) -> dict[str, Any]:
    """Inverse of `seal`. Raises ValueError for anything else."""
    raw = base64.urlsafe_b64decode(token.encode())
    checksum, payload = raw[:CHECKSUM_BYTES], raw[CHECKSUM_BYTES:]
    if _checksum(payload) != checksum:
        raise ValueError("checksum")
    try:
        return dict(json.loads(payload))
    except (TypeError, RecursionError) as error:
        raise ValueError("no fields") from error


def _checksum(payload: bytes) -> bytes:
    return hashlib.sha256(payload).digest()[:CHECKSUM_BYTES]
