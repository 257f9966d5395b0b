"""The retrieval head's scores, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from inspection.retrieval import USERS_AT_ONCE, Encoded, Scored, best, buyers

# Three items in two dimensions; the last component is the item's bias.
VECTORS = np.array([[1, 0, 0.5], [0, 1, 0], [1, 1, 0]], np.float32)


def user(first: float, second: float, **repeats: float) -> Encoded:
    known = [int(name.removeprefix("item")) for name in repeats]
    return Encoded(
        np.array([first, second, 1], np.float32), np.array(known, np.int64), np.array([*repeats.values()], np.float32)
    )


def test_a_score_is_the_dot_product_and_what_the_item_gains_because_it_is_known() -> None:
    assert best(user(2, 1, item1=3.0), VECTORS, 3) == [
        Scored(1, 2 * 0 + 1 * 1 + 3.0, known=True),
        Scored(2, 2 + 1, known=False),
        Scored(0, 2 + 0.5, known=False),
    ]


def test_a_list_is_no_longer_than_asked_for_nor_than_the_catalogue() -> None:
    assert len(best(user(1, 1), VECTORS, 2)) == 2
    assert len(best(user(1, 1), VECTORS, 9)) == 3


def test_a_buyer_is_ranked_by_share_not_by_the_level_of_the_score() -> None:
    """The second user's score for item 0 is higher, and so are the scores of everything else."""
    keen, lukewarm = user(2, -1), user(3, 3)
    found = buyers([("lukewarm", lukewarm), ("keen", keen)], 0, VECTORS, 5)
    assert [buyer.user_id for buyer in found] == ["keen", "lukewarm"]
    assert found[0].score == 2.5 < found[1].score == 3.5
    assert found[0].share == pytest.approx(math.exp(2.5) / (math.exp(2.5) + math.exp(-1) + math.exp(1)))
    assert [buyer.rank for buyer in found] == [1, 2]


def test_a_buyer_who_knows_the_item_is_said_to() -> None:
    found = buyers([("owner", user(0, 0, item2=1.0)), ("other", user(0, 0))], 2, VECTORS, 5)
    assert [(buyer.user_id, buyer.knows) for buyer in found] == [("owner", True), ("other", False)]


def test_many_users_are_ranked_as_each_alone_would_be() -> None:
    users = [(f"user-{n:03}", user(n / 50, 1 - n / 50)) for n in range(2 * USERS_AT_ONCE + 1)]
    alone = [buyers([one], 0, VECTORS, 1)[0] for one in users]
    together = buyers(users, 0, VECTORS, len(users))
    assert [b.user_id for b in together] == [b.user_id for b in sorted(alone, key=lambda b: -b.share)]
    np.testing.assert_allclose([b.share for b in together], sorted((b.share for b in alone), reverse=True), rtol=1e-5)
