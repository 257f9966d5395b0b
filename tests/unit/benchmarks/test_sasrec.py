"""SASRec as a peer: what it is given to read, and, where its environment is there (`make peers`), that it learns from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from baguni.domain.catalog import Catalog, Item
from baguni.domain.errors import InvalidInputError, NotFoundError
from baguni.domain.history import Action
from benchmarks.quality import peer_process
from benchmarks.quality.sasrec import (
    SasRec,
    SasRecRecipe,
    last_of_each,
    lines_in_time,
    padded,
    places_from_end,
    query_arrays,
    training_arrays,
    windows,
)
from trainer.data.dataset import Dataset
from trainer.data.queries import OrderQueries, log_purchases

DAY = 86_400_000
NUM_ITEMS = 40
TINY = SasRecRecipe(
    32,
    max_length=6,
    every_window=True,
    num_negatives=None,
    learning_rate=0.01,
    batch_size=16,
    max_epochs=25,
    patience=0,
)


def circular_shop(num_users: int = 60, num_orders: int = 12) -> Dataset:
    """Every user orders one item a day, and after item i always i + 1."""
    user = np.repeat(np.arange(num_users), num_orders)
    place = np.tile(np.arange(num_orders), num_users)
    return Dataset(
        "circle",
        "UTC",
        Catalog([Item(str(index), str(index)) for index in range(NUM_ITEMS)], {}),
        tuple(str(index) for index in range(num_users)),
        tuple(str(index) for index in range(len(user))),
        user,
        (user * 7 + place) % NUM_ITEMS,
        np.full(len(user), int(Action.ORDERED)),
        np.arange(len(user)),
        place * DAY,
    )


def test_places_are_counted_from_the_end_of_each_row() -> None:
    row = np.array([0, 0, 0, 2])
    assert places_from_end(row).tolist() == [2, 1, 0, 0]
    assert last_of_each(row).tolist() == [False, False, True, True]


def test_without_every_window_a_sequence_is_the_newest_items_and_one_to_start_from() -> None:
    sequence, item = windows(np.array([0, 0, 0, 0, 1]), np.array([5, 6, 7, 8, 9]), 2, False)
    assert sequence.tolist() == [0, 0, 0, 1]
    assert item.tolist() == [6, 7, 8, 9]


def test_windows_overlap_by_one_item_so_that_every_other_item_is_a_target_once() -> None:
    row, item = np.repeat([0, 1], [9, 4]), np.arange(13)
    sequence, windowed = windows(row, item, 3, True)
    targets = windowed[1:][np.diff(sequence) == 0]
    assert sorted(targets.tolist()) == [*range(1, 9), *range(10, 13)]
    assert np.bincount(sequence).max() == 4
    assert (np.diff(windowed)[np.diff(sequence) == 0] == 1).all()  # in time


def test_sequences_are_padded_in_front_and_keep_the_newest() -> None:
    rows = padded(np.array([0, 0, 0, 2]), np.array([5, 6, 7, 8]), 3, 2)
    assert rows.tolist() == [[6, 7], [-1, -1], [-1, 8]]


def test_lines_are_in_time_and_within_an_order_by_chance() -> None:
    dataset = circular_shop(1, 2)
    two = replace(
        dataset,
        user_E=np.zeros(40, np.int64),
        item_E=np.r_[np.arange(20), np.arange(20, 40)],
        action_E=np.full(40, int(Action.ORDERED)),
        order_E=np.repeat([0, 1], 20),
        time_E=np.repeat([0, DAY], 20),
    )
    _, item = lines_in_time(log_purchases(two, 2 * DAY), seed=0)
    assert sorted(item[:20].tolist()) == list(range(20))
    assert item[:20].tolist() != list(range(20))


def test_the_end_of_an_order_stands_after_its_lines_and_is_nothing_bought() -> None:
    bought = OrderQueries.of(circular_shop(2, 4), 3 * DAY, min_orders=1).purchases()
    row, item = lines_in_time(bought, 0, order_ends=True)
    assert row.tolist() == [0] * 6 + [1] * 6
    assert item.tolist() == [0, NUM_ITEMS, 1, NUM_ITEMS, 2, NUM_ITEMS, 7, NUM_ITEMS, 8, NUM_ITEMS, 9, NUM_ITEMS]
    arrays = query_arrays(bought, np.r_[1:10, NUM_ITEMS], replace(TINY, max_length=4, order_ends=True))
    assert arrays["item_QS"][0].tolist() == [1, NUM_ITEMS, 2, NUM_ITEMS]
    assert arrays["bought_item_P"].tolist() == [0, 1, 2, 7, 8, 9]


def test_a_query_reads_known_items_only_but_all_of_its_items_are_bought() -> None:
    queries = OrderQueries.of(circular_shop(3, 6), 5 * DAY)
    arrays = query_arrays(queries.purchases(), np.array([0, 2, 3, 7, 8, 14, 15]), replace(TINY, max_length=3))
    assert arrays["item_QS"].tolist() == [[0, 2, 3], [-1, 7, 8], [-1, 14, 15]]
    assert arrays["bought_item_P"].tolist() == [0, 1, 2, 3, 4, 7, 8, 9, 10, 11, 14, 15, 16, 17, 18]


def test_what_validates_is_left_out_of_training() -> None:
    log = log_purchases(circular_shop(3, 5), 5 * DAY)
    arrays = training_arrays(log, replace(TINY, patience=1))
    assert arrays["target_Q"].tolist() == [4, 11, 18]
    assert not np.isin(arrays["target_Q"], arrays["item_P"]).any()
    assert arrays["item_QS"][0].tolist() == [-1, -1, 0, 1, 2, 3]
    assert training_arrays(log, TINY)["item_P"].tolist() == [*range(5), *range(7, 12), *range(14, 19)]


def test_without_its_environment_it_says_how_to_make_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_process, "PYTHON", tmp_path / ".venv-peers" / "bin" / "python")
    with pytest.raises(NotFoundError, match=r"\.venv-peers does not exist: `make peers`"):
        SasRec.train(circular_shop(), 10 * DAY, TINY, tmp_path / "run")


@pytest.mark.skipif(not peer_process.PYTHON.exists(), reason="make peers makes .venv-peers")
@pytest.mark.parametrize("order_ends", [False, True])
def test_it_learns_what_follows_what_and_respects_what_is_asked(tmp_path: Path, order_ends: bool) -> None:
    dataset, recipe = circular_shop(), replace(TINY, order_ends=order_ends, max_length=12 if order_ends else 6)
    queries = OrderQueries.of(dataset, 11 * DAY)
    epochs: list[int] = []
    model = SasRec.train(dataset, 11 * DAY, recipe, tmp_path, lambda _, done, total, text: epochs.append(done))
    assert epochs == list(range(1, 26))
    lists = model.lists(queries)
    following = queries.true_item_P
    if not order_ends:  # what is two places back takes longer to learn
        assert (lists["all"][:, 0] == following).mean() > 0.9
        assert (lists["novel"][:, 0] == following).mean() > 0.9
    assert all(((top >= 0) & (top < NUM_ITEMS)).all() for top in lists.values())  # no list names the end of an order
    bought = queries.purchases()
    owned = np.zeros((len(queries), NUM_ITEMS), bool)
    owned[bought.row_P, bought.item_P] = True
    assert not owned[np.arange(len(queries))[:, None], lists["novel"]].any()
    with pytest.raises(InvalidInputError, match="another recipe"):
        SasRec.train(dataset, 11 * DAY, replace(recipe, width=8), tmp_path)


@pytest.mark.skipif(not peer_process.PYTHON.exists(), reason="make peers makes .venv-peers")
def test_it_stops_when_validation_no_longer_improves_and_ranks_users_without_history(tmp_path: Path) -> None:
    dataset = circular_shop()
    recipe = replace(TINY, num_negatives=8, shared_negatives=True, max_epochs=30, patience=2)
    model = SasRec.train(dataset, 11 * DAY, recipe, tmp_path)
    scores = model.process.facts["scores"]
    assert len(scores) == min(30, model.process.facts["best_epoch"] + 2)
    assert scores[model.process.facts["best_epoch"] - 1] == max(scores)
    nothing = OrderQueries.of(dataset, 0, 1, min_orders=0)
    assert (model.lists(nothing)["all"] >= 0).all()
