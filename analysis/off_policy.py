"""What another order of lists would have earned, estimated from lists in whose order chance had a share.

The unit is a place of a page: what it earns is taken to depend on the item that stands there and on the place, not on the
neighbours. A candidate's item is there by chance in some of the pages; these, weighted by the inverse of their probability,
stand for all (Horvitz & Thompson 1952, doi:10.1080/01621459.1952.10483446; for lists the independent form of Li et al. 2018,
doi:10.1145/3219819.3220028). Three estimates say the same with different noise:

ips     as it is: without bias, and the noisiest
snips   divided by the weights' mean, which should be 1 (Swaminathan & Joachims 2015, self-normalised)
dr      doubly robust: a model of what an item earns at a place, corrected where it was seen (Dudík et al.,
        2011, arXiv:1103.4601)

Pages of one user are not independent, so intervals are of users: the variance is that of their sums.
"""

# R = rows: the places of pages, L = pages, U = users

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.metrics import Float
from analysis.tables import OUTCOMES
from baguni.domain.errors import InvalidInputError, NotFoundError

Z = 1.959964  # 95 %
NUM_FOLDS, FOLD_SEED = 5, 0
PRIOR = 5.0  # as many expected rewards as an item needs to be believed half
FEWEST_EFFECTIVE = 200.0
LEAST_SUPPORT = 0.95


@dataclass(frozen=True)
class Estimate:
    """Rewards a page, with the ends of the interval at 95 %."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class OffPolicy:
    """A candidate's lists beside those that were shown. `active`: the pages that chance left as ranked; `candidate` and
    `gain`, which is the candidate's less the active, by estimator. `support`: the mean weight, 1 where every place of the
    candidate could have been shown. `effective`: as many places of the candidate's own would say as much."""

    reward: str
    num_pages: int
    num_users: int
    num_without: int
    mean_places: float
    support: Estimate
    effective: float
    active: Estimate
    candidate: dict[str, Estimate]
    gain: dict[str, Estimate]

    @property
    def conclusion(self) -> str:
        """What may be concluded, in a sentence."""
        if self.support.high < LEAST_SUPPORT:
            return (
                f"Nothing may be concluded: of the candidate's places only {self.support.value:.0%} could have been shown, "
                f"so chance has to order more items (among)."
            )
        if self.effective < FEWEST_EFFECTIVE:
            return (
                f"Nothing can be said yet: what was shown says as much as {self.effective:,.0f} places, "
                f"expected at least {FEWEST_EFFECTIVE:,.0f}."
            )
        gain = self.gain["dr"]
        if gain.low > 0 or gain.high < 0:
            better = "more" if gain.low > 0 else "fewer"
            least, most = sorted((abs(gain.low), abs(gain.high)))
            return f"The candidate would have had {better} {self.reward}s: {least:.4f} to {most:.4f} a page."
        ends = f"{gain.low:+.4f} to {gain.high:+.4f}"
        return f"No difference can be seen: the candidate would have had {ends} {self.reward}s a page."


def estimate(shown: pd.DataFrame, lists: pd.DataFrame, reward: str = "click") -> OffPolicy:
    """`shown` and `lists`: as `analysis.tables` reads them. Raises InvalidInputError, and NotFoundError if the lists are of no
    page that was shown by chance."""
    if reward not in OUTCOMES:
        raise InvalidInputError(f"reward is {reward!r}, expected one of {', '.join(OUTCOMES)}")
    rows = shown[shown["position"] < shown["among"]]
    has_list_R = rows["exposure_token"].isin(lists["exposure_token"].unique())
    num_without = int(rows.loc[~has_list_R, "exposure_token"].nunique())
    rows = rows[has_list_R]
    if not len(rows):
        raise NotFoundError(f"none of {num_without:,} pages that chance had a share in has a list of the candidate")
    candidate = lists.rename(columns={"item_id": "candidate"}).drop_duplicates(["exposure_token", "position"])
    rows = rows.merge(candidate, how="left", on=["exposure_token", "position"])
    return _of(_Rows(rows, OUTCOMES[reward]), reward, num_without)


class _Rows:
    """The places of the pages, as arrays."""

    def __init__(self, rows: pd.DataFrame, reward: str) -> None:
        self.page_R, tokens = pd.factorize(rows["exposure_token"])
        self.num_pages = len(tokens)
        unit_R, units = pd.factorize(rows["unit_id"])
        self.num_users = len(units)
        self.unit_L = np.zeros(self.num_pages, np.int64)
        self.unit_L[self.page_R] = unit_R
        self.fold_R = np.random.default_rng(FOLD_SEED).integers(NUM_FOLDS, size=self.num_users)[unit_R]
        names = pd.concat([rows["item_id"], rows["candidate"]], ignore_index=True)
        code, items = pd.factorize(names)
        self.num_items = len(items)
        self.item_R, self.candidate_R = code[: len(rows)], code[len(rows) :]  # −1: the candidate's page is shorter
        self.position_R = rows["position"].to_numpy(np.int64)
        self.reward_R = rows[reward].to_numpy(np.float64)
        self.weight_R = (self.item_R == self.candidate_R) / rows["propensity"].to_numpy(np.float64)
        as_ranked_R = ~rows["shuffled"].to_numpy(bool) / (1 - rows["share"].to_numpy(np.float64))
        self.as_ranked_L = np.zeros(self.num_pages)
        self.as_ranked_L[self.page_R] = as_ranked_R

    def a_page(self, value_R: Float | NDArray[np.bool_]) -> Float:
        """[L] sums."""
        return np.bincount(self.page_R, value_R, self.num_pages).astype(np.float64, copy=False)

    def interval(self, value: float, influence_L: Float) -> Estimate:
        """`influence_L`: how each page moves the value, times the number of pages."""
        of_users = np.bincount(self.unit_L, influence_L, self.num_users)
        small = self.num_users / max(self.num_users - 1, 1)
        error = float(np.sqrt(small * np.square(of_users).sum())) / self.num_pages
        return Estimate(value, value - Z * error, value + Z * error)


def _of(rows: _Rows, reward: str, num_without: int) -> OffPolicy:
    has_candidate_R = (rows.candidate_R >= 0).astype(np.float64)
    places_L, weight_L = rows.a_page(has_candidate_R), rows.a_page(rows.weight_R)
    reward_L = rows.a_page(rows.reward_R)
    earned_L = rows.a_page(rows.weight_R * rows.reward_R)
    ranked = float(rows.as_ranked_L.mean())
    active = float((rows.as_ranked_L * reward_L).mean()) / ranked if ranked else float("nan")
    active_influence_L = rows.as_ranked_L * (reward_L - active) / (ranked or np.nan)
    places, weight = float(places_L.mean()), float(weight_L.mean())
    support = weight / places if places else 0.0
    support_influence_L = (weight_L - support * places_L) / (places or np.nan)
    rate = float(earned_L.mean()) / weight if weight else float("nan")
    model_R, seen_R = _earned_by_model(rows)
    dr_L = rows.a_page(has_candidate_R * model_R + rows.weight_R * (rows.reward_R - seen_R))
    values = {
        "ips": (float(earned_L.mean()), earned_L - earned_L.mean()),
        "snips": (
            rate * places,
            places * (earned_L - rate * weight_L) / (weight or np.nan) + rate * (places_L - places),
        ),
        "dr": (float(dr_L.mean()), dr_L - dr_L.mean()),
    }
    squares = float(np.square(rows.weight_R).sum())
    return OffPolicy(
        reward,
        rows.num_pages,
        rows.num_users,
        num_without,
        places,
        rows.interval(support, support_influence_L),
        float(rows.weight_R.sum()) ** 2 / squares if squares else 0.0,
        rows.interval(active, active_influence_L),
        {name: rows.interval(value, influence_L) for name, (value, influence_L) in values.items()},
        {
            name: rows.interval(value - active, influence_L - active_influence_L)
            for name, (value, influence_L) in values.items()
        },
    )


def _earned_by_model(rows: _Rows) -> tuple[Float, Float]:
    """[R] what the candidate's item, and the one shown, earn at the place by a model of the other folds' users: the place's
    mean, times what the item earned over what its places let expect."""
    num_places = int(rows.position_R.max()) + 1
    candidate_R, seen_R = np.zeros(len(rows.page_R)), np.zeros(len(rows.page_R))
    for fold in range(NUM_FOLDS):
        of_others_R = rows.fold_R != fold
        position_R, reward_R = rows.position_R[of_others_R], rows.reward_R[of_others_R]
        count_P = np.bincount(position_R, minlength=num_places)
        mean_P = np.bincount(position_R, reward_R, num_places) / np.maximum(count_P, 1)
        item_R = rows.item_R[of_others_R]
        expected_N = np.bincount(item_R, mean_P[position_R], rows.num_items)
        lift_N = (np.bincount(item_R, reward_R, rows.num_items) + PRIOR) / (expected_N + PRIOR)
        here_R = ~of_others_R
        of_place_R = mean_P[rows.position_R[here_R]]
        candidate_R[here_R] = of_place_R * lift_N[rows.candidate_R[here_R]]
        seen_R[here_R] = of_place_R * lift_N[rows.item_R[here_R]]
    return candidate_R, seen_R
