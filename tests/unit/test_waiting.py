"""The one way in which tests wait."""

from __future__ import annotations

import pytest

from tests import waiting
from tests.waiting import eventually


def test_the_first_true_result_is_returned() -> None:
    results = iter([0, None, "", "there", "later"])
    assert eventually(lambda: next(results), interval_s=0) == "there"


def test_what_never_happens_fails_with_what_was_awaited_and_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "WAIT_S", 0.0)
    with pytest.raises(AssertionError, match=r"the moon is full; last seen: 'half'"):
        eventually(lambda: False, "the moon is full", lambda: "half")
    with pytest.raises(AssertionError, match=r"eventually\(lambda: 1 > 2\); last seen: False"):
        eventually(lambda: 1 > 2)
