"""Off-policy estimates keep their promise where the truth is known: a shop whose click rates are written down."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest

from analysis.off_policy import OffPolicy, estimate
from baguni.domain.errors import InvalidInputError, NotFoundError
from server.experiments.choices import Exploration
from server.experiments.explore import explored

pytestmark = pytest.mark.slow

POPULATION, USERS, PAGES, PLACES, ITEMS = 5_000, 250, 6, 5, 12  # each log has USERS of them
EXPLORATION = Exploration(share=0.4, among=8)
RUNS = 150


@dataclass(frozen=True)
class Shop:
    """Each user has a taste for each item and a mood of their own, so that pages of a user are alike; a click's probability is
    the place's times both."""

    taste_UN: np.ndarray
    mood_U: np.ndarray
    place_P: np.ndarray

    @classmethod
    def opened(cls, rng: np.random.Generator) -> Shop:
        liked_N = rng.beta(1, 3, ITEMS)
        taste_UN = np.clip(liked_N + 0.15 * rng.standard_normal((POPULATION, ITEMS)), 0, 0.8)
        return cls(taste_UN, rng.uniform(0.5, 1.2, POPULATION), 1 / np.arange(1, PLACES + 1) ** 0.7)

    def click_rates(self, user: int, items: np.ndarray) -> np.ndarray:
        return self.mood_U[user] * self.taste_UN[user, items] * self.place_P

    def ranked(self, seed: int, noise: float) -> np.ndarray:
        """[U, N] an order of all items for each of the population, by a taste that is known with noise."""
        rng = np.random.default_rng(seed)
        return np.argsort(-(self.taste_UN + noise * rng.standard_normal(self.taste_UN.shape)), axis=1)


def run(shop: Shop, active: np.ndarray, candidate: np.ndarray, number: int) -> OffPolicy:
    rng, shown, lists = np.random.default_rng(number), [], []
    for user in rng.choice(POPULATION, USERS, replace=False).tolist():
        for visit in range(PAGES):
            token, who = f"{user}-{visit}", f"{number}-{user}"
            ranks, how = explored(EXPLORATION, who, visit, "home", ITEMS, range(PLACES))
            items = active[user, ranks]
            clicked = rng.random(PLACES) < shop.click_rates(user, items)
            for place, (item, click) in enumerate(zip(items.tolist(), clicked.tolist(), strict=True)):
                row = (token, who, place, str(item), how.propensities[place], how.share, how.among, how.shuffled)
                shown.append((*row, click, False, False))
                lists.append((token, place, str(candidate[user, place])))
    return estimate(frame(shown), pd.DataFrame(lists, columns=["exposure_token", "position", "item_id"]))


def frame(rows: list[tuple[object, ...]]) -> pd.DataFrame:
    names = "exposure_token unit_id position item_id propensity share among shuffled clicked carted ordered"
    return pd.DataFrame(rows, columns=names.split())


def value(shop: Shop, ranked: np.ndarray) -> float:
    return float(np.mean([shop.click_rates(user, ranked[user, :PLACES]).sum() for user in range(POPULATION)]))


@pytest.fixture(scope="module")
def shop() -> Shop:
    return Shop.opened(np.random.default_rng(1))


@pytest.fixture(scope="module")
def promised(shop: Shop) -> tuple[float, float, list[OffPolicy]]:
    """The true values of both orders, and what is estimated of them from each of some logs. The candidate ranks what it shows
    from the items that chance orders."""
    active = shop.ranked(2, noise=0.3)
    better = shop.ranked(3, noise=0.05)
    candidate = np.stack(
        [sorted(own[: EXPLORATION.among], key=order.tolist().index) for own, order in zip(active, better, strict=True)]
    )
    return value(shop, active), value(shop, candidate), [run(shop, active, candidate, n) for n in range(RUNS)]


@pytest.mark.parametrize("name", ["ips", "snips", "dr"])
def test_intervals_hold_the_truth_as_often_as_they_say(
    name: str, promised: tuple[float, float, list[OffPolicy]]
) -> None:
    active, candidate, found = promised
    two_errors = 2 * np.sqrt(0.95 * 0.05 / RUNS)
    held = np.mean([one.candidate[name].low <= candidate <= one.candidate[name].high for one in found])
    assert abs(held - 0.95) <= two_errors + 0.01
    held = np.mean([one.gain[name].low <= candidate - active <= one.gain[name].high for one in found])
    assert abs(held - 0.95) <= two_errors + 0.01
    values = np.asarray([one.candidate[name].value for one in found])
    assert abs(values.mean() - candidate) <= 3 * values.std() / np.sqrt(RUNS) + (0.002 if name == "snips" else 0)


def test_what_was_left_as_ranked_is_the_active_orders_value(promised: tuple[float, float, list[OffPolicy]]) -> None:
    active, _, found = promised
    held = np.mean([one.active.low <= active <= one.active.high for one in found])
    assert abs(held - 0.95) <= 2 * np.sqrt(0.95 * 0.05 / RUNS) + 0.01


def test_a_model_and_normalisation_take_noise_away(promised: tuple[float, float, list[OffPolicy]]) -> None:
    *_, found = promised
    spread = {name: np.std([one.candidate[name].value for one in found]) for name in ("ips", "snips", "dr")}
    assert spread["snips"] < spread["ips"]
    assert spread["dr"] < spread["ips"]


def test_a_better_order_is_found_and_an_equal_one_is_not(
    shop: Shop, promised: tuple[float, float, list[OffPolicy]]
) -> None:
    _, _, found = promised
    assert np.mean(["more clicks" in one.conclusion for one in found]) > 0.5
    assert not any("fewer" in one.conclusion for one in found)
    active = shop.ranked(2, noise=0.3)
    same = [run(shop, active, active, n).conclusion for n in range(60)]
    assert np.mean(["No difference" in one for one in same]) > 0.85


def test_places_that_could_not_be_shown_are_named(shop: Shop) -> None:
    """Below the items that chance orders nothing is ever shown, so nothing is known of it."""
    active = shop.ranked(2, noise=0.3)
    found = run(shop, active, active[:, ::-1], 0)
    assert found.support.high < 0.9
    assert found.conclusion.startswith("Nothing may be concluded: of the candidate's places only")


def test_too_little_is_said_to_be_too_little(shop: Shop) -> None:
    row = ("t", "u", 0, "a", 0.65, 0.4, 8, False, True, False, False)
    lists = pd.DataFrame([("t", 0, "a")], columns=["exposure_token", "position", "item_id"])
    found = estimate(frame([row]), lists)
    assert found.conclusion.startswith("Nothing can be said yet")
    assert found.candidate["ips"].value == pytest.approx(1 / 0.65)


def test_bad_input_is_named() -> None:
    row = ("t", "u", 0, "a", 0.65, 0.4, 8, False, True, False, False)
    lists = pd.DataFrame([("other", 0, "a")], columns=["exposure_token", "position", "item_id"])
    with pytest.raises(NotFoundError, match="none of 1 pages"):
        estimate(frame([row]), lists)
    with pytest.raises(InvalidInputError, match="reward is 'views', expected one of click, cart, order"):
        estimate(frame([row]), lists, "views")
