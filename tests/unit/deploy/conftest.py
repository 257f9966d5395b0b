"""The overlays of the cluster."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.manifests import OVERLAYS, Overlay, rendered


@pytest.fixture(params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> Overlay:
    """Each of them."""
    return rendered(request.param)


@pytest.fixture
def render() -> Callable[[str], Overlay]:
    """A certain one."""
    return rendered
