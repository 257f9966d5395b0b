"""Exceptions as statuses: what a caller may rely on, in trailers that every client takes."""

from __future__ import annotations

import base64

import pytest
from google.rpc.code_pb2 import INTERNAL, INVALID_ARGUMENT, UNAVAILABLE
from google.rpc.error_details_pb2 import BadRequest, RetryInfo

from baguni.domain.errors import InvalidInputError, UnavailableError
from server.edge.statuses import status_of
from server.edge.validation import InvalidRequestError

CLIENTS_LIMIT = 8_192  # bytes of trailers; gRPC's default


@pytest.mark.parametrize("text", ["x", "라", "🛒"])
@pytest.mark.parametrize("count", [1, 1_000])
def test_however_much_is_wrong_the_trailers_stay_small(text: str, count: int) -> None:
    error = InvalidRequestError([(f"filters[{n}].{text * 5_000}", text * 5_000) for n in range(count)])
    status = status_of(error)
    encoded = base64.b64encode(status.SerializeToString())
    percent_encoded = sum(1 if ord(char) < 127 else 3 * len(char.encode()) for char in status.message)
    assert len(encoded) + percent_encoded < CLIENTS_LIMIT
    assert status.code == INVALID_ARGUMENT
    bad = BadRequest()
    assert any(detail.Unpack(bad) for detail in status.details)
    assert bad.field_violations[0].field.startswith("filters[0].")


def test_a_small_error_is_said_in_full() -> None:
    status = status_of(InvalidInputError("page_size is 999, expected 1 to 200", "page_size"))
    assert status.message == "page_size is 999, expected 1 to 200"


def test_what_is_internal_stays_in_the_log() -> None:
    unexpected = status_of(ValueError("password=secret"))
    assert unexpected.code == INTERNAL
    assert "secret" not in str(unexpected)
    away = status_of(UnavailableError("milvus", "10.0.0.7:19530 refused"))
    assert away.code == UNAVAILABLE
    assert "10.0.0.7" not in str(away)
    assert any(detail.Is(RetryInfo.DESCRIPTOR) for detail in away.details)
