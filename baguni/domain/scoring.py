"""Scores of items for a user, defined once: the gateway serves, the inspection page shows and the trainer measures by them.

retrieval score   user embedding · item vector, plus the repeat score of an item in the user's sequence
served score      (1 - share) · retrieval score + share · log-likelihood by the generative head
"""

# I = items, S = items of a sequence, V = vector dim, C = NUM_CANDIDATES, L = code levels

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from baguni.domain.signature import NUM_CANDIDATES

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]


def retrieval_scores(
    embedding_V: Float32, vectors_IV: Float32, index_I: Int64, known_S: Int64, repeat_S: Float32
) -> Float32:
    """Return the [I] scores of the items `index_I`. `known_S`: distinct items, in any order; `repeat_S`: their repeat scores.

    >>> vectors = np.array([[1, 0], [0, 1], [1, 1]], np.float32)
    >>> retrieval_scores(np.array([2, 1], np.float32), vectors, np.arange(3), np.array([2]), np.array([0.5], np.float32))
    array([2. , 1. , 3.5], dtype=float32)
    """
    return with_repeat_scores(np.asarray(vectors_IV @ embedding_V, np.float32), index_I, known_S, repeat_S)


def with_repeat_scores(score_I: Float32, index_I: Int64, known_S: Int64, repeat_S: Float32) -> Float32:
    """Return the [I] dot products plus the repeat scores of the items that are in the sequence."""
    if not len(known_S):
        return score_I
    order_S = np.argsort(known_S)
    place_I = order_S[np.minimum(np.searchsorted(known_S[order_S], index_I), len(known_S) - 1)]
    return np.where(known_S[place_I] == index_I, score_I + repeat_S[place_I], score_I)


def served_scores(retrieval: Any, log_likelihood: Any, share: float) -> Any:
    """Return the mix of both heads that orders a list; arrays of NumPy or of torch, of one shape."""
    return (1 - share) * retrieval + share * log_likelihood


def candidate_codes(codes_NL: NDArray[np.int32], index_I: Int64) -> NDArray[np.int32]:
    """Return [C, L], the codes of at most C items as the scorer reads them; missing candidates have codes of -1."""
    codes_CL = np.full((NUM_CANDIDATES, codes_NL.shape[1]), -1, np.int32)
    codes_CL[: len(index_I)] = codes_NL[index_I]
    return codes_CL
