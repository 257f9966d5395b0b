"""Nearest items and the plane, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from inspection.neighbours import directions, nearest
from inspection.projection import project


def test_nearest_is_by_direction_and_leaves_out_where_it_starts() -> None:
    vectors = np.array([[1, 0], [10, 0], [1, 1], [0, 1], [-1, 0]], np.float32)
    found = nearest(directions(vectors), [0], 3)
    assert [index for index, _ in found] == [1, 2, 3]
    assert [cosine for _, cosine in found] == pytest.approx([1, 0.5**0.5, 0], abs=1e-6)


def test_nearest_to_several_is_nearest_to_their_mean_direction() -> None:
    vectors = np.array([[1, 0], [0, 9], [1, 1], [1, -1]], np.float32)
    assert nearest(directions(vectors), [0, 1], 9) == [(2, pytest.approx(1.0)), (3, pytest.approx(0.0, abs=1e-6))]


def test_the_plane_keeps_distances_of_points_that_lie_on_one() -> None:
    rng = np.random.default_rng(0)
    flat = rng.normal(size=(50, 2)) @ rng.normal(size=(2, 8)) + 3
    plane = project(flat.astype(np.float32))
    assert plane.explained == pytest.approx(1, abs=1e-6)
    wanted = np.linalg.norm(flat[:, None] - flat, axis=-1)
    found = np.linalg.norm(plane.points_N2[:, None] - plane.points_N2, axis=-1)
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_the_plane_is_the_same_every_time_and_its_first_axis_the_widest() -> None:
    vectors = np.random.default_rng(1).normal(size=(200, 16)).astype(np.float32)
    plane = project(vectors)
    np.testing.assert_array_equal(plane.points_N2, project(vectors.copy()).points_N2)
    widths = plane.points_N2.var(axis=0)
    assert widths[0] >= widths[1]
    assert 2 / 16 < plane.explained < 1
