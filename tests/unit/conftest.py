"""The tiny run, trained once."""

from __future__ import annotations

import pytest

from baguni.release import Release
from tests.tiny_release import tiny_run
from trainer.run import Run


@pytest.fixture(scope="session")
def trained(tiny_release: Release) -> Run:
    """The run behind the tiny release."""
    return tiny_run(tiny_release.path.parent)
