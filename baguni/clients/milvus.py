"""Names of the collections, options of the clients, and errors of Milvus: for building the index and for searching it."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
from pymilvus.exceptions import (
    DataNotMatchException,
    DataTypeNotMatchException,
    DataTypeNotSupportException,
    MilvusException,
    ParamError,
    PrimaryKeyException,
)

from baguni.clients.channels import KEEPALIVE, RECONNECT
from baguni.domain.errors import RefusedError, UnavailableError

CONNECT_TIMEOUT_S = 5.0
FORMAT = (
    2  # of a collection's fields, raised when they change: gateways of two versions can serve a release side by side
)
CHANNEL = {**RECONNECT, **KEEPALIVE, "grpc.keepalive_permit_without_calls": 0}
"""gRPC options of clients of Milvus. pymilvus' own ping an idle connection every ten seconds; servers and proxies with gRPC's
usual limits close it for that (`too_many_pings`). So an idle connection that broke is found at the next call."""
METRIC = "IP"
CONSISTENCY = "Bounded"
"""A Strong read waits for the newest write: up to 200 ms on every search. An Eventually one may miss whatever a busy Milvus
has not taken over yet. A Bounded one sees all that was written more than VISIBLE_S ago, and waits only if Milvus is later."""
VISIBLE_S = 5.0  # Milvus' common.gracefulTime


def collection_names(release_id: str) -> tuple[str, str]:
    """Return the names of the collaborative and of the content collection."""
    return f"items{FORMAT}_{release_id}", f"content{FORMAT}_{release_id}"


# Codes of what Milvus refuses: parameters that are invalid, missing or too large; 6 is the embedded Milvus'.
REFUSED_CODES = {6, 1100, 1101, 1102}
# The code of everything unexpected, refusals among them. How their messages look, of 2.3 to 2.6.
UNEXPECTED_CODE = 65_535
REFUSALS = re.compile(
    r"cannot parse|failed to create (query|expr|search|delete) ?plan|invalid parameter|is not a number or infinity|"
    r"should divide the dim|is invalid, |exceeds? (the )?max|can't pass the expr",
    re.IGNORECASE,
)
# What pymilvus raises for data that do not fit the schema.
REFUSED_HERE = (
    DataNotMatchException,
    DataTypeNotMatchException,
    DataTypeNotSupportException,
    ParamError,
    PrimaryKeyException,
)


@contextmanager
def milvus_errors() -> Iterator[None]:
    """Raise RefusedError for what Milvus, or pymilvus in its place, does not take; UnavailableError for every other error of
    Milvus, of pymilvus and of gRPC."""
    try:
        yield
    except (MilvusException, grpc.RpcError, TimeoutError) as error:
        message = " ".join(str(getattr(error, "message", "") or str(error) or "no answer in time").split())[:300]
        kind = RefusedError if _is_refusal(error) else UnavailableError
        raise kind("milvus", message) from error


def _is_refusal(error: BaseException) -> bool:
    if not isinstance(error, MilvusException):
        return False
    if isinstance(error, REFUSED_HERE) or error.code in REFUSED_CODES:
        return True
    return error.code == UNEXPECTED_CODE and REFUSALS.search(str(error.message)) is not None


def silence_pymilvus() -> None:
    """Turn off pymilvus' log: it has a traceback for every error, which is raised as well."""
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
