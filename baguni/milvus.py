"""What building the index and searching it have in common: names, and how Milvus is spoken to."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
from pymilvus.exceptions import MilvusException

from baguni.errors import UnavailableError

CONNECT_TIMEOUT_S = 5.0
METRIC = "IP"
CONSISTENCY = "Eventually"  # a Strong read waits for the newest write's timestamp: up to 200 ms on every search


def collection_names(release_id: str) -> tuple[str, str]:
    """The collaborative and the content collection."""
    return f"items_{release_id}", f"content_{release_id}"


@contextmanager
def milvus_errors() -> Iterator[None]:
    """pymilvus raises its own errors and gRPC's."""
    try:
        yield
    except (MilvusException, grpc.RpcError, TimeoutError) as error:
        message = getattr(error, "message", "") or str(error) or "no answer in time"
        raise UnavailableError("milvus", " ".join(str(message).split())[:300]) from error


def silence_pymilvus() -> None:
    """It logs a traceback for every error, and then raises it: who calls decides what is worth a line."""
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
