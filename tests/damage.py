"""Files as disks, copies and crashes leave them."""

from __future__ import annotations

import random

KEPT = 20  # bytes at the end, where formats have what tells them apart


def damaged(sound: bytes, rng: random.Random) -> bytes:
    """Return a file with a bit that turned, sixteen bytes that were overwritten, or without its end."""
    content, place = bytearray(sound), rng.randrange(4, len(sound) - KEPT)
    kind = rng.randrange(3)
    if kind == 0:
        content[place] ^= 1 << rng.randrange(8)
    elif kind == 1:
        content[place : place + 16] = rng.randbytes(16)
    else:
        del content[place:]
    return bytes(content)
