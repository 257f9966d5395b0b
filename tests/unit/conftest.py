"""The tiny run, trained once; and properties that are looked at on a busy machine, too."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

from baguni.domain.release import Release
from tests.tiny_release import tiny_run
from trainer.run import Run

# How long examples take to make, or a test, says how busy the machine is.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


@pytest.fixture(scope="session")
def trained(tiny_release: Release) -> Run:
    """The run behind the tiny release."""
    return tiny_run(tiny_release.path.parent)
