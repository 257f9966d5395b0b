"""Shops at the edge of what is possible train to finite numbers, or say what is wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from baguni.domain.errors import BaguniError, InvalidInputError
from tests.tiny_release import write_tiny_sentence_encoder
from trainer.evaluate import evaluate
from trainer.recipes import recipe_named
from trainer.run import Run

ITEMS = pd.DataFrame(
    {"item_id": ["a", "b", "c"], "title": ["rye", "white", "rye"], "category": ["BREAD", "BREAD", "MILK"]}
)


def shop(path: Path, items: pd.DataFrame, events: list[tuple[str, str, str, str]]) -> Run:
    """A run of a few steps on a shop of these items and (user, item, order, day) events."""
    path.mkdir()
    (path / "dataset.json").write_text(json.dumps({"name": "odd", "timezone": "UTC"}))
    items.to_csv(path / "items.csv", index=False)
    rows = pd.DataFrame(events, columns=["user_id", "item_id", "order_id", "time"]).assign(action="order")
    rows.to_csv(path / "events.csv", index=False)
    encoder = write_tiny_sentence_encoder(path / "encoder")
    recipe = recipe_named("tiny", text_encoder=str(encoder), steps=6, batch_size=8, warmup_steps=1)
    return Run(path / "run", path, replace(recipe, num_beams=4))


def train_and_measure(run: Run) -> None:
    run.embed_items()
    run.fit_semantic_ids()
    losses = run.train_dual_head() + run.distil()
    assert all(np.isfinite(value) for step in losses for value in step.values())
    for model in evaluate(run)["models"].values():
        assert 0 <= model["all"]["NDCG@10"] <= 1


def orders(user: str, items: str, days: range) -> list[tuple[str, str, str, str]]:
    return [
        (user, item, f"{user}-{day}", f"2024-0{1 + day // 28}-{1 + day % 28:02d}") for day in days for item in items
    ]


def test_three_items_users_of_one_order_and_repeated_events(tmp_path: Path) -> None:
    events = orders("u", "ab", range(0, 70, 7)) + orders("v", "c", range(3, 4)) + orders("w", "abc", range(1, 80, 10))
    train_and_measure(shop(tmp_path / "shop", ITEMS, events + events[:5]))


def test_sessions_are_made_up_only_for_a_log_that_has_none(tmp_path: Path) -> None:
    bought = orders("u", "ab", range(0, 70, 7)) + orders("v", "bc", range(0, 70, 7))
    without, with_clicks = (shop(tmp_path / name, ITEMS, bought) for name in ("without", "with"))
    events = tmp_path / "with/events.csv"
    events.write_text(events.read_text() + "u,c,,2024-01-02T10:00,click\n")
    for run in (without, with_clicks):
        run.embed_items()
        run.fit_semantic_ids()
    assert without.training_set.samples.click_rate == without.recipe.click_rate > 0
    assert with_clicks.training_set.samples.click_rate == 0


def test_an_order_of_300_items(tmp_path: Path) -> None:
    many = pd.DataFrame({"item_id": [f"i{n}" for n in range(300)], "title": "rye", "category": "BREAD"})
    big = [("u", item, "u-big", "2024-01-02") for item in many["item_id"]]
    again = [(user, f"i{n}", f"{user}-{n}", f"2024-02-{1 + n:02d}") for user in "uv" for n in range(20)]
    train_and_measure(shop(tmp_path / "shop", many, [*big, *again, ("u", "i3", "u-last", "2024-03-05")]))


def test_times_in_any_order_give_the_same_log(tmp_path: Path) -> None:
    events = orders("u", "ab", range(0, 70, 7))
    forward, backward = shop(tmp_path / "one", ITEMS, events), shop(tmp_path / "two", ITEMS, events[::-1])
    for mine, other in zip(
        forward.dataset.orders().__dict__.values(), backward.dataset.orders().__dict__.values(), strict=True
    ):
        if len(mine) and mine is not other:
            assert sorted(mine.tolist()) == sorted(other.tolist())
    np.testing.assert_array_equal(forward.dataset.time_E, backward.dataset.time_E)


@pytest.mark.parametrize(("column", "expected"), [("title", "title"), ("category", "category")])
def test_an_item_without_text_or_category_is_named(tmp_path: Path, column: str, expected: str) -> None:
    items = ITEMS.copy()
    items.loc[1, column] = None
    with pytest.raises(InvalidInputError, match=expected):
        shop(tmp_path / "shop", items, orders("u", "ab", range(0, 70, 7))).dataset  # noqa: B018 - reading is the claim


def test_a_log_of_one_month_has_nothing_to_train_on(tmp_path: Path) -> None:
    run = shop(tmp_path / "shop", ITEMS, orders("u", "ab", range(3)))
    run.embed_items()
    run.fit_semantic_ids()
    with pytest.raises(BaguniError, match="no order before its last month"):
        run.train_dual_head()
