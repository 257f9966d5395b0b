"""Chance in the order of a list, so that what another order would have earned can be estimated from what was shown.

A share of the lists has its first items in an order in which each of them is as likely at each place as at any other; the
others stand as ranked. So an item's probability to stand where it stands is known, whatever the page: 1 − share +
share / among at the place that it was ranked for, share / among at the other places. Whether a list is one of them, and its
order, follow from whom it is for and the moment that it was made for, which keeps its pages together.
"""

# M = items that chance may order, P = items of a page

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from server.experiments.choices import Exploration

Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class Explored:
    """The part of chance in a page: `among`, at most as many as were asked for, since lists can be short;
    `propensities`: of each item of the page, to stand at its place."""

    share: float
    among: int
    shuffled: bool
    propensities: tuple[float, ...]


def explored(
    exploration: Exploration, who: str, as_of_ms: int, placement: str, num_items: int, page: range
) -> tuple[Int64, Explored]:
    """Return [P], the ranks (0-based) in a list of `num_items` of the items on the page, and how chance chose them."""
    among = min(exploration.among, num_items)
    seed = hashlib.sha256(f"{who}\0{as_of_ms}\0{placement}".encode()).digest()
    chance = np.random.default_rng(int.from_bytes(seed))
    shuffled = bool(chance.random() < exploration.share)
    place_P = np.arange(page.start, min(page.stop, num_items))
    rank_P = place_P.copy()
    if shuffled:
        first = place_P < among
        rank_P[first] = chance.permutation(among)[place_P[first]]
    uniform = exploration.share / max(among, 1)
    propensity_P = np.where(rank_P == place_P, 1 - exploration.share + uniform, uniform)
    propensity_P[place_P >= among] = 1.0
    return rank_P, Explored(exploration.share, among, shuffled, tuple(propensity_P.tolist()))
