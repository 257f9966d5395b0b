"""The planted shop follows its rules, and the ladder's shares are those of their definition."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.ladder.models import Values
from benchmarks.ladder.planted import KINDS, PlantedShop, events_of, items_of, rules_of
from benchmarks.ladder.report import Means
from benchmarks.ladder.rungs import PLANTED_RUNGS, RUNGS, recipe_of_rung
from trainer.recipes import recipe_named

SHOP = PlantedShop(num_users=400)


def test_what_comes_next_on_a_shelf_follows_the_rules() -> None:
    usual_N, instead_N, blocker_N = rules_of(SHOP)
    events = events_of(SHOP)
    events["item"] = events["item_id"].str[1:].astype(int)
    by_rule: dict[bool, list[bool]] = {True: [], False: []}
    for _, lines in events.groupby("user_id"):
        last: dict[int, int] = {}
        is_blocked = False
        for _, order in lines.groupby("time", sort=True):
            for item in order["item"]:
                shelf = item // len(KINDS)
                if shelf in last:
                    rule = instead_N if is_blocked else usual_N
                    by_rule[is_blocked].append(item == rule[last[shelf]])
                last[shelf] = item
            is_blocked = bool(blocker_N[order["item"]].any())
    for followed in by_rule.values():
        assert len(followed) > 300
        assert np.mean(followed) == pytest.approx(1 - SHOP.random_share, abs=0.05)


def test_the_texts_say_nothing_of_the_rules() -> None:
    assert items_of().equals(items_of())
    assert not np.array_equal(rules_of(SHOP)[0], rules_of(replace(SHOP, seed=1))[0])
    usual_N, instead_N, _ = rules_of(SHOP)
    assert (usual_N != instead_N).all()
    assert (usual_N // len(KINDS) == instead_N // len(KINDS)).all()


def test_the_last_rung_is_ours_but_for_what_is_no_part_of_the_model() -> None:
    ours, last = recipe_named("demo"), recipe_of_rung(RUNGS[-1], "complete-journey", 0)
    parts = ("tokens", "identity", "interest", "repeat", "negatives", "positives", "statistics_days", "num_factors")
    for name in parts:
        assert getattr(last, name) == getattr(ours, name), name
    assert recipe_of_rung(PLANTED_RUNGS[0], "planted", 3).seed == 3


def values(**means: list[float]) -> Values:
    return Values({(name, "all", "HR@10"): np.asarray(value, np.float16) for name, value in means.items()})


def test_the_share_of_the_gap_by_hand() -> None:
    user_Q = np.array([4, 4, 9, 9])
    one = values(A=[0, 0, 0, 1], C=[0, 1, 1, 1], teacher=[1, 1, 1, 1])
    two = values(A=[0, 0, 0, 1], C=[0, 0, 1, 1], teacher=[1, 1, 1, 1])
    means = Means([one, two], "all", "HR@10", user_Q)
    assert means.of("A")[0] == 0.25
    assert means.of("C")[0] == 0.625
    share, low, high = means.share()
    assert share == pytest.approx((0.625 - 0.25) / (1 - 0.25))
    assert low <= share <= high
    difference, low, high = means.difference("C", "A")
    assert difference == pytest.approx(0.375)
    assert low <= difference <= high


def test_without_a_gap_there_is_no_share_of_it() -> None:
    worse = values(A=[1, 1, 1, 0], C=[1, 0, 0, 0], teacher=[0, 0, 0, 0])
    assert np.isnan(Means([worse], "all", "HR@10", np.arange(4)).share()).all()


def test_values_are_what_was_saved(tmp_path: Path) -> None:
    saved = values(A=[0, 1], teacher=[1, 1])
    saved.save(tmp_path / "design-seed0.npz")
    loaded = Values.load(tmp_path / "design-seed0.npz")
    assert loaded.variants == {"A", "teacher"}
    for name, value in saved.by_name.items():
        np.testing.assert_array_equal(loaded.by_name[name], value)
