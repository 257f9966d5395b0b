"""A space on a plane: its two principal components, the same for the same vectors every time."""

# N = items, V = vector dim

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Plane:
    """points_N2: where each item is; `explained`: the part of the variance that the plane keeps, from 0 to 1."""

    points_N2: NDArray[np.float32]
    explained: float


def project(vectors_NV: NDArray[np.float32]) -> Plane:
    """The two principal components. Of each axis, the direction in which its largest component is positive."""
    centred_NV = vectors_NV.astype(np.float64) - vectors_NV.mean(axis=0, dtype=np.float64)
    variance_V, axes_VV = np.linalg.eigh(centred_NV.T @ centred_NV)
    axes_V2 = axes_VV[:, [-1, -2]]
    largest = np.abs(axes_V2).argmax(axis=0)
    axes_V2 = axes_V2 * np.sign(axes_V2[largest, [0, 1]])
    explained = float(variance_V[-2:].sum() / max(variance_V.sum(), 1e-12))
    return Plane((centred_NV @ axes_V2).astype(np.float32), explained)
