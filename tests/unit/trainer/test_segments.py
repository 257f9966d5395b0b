"""Segments: exact probabilities over the catalogue, sums along category paths, and days to the next purchase by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from baguni.domain.catalog import Catalog, Item
from baguni.domain.errors import BaguniError, InvalidInputError, NotFoundError
from baguni.domain.semantic_ids import SemanticIdTable
from trainer.data.dataset import Dataset
from trainer.run import Run
from trainer.samples import Batch
from trainer.segments.cli import segment
from trainer.segments.evaluate import CategoryOrders, evaluate_segments
from trainer.segments.forecasts import Forecaster, next_midnight_ms
from trainer.segments.next_item import Categories, NextItem, PrefixTree, category_probabilities, item_log_likelihoods
from trainer.segments.outcomes import Outcome, auc, concordance
from trainer.segments.purchases import Pairs, Purchases
from trainer.segments.repurchase import (
    Calibration,
    HazardParts,
    Rhythm,
    cumulative,
    expected_days,
    knot_probabilities,
    survival,
    within_days,
)

DAY_MS = 86_400_000


@pytest.fixture(scope="module")
def next_item(trained: Run) -> NextItem:
    return NextItem(trained, trained.model())


@pytest.fixture(scope="module")
def forecaster(trained: Run) -> Forecaster:
    return Forecaster(trained, trained.model())


def some_batch(run: Run) -> Batch:
    return run.training_set.samples.batch(np.arange(40, 48))


@torch.no_grad()
@pytest.mark.parametrize("nodes_at_once", [1, 7, 512])
def test_the_whole_catalogue_is_scored_as_one_item_at_a_time_is(trained: Run, nodes_at_once: int) -> None:
    model, table, batch = trained.model(), trained.semantic_ids(), some_batch(trained)
    vectors = model.item_vectors(trained.training_set.text_NT)
    memory = model.encode(batch.sequences, vectors)
    found = item_log_likelihoods(model, memory, PrefixTree.of(table), nodes_at_once)
    codes = torch.from_numpy(table.codes_NL).long()
    for item in range(len(table)):
        alone = model.log_likelihood(memory, codes[item].expand(batch.size, 1, -1))
        torch.testing.assert_close(found[:, item], alone[:, 0], atol=1e-5, rtol=1e-5)


def test_probabilities_sum_to_one_over_the_catalogue(next_item: NextItem, trained: Run) -> None:
    users, now = np.arange(40), np.full(40, trained.test_start_ms)
    for part, probability in next_item.batches(users, now, now):
        assert len(probability) == len(users[part])
        assert (probability > 0).all()
        torch.testing.assert_close(probability.sum(-1), torch.ones(len(probability)))


def test_what_happens_after_it_is_known_changes_no_forecast(next_item: NextItem, trained: Run) -> None:
    cut = trained.dataset.before(trained.test_start_ms)
    users, known = np.arange(10), np.full(10, trained.test_start_ms)
    run = Run(trained.path, trained.dataset_path, trained.recipe)
    run.dataset, run.test_start_ms = cut, trained.test_start_ms
    later = known + 3 * DAY_MS
    whole = next_item.probabilities(users, known, later)
    assert torch.equal(whole, NextItem(run, trained.model()).probabilities(users, known, later))


def test_a_tree_of_prefixes_shares_what_ids_share() -> None:
    tree = PrefixTree.of(SemanticIdTable(np.array([[2, 0, 1], [0, 3, 0], [2, 0, 0]], np.int32), (4, 4, 2)))
    assert [level.prefix_W.tolist() for level in tree.levels] == [[[]], [[0], [2]], [[0, 3], [2, 0]]]
    assert tree.levels[2].node.tolist() == [0, 1, 1]
    assert tree.levels[2].code.tolist() == [0, 0, 1]
    assert tree.leaf_N.tolist() == [2, 0, 1]


def test_category_probabilities_add_up_along_the_path() -> None:
    """FOOD has an item of its own beside BREAD and MILK; an item without a category counts nowhere."""
    paths = [("FOOD", "BREAD"), ("FOOD", "BREAD", "RYE"), ("FOOD", "MILK"), ("FOOD",), ("SOAP",), ()]
    catalog = Catalog([Item(str(number), "x", path) for number, path in enumerate(paths)], {})
    categories = Categories.of(catalog)
    assert categories.paths == ("FOOD", "SOAP", "FOOD > BREAD", "FOOD > MILK", "FOOD > BREAD > RYE")
    found = category_probabilities(torch.tensor([[1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 2, 1 / 32]]), categories)
    assert found.tolist() == [[1 / 4 + 1 / 8 + 1 / 16 + 1 / 32, 1 / 2, 1 / 4 + 1 / 8, 1 / 16, 1 / 8]]


def test_departments_of_a_shop_sum_to_one(next_item: NextItem, trained: Run) -> None:
    found = next_item.category_probabilities(np.arange(20), trained.test_start_ms)
    for depth in (1, 2):
        np.testing.assert_allclose(found[:, next_item.categories.at_depth(depth)].sum(axis=1), 1, rtol=1e-5)
    grocery = [path.startswith("GROCERY >") for path in next_item.categories.paths]
    np.testing.assert_allclose(
        found[:, grocery].sum(axis=1), found[:, next_item.categories.index("GROCERY")], rtol=1e-5
    )


def test_a_constant_hazard_waits_its_inverse() -> None:
    hazard = np.array([[1 / 7] * 3, [1 / 30] * 3])
    np.testing.assert_allclose(expected_days(hazard, 2000), [7, 30], rtol=1e-3)
    np.testing.assert_allclose(
        expected_days(hazard, 30), [7 * (1 - math.exp(-30 / 7)), 30 * (1 - math.exp(-1))], rtol=1e-3
    )
    np.testing.assert_allclose(within_days(hazard, 7), [1 - math.exp(-1), 1 - math.exp(-7 / 30)])
    np.testing.assert_allclose(expected_days(np.zeros((1, 3)), 90), [90])


def test_a_hazard_is_linear_between_its_knots_and_constant_outside() -> None:
    """0 until day 0.5, up to 0.14 on day 7.5, and so on for ever: triangle of 7 days, then a rectangle."""
    hazard = np.array([[0.0, 0.14, 0.14]])
    assert cumulative(hazard, np.array([7.5])) == pytest.approx(7 * 0.14 / 2)
    assert cumulative(hazard, np.array([4.0])) == pytest.approx(3.5 * 0.07 / 2)
    assert cumulative(hazard, np.array([40.5])) == pytest.approx(7 * 0.14 / 2 + 33 * 0.14)
    assert survival(hazard, np.array([0.0, 7.5])).tolist() == [[1.0, pytest.approx(math.exp(-0.49))]]


def test_a_higher_hazard_is_never_expected_later() -> None:
    hazard = np.random.default_rng(0).uniform(0, 0.2, (50, 3))
    assert (expected_days(hazard + 0.01) < expected_days(hazard)).all()
    assert (np.diff(survival(hazard, np.arange(100.0)), axis=1) <= 0).all()


def test_calibration_finds_the_weights_that_made_the_purchases() -> None:
    """Purchases come at half the head's rate plus a third of the habit's, and are watched for 28 days."""
    rng = np.random.default_rng(0)
    head, habit = rng.uniform(0, 0.2, 20_000), rng.uniform(0, 0.2, 20_000)
    waited = rng.exponential(1 / (head / 2 + habit / 3))
    parts = HazardParts(np.tile(head[:, None], 3), np.tile(habit[:, None], 3))
    calibration = Calibration.fit(parts, np.minimum(waited, 28), waited < 28)
    assert calibration.head == pytest.approx(1 / 2, abs=0.03)
    assert calibration.habit == pytest.approx(1 / 3, abs=0.03)


def test_calibration_expects_as_many_purchases_as_there_were() -> None:
    parts = HazardParts(np.array([[0.1, 0.2, 0.3], [0.3, 0.2, 0.1]]), np.array([[0.1] * 3, [0.0] * 3]))
    days, bought = np.array([20.0, 28.0]), np.array([True, False])
    expected = cumulative(Calibration.fit(parts, days, bought)(parts), days).sum()
    assert expected == pytest.approx(1.0)
    assert Calibration.fit(parts, days, np.array([False, False])) == Calibration(1.0, 0.0)


def two_users() -> Dataset:
    """User a orders bread on days 0, 10 and 30 (with milk) and 33; b orders milk on day 20. Bread and milk are FOOD."""
    catalog = Catalog([Item("bread", "Bread", ("FOOD", "BREAD")), Item("milk", "Milk", ("FOOD", "MILK"))], {})
    user, item = [0, 0, 0, 0, 0, 1], [0, 0, 0, 1, 0, 1]
    order, day = [0, 1, 2, 2, 3, 4], [0, 10, 30, 30, 33, 20]
    columns = (np.asarray(column, np.int64) for column in (user, item, [1] * 6, order, np.asarray(day) * DAY_MS))
    return Dataset("two", "UTC", catalog, ("a", "b"), ("0", "1", "2", "3", "4"), *columns)


def test_habits_and_what_came_after_them() -> None:
    data = two_users()
    purchases = Purchases.of(data)
    habits = purchases.habits(32 * DAY_MS)
    assert list(zip(habits.pairs.user_P, habits.pairs.target_P, strict=True)) == [(0, 0), (0, 1), (1, 1)]
    assert habits.count_P.tolist() == [3, 1, 1]
    assert habits.interval_days_P.tolist() == [15, 0, 0]
    assert habits.since_days_P.tolist() == [2, 2, 12]
    assert habits.target_interval_days(np.array([0, 1])).tolist() == [15, 15]
    assert habits.repeated(np.array([0, 1])).pairs.target_P.tolist() == [0]
    days, bought = purchases.next_purchases(habits.pairs, 32 * DAY_MS, 39 * DAY_MS)
    assert days.tolist() == [1, 7, 7]
    assert bought.tolist() == [True, False, False]
    food = Purchases.of(data, Categories.of(data.catalog), 1)
    assert food.habits(32 * DAY_MS).count_P.tolist() == [3, 1]  # the order with bread and milk counts once


def test_a_rhythm_is_drawn_towards_the_shop() -> None:
    rhythm = Rhythm.of(two_users().orders(), 3, 32 * DAY_MS)
    orders, days, lines = np.array([3, 1, 0]), np.array([32, 12, 0]), np.array([4, 1, 0])
    np.testing.assert_allclose(rhythm.orders_per_day_U, (orders + 4 / 44 * 28) / (days + 28))
    np.testing.assert_allclose(rhythm.lines_per_order_U, (lines + 5 / 4 * 4) / (orders + 4))
    habits = Purchases.of(two_users()).habits(32 * DAY_MS)
    np.testing.assert_allclose(rhythm.purchases_per_day(habits), [3 / 32, 1 / 32, 1 / 28])
    np.testing.assert_allclose(
        rhythm.head_hazard(np.array([2]), np.array([[0.0, 0.3, 1.0]])),
        4 / 44 * (1 - np.exp(-5 / 4 * np.array([[0.0, 0.3, 1.0]]))),
    )


def test_knots_of_items_and_categories_are_read_off_the_same_probabilities(next_item: NextItem, trained: Run) -> None:
    now = trained.test_start_ms
    items = Pairs(np.array([3, 3, 25]), np.array([0, 59, 7]), False)
    categories = Pairs(np.array([25]), np.array([next_item.categories.index("GROCERY")]), True)
    item_knots, category_knots = knot_probabilities(next_item, [items, categories], now)
    users, known = np.array([3, 25]), np.array([now, now])
    at_noon = next_item.probabilities(users, known, known + DAY_MS // 2)
    np.testing.assert_allclose(item_knots[:, 0], [at_noon[0, 0], at_noon[0, 59], at_noon[1, 7]], rtol=1e-4)
    expected = category_probabilities(at_noon, next_item.categories)[1, next_item.categories.index("GROCERY")]
    np.testing.assert_allclose(category_knots[:, 0], [expected], rtol=1e-4)


def test_auc_and_concordance_by_hand() -> None:
    assert auc(np.array([3.0, 1.0, 2.0, 2.0]), np.array([True, False, True, False])) == 3.5 / 4
    assert math.isnan(auc(np.array([1.0, 2.0]), np.array([True, True])))
    bought = np.array([True, True, False])
    assert concordance(np.array([1.0, 9.0, 5.0]), np.array([2.0, 4.0, 8.0]), bought) == 2 / 3
    assert concordance(np.array([1.0, 1.0, 5.0]), np.array([2.0, 4.0, 8.0]), bought) == (0.5 + 2) / 3
    assert math.isnan(concordance(np.array([1.0]), np.array([2.0]), np.array([False])))


def test_days_are_judged_by_hand() -> None:
    """Bought after 3 and 10 days, and not within the 30 watched: capped, the forecasts are off by 2, 1 and 30 days."""
    outcome = Outcome(np.array([3.0, 10.0, 30.0]), np.array([True, True, False]), 30.0)
    scores = outcome.of_days(np.array([5.0, 11.0, 0.0]), np.random.default_rng(0))
    assert scores["median error where bought, days"] == 3 / 2
    assert scores["root mean square error of days in the month"] == pytest.approx(math.sqrt((4 + 1 + 900) / 3))
    assert scores["AUC within 7 days"] == 1 / 2
    assert scores["AUC within 14 days"] == 0.0
    assert scores["concordance"] == 1 / 3


def test_a_hazard_is_judged_with_what_it_foresees() -> None:
    outcome = Outcome(np.array([3.0, 10.0, 30.0]), np.array([True, True, False]), 30.0)
    scores = outcome.of_hazard(np.array([[1.0] * 3, [0.1] * 3, [0.0] * 3]), np.random.default_rng(0))
    foreseen = (1 - math.exp(-7) + 1 - math.exp(-0.7)) / 3
    assert scores["bought within 7 days, foreseen and observed"] == [pytest.approx(foreseen), 1 / 3]
    assert scores["concordance"] == 1.0


def test_log_loss_of_shares_by_hand() -> None:
    """An order of 3 breads and 1 milk, of a user who bought 1 bread before; the second order has no category."""
    orders = CategoryOrders(np.array([[3.0, 1.0], [0.0, 0.0]]), np.array([[1.0, 0.0], [0.0, 0.0]]))
    own = orders.own_shares(np.array([0.5, 0.5]), 1.0)
    assert own.tolist() == [[0.75, 0.25], [0.5, 0.5]]
    assert orders.log_loss(own).tolist() == [pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))]
    assert orders.scores(own)["HR@1"] == 1.0


def test_evaluation_gives_plain_finite_numbers(trained: Run) -> None:
    found = evaluate_segments(trained, trained.model(), num_users=12)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found == evaluate_segments(trained, trained.model(), num_users=12)
    assert set(found["repurchase"]) == {"item", "category of depth 2"}
    for result in found["repurchase"].values():
        assert {
            "generative head and habit",
            "own interval",
            "everybody's interval",
            "own rate",
            "generative head alone",
        } < set(result)


def test_rows_are_in_the_shops_own_terms_and_sorted(forecaster: Forecaster, trained: Run) -> None:
    users = forecaster.users_of_category("GROCERY > MILK")
    assert len(users) == len(trained.dataset.user_ids)
    assert [row[1] for row in users] == sorted((row[1] for row in users), reverse=True)
    shelves = forecaster.categories_of_user("user-3", 2)
    assert len(shelves) == 6
    assert dict(shelves)["GROCERY > MILK"] == pytest.approx(dict(users)["user-3"], rel=1e-3)
    rows = forecaster.repurchases(None, "GROCERY > MILK", None, 7)
    assert [row[1] for row in rows] == sorted(row[1] for row in rows)
    assert all(0 < days <= 182 and 0 < chance < 1 and since > 0 for _, days, chance, since, _ in rows)


def test_now_is_the_midnight_after_the_log(trained: Run) -> None:
    now = next_midnight_ms(trained.dataset)
    assert 0 < now - int(trained.dataset.time_E.max()) <= DAY_MS
    assert now % DAY_MS == 4 * 3_600_000  # in April New York is four hours behind


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda f: f.users_of_category("GROCERY > BRAED"), r"category 'GROCERY > BRAED' .*such as 'GROCERY > BREAD'"),
        (lambda f: f.categories_of_user("user-x", 1), "user 'user-x' does not exist, expected a user_id"),
        (lambda f: f.categories_of_user("user-3", 9), "no category has depth 9, expected 1 to 2"),
        (lambda f: f.repurchases("milk-ryee", None, None, 7), "item 'milk-ryee' .*such as 'milk-rye'"),
    ],
)
def test_an_unknown_name_is_named_with_what_was_expected(
    forecaster: Forecaster, ask: Callable[[Forecaster], object], message: str
) -> None:
    with pytest.raises(NotFoundError, match=message):
        ask(forecaster)


def test_the_command_line_writes_every_row(trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.recipes.recipe_named", lambda name, seed: replace(trained.recipe, seed=seed))
    where = [str(trained.dataset_path), "--run", str(trained.path)]
    milk = ["--category", "GROCERY > MILK"]
    shown = run_command(["category", *where, *milk, "--top", "3"])
    assert "3 of 40" in " ".join(shown.split())
    assert "6 of 6" in " ".join(run_command(["category", *where, "--user", "user-1", "--depth", "2"]).split())
    file = tmp_path / "milk.csv"
    run_command(["repurchase", *where, *milk, "--within-days", "14", "--out", str(file)])
    lines = file.read_text().splitlines()
    assert lines[0] == "user,expected_days,bought_within_14_days,days_since_last,purchases"
    assert len(lines) > 10


@pytest.mark.parametrize("command", ["category", "repurchase"])
def test_one_thing_is_asked_at_a_time(command: str) -> None:
    result = CliRunner().invoke(segment, [command, "nowhere"])
    assert isinstance(result.exception, InvalidInputError)
    assert "expected one of them" in str(result.exception)


def run_command(arguments: list[str]) -> str:
    result = CliRunner().invoke(segment, arguments)
    if isinstance(result.exception, BaguniError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output
