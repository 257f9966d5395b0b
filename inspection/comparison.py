"""Two lists of the same thing, place by place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Overlap:
    """`shared`: how many items are in both; `moves`: for each item of the second list, by how many places it stands higher
    there than in the first, None if it is not in the first."""

    shared: int
    moves: tuple[int | None, ...]


def overlap(first: Sequence[str], second: Sequence[str]) -> Overlap:
    """How far the second list is from the first.

    >>> overlap(["a", "b", "c"], ["b", "d", "a"])
    Overlap(shared=2, moves=(1, None, -2))
    """
    place = {item: rank for rank, item in enumerate(first)}
    moves = tuple(place[item] - rank if item in place else None for rank, item in enumerate(second))
    return Overlap(len(set(first) & set(second)), moves)
