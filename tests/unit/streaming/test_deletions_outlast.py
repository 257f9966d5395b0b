"""A rebuild from topics brings no deleted user back: the deletions must be there for as long as the events."""

from __future__ import annotations

import math

import pytest

from baguni.domain.errors import InvalidInputError
from streaming.histories_cli import check_deletions_outlast

DAY_S = 86_400.0


@pytest.mark.parametrize("deletions_s", [math.inf, 7 * DAY_S, 8 * DAY_S, None])
def test_deletions_that_are_kept_as_long_are_enough(deletions_s: float | None) -> None:
    check_deletions_outlast({"baguni.orders": 7 * DAY_S, "baguni.clicks": None, "baguni.users": deletions_s})


@pytest.mark.parametrize("orders_s", [math.inf, 8 * DAY_S])
def test_deletions_that_expire_first_are_refused(orders_s: float) -> None:
    kept_s = {"baguni.orders": orders_s, "baguni.clicks": DAY_S, "baguni.users": 7 * DAY_S}
    with pytest.raises(
        InvalidInputError, match=r"baguni\.users keeps records for 7 days, .* as long as baguni\.orders:"
    ):
        check_deletions_outlast(kept_s)
