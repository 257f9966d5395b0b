"""An item's nearest items by a release's own vectors: what needs no server, and so answers for a release that is not loaded."""

# N = items, V = vector dim

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from baguni.domain.release import Release


def directions(vectors_NV: NDArray[np.float32]) -> NDArray[np.float32]:
    """The vectors at length 1; those of length 0 stay."""
    length_N = np.linalg.norm(vectors_NV, axis=1, keepdims=True)
    return np.asarray(vectors_NV / np.maximum(length_N, 1e-12), np.float32)


def space_vectors(release: Release, collaborative: bool) -> NDArray[np.float32]:
    """Directions of all items in a space. In the collaborative one the last component, the bias, is popularity and left out."""
    return directions(release.item_vectors[:, :-1] if collaborative else release.content_vectors)


def nearest(direction_NV: NDArray[np.float32], items: Sequence[int], count: int) -> list[tuple[int, float]]:
    """Indexes of the items nearest to the mean direction of `items`, themselves left out, and their cosine; nearest first."""
    centre_V = directions(direction_NV[list(items)].mean(axis=0, keepdims=True))[0]
    cosine_N = direction_NV @ centre_V
    cosine_N[list(items)] = -np.inf
    order = np.argsort(-cosine_N, kind="stable")[: min(count, len(cosine_N) - len(set(items)))]
    return [(index, float(cosine_N[index])) for index in order.tolist()]
