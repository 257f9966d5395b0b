"""LightGCN as a peer: a user's vector is that of the graph, and, where its environment is there, it learns who buys what."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from baguni.domain.catalog import Catalog, Item
from baguni.domain.history import Action
from benchmarks.quality import peer_process
from benchmarks.quality.lightgcn import SCRIPT, LightGcn, LightGcnRecipe, training_arrays
from benchmarks.quality.peer_process import PeerProcess
from trainer.data.dataset import Dataset
from trainer.data.queries import OrderQueries, log_purchases

DAY = 86_400_000
NUM_USERS, NUM_ITEMS, NUM_ORDERS, NUM_TASTES = 60, 40, 9, 2
TINY = LightGcnRecipe(16, learning_rate=0.02, batch_size=64, steps=200)


def shop_of_two_tastes() -> Dataset:
    """Each user orders an item a day, none twice, from one half of the catalogue."""
    rng = np.random.default_rng(0)
    half = NUM_ITEMS // NUM_TASTES
    items = np.stack([rng.permutation(half)[:NUM_ORDERS] + user % NUM_TASTES * half for user in range(NUM_USERS)])
    user = np.repeat(np.arange(NUM_USERS), NUM_ORDERS)
    return Dataset(
        "tastes",
        "UTC",
        Catalog([Item(str(index), str(index)) for index in range(NUM_ITEMS)], {}),
        tuple(str(index) for index in range(NUM_USERS)),
        tuple(str(index) for index in range(len(user))),
        user,
        items.ravel(),
        np.full(len(user), int(Action.ORDERED)),
        np.arange(len(user)),
        np.tile(np.arange(NUM_ORDERS), NUM_USERS) * DAY,
    )


@pytest.mark.parametrize("log_counts", [False, True])
def test_a_user_whose_orders_are_those_of_the_log_has_the_vector_of_the_graph(tmp_path: Path, log_counts: bool) -> None:
    dataset, layers = shop_of_two_tastes(), 3
    recipe = LightGcnRecipe(8, num_layers=layers, log_counts=log_counts)
    before = OrderQueries.of(dataset, 8 * DAY)
    log = log_purchases(dataset, 8 * DAY)
    arrays = training_arrays(log, recipe)
    graph = np.zeros((NUM_USERS + NUM_ITEMS,) * 2)
    graph[arrays["user_E"], NUM_USERS + arrays["item_E"]] = arrays["weight_E"]
    graph += graph.T
    layer = [np.random.default_rng(1).normal(size=(len(graph), 8)).astype(np.float32)]
    for _ in range(layers):
        layer.append((graph @ layer[-1]).astype(np.float32))
    np.savez(tmp_path / "log.npz", **arrays)
    items = np.stack([each[NUM_USERS:] for each in layer])
    np.savez(tmp_path / "vectors.npz", user_UD=layer[0][:NUM_USERS], item_JND=items)
    expected = np.mean(layer, axis=0)[:NUM_USERS] @ items.mean(axis=0).T
    found = LightGcn(PeerProcess("LightGCN", SCRIPT, tmp_path), recipe, 0).scores(before.purchases())
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_what_the_log_does_not_know_is_no_neighbour(tmp_path: Path) -> None:
    recipe, dataset = LightGcnRecipe(4, num_layers=1), shop_of_two_tastes()
    few = log_purchases(replace(dataset, user_ids=dataset.user_ids), 2 * DAY)
    arrays = training_arrays(few, recipe)
    unknown = np.flatnonzero(arrays["item_degree_N"] == 0)
    assert len(unknown)
    np.savez(tmp_path / "log.npz", **{**arrays, "user_U": arrays["user_U"][:10]})
    ones = np.ones((2, NUM_ITEMS, 4), np.float32)
    ones[:, unknown] = np.nan  # to be seen if it were read
    ones = np.nan_to_num(ones, nan=1e6)
    np.savez(tmp_path / "vectors.npz", user_UD=np.zeros((10, 4), np.float32), item_JND=ones)
    scores = LightGcn(PeerProcess("LightGCN", SCRIPT, tmp_path), recipe, 0).scores(
        OrderQueries.of(dataset, 8 * DAY).purchases()
    )
    known = np.setdiff1d(np.arange(NUM_ITEMS), unknown)
    assert np.isfinite(scores).all()
    assert np.abs(scores[:, known]).max() < 1e3


@pytest.mark.skipif(not peer_process.PYTHON.exists(), reason="make peers makes .venv-peers")
@pytest.mark.parametrize("loss", ["softmax", "bpr"])
def test_it_learns_who_buys_what(tmp_path: Path, loss: str) -> None:
    dataset = shop_of_two_tastes()
    queries = OrderQueries.of(dataset, 8 * DAY)
    steps: list[int] = []
    recipe = replace(TINY, loss=loss)
    model = LightGcn.train(dataset, 8 * DAY, recipe, tmp_path, lambda _, done, total, text: steps.append(done))
    assert steps[-1] == recipe.steps
    taste = queries.user_Q % NUM_TASTES
    for name, lists in model.lists(queries).items():
        assert (lists // (NUM_ITEMS // NUM_TASTES) == taste[:, None]).mean() > 0.95, name
