"""Forecasts as of the end of a log, in a shop's own terms: user_id, item_id and category paths in, rows out."""

# B = users, P = pairs of a user and a target

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from baguni.domain.errors import NotFoundError
from baguni.domain.sequences import DAY_MS
from trainer.data.dataset import Dataset
from trainer.data.splits import local_ms
from trainer.model import DualHeadModel
from trainer.run import Progress, Run, silent
from trainer.segments.next_item import NextItem
from trainer.segments.purchases import Purchases
from trainer.segments.repurchase import KNOT_DAYS, calibrate, expected_days, hazard_parts, within_days

CALIBRATION_USERS = 200
Int64 = NDArray[np.int64]


class Forecaster:
    """What the generative head of a run says of users after the last event of the log."""

    def __init__(self, run: Run, model: DualHeadModel, seed: int = 0, progress: Progress = silent) -> None:
        self._next_item, self._dataset, self._seed = NextItem(run, model, progress), run.dataset, seed
        self.now_ms = next_midnight_ms(run.dataset)

    def users_of_category(self, path: str) -> list[tuple[str, float]]:
        """(user_id, probability that a line of the next order is of the category), likeliest first."""
        category, user_B = self._next_item.categories.index(path), self._buyers()
        probability_B = self._next_item.category_probabilities(user_B, self._noon_ms)[:, category]
        return self._ranked([self._dataset.user_ids[user] for user in user_B], probability_B)

    def categories_of_user(self, user_id: str, depth: int) -> list[tuple[str, float]]:
        """(category path of that depth, probability that a line of the next order is of it), likeliest first."""
        user, column_C = self._user(user_id), self._next_item.categories.at_depth(depth)
        probability_C = self._next_item.category_probabilities(np.asarray([user]), self._noon_ms)[0, column_C]
        return self._ranked([self._next_item.categories.paths[column] for column in column_C], probability_C)

    def repurchases(
        self, item_id: str | None, category: str | None, user_id: str | None, days: float
    ) -> list[tuple[str, float, float, float, int]]:
        """(user_id, expected days to the next purchase, chance of one within `days`, days since the last, purchases) of all
        who bought the item or of the category before, or of one user, soonest first."""
        categories = self._next_item.categories
        user = None if user_id is None else self._user(user_id)
        if category is not None:
            target = categories.index(category)
            purchases = Purchases.of(self._dataset, categories, int(categories.depth_C[target]))
        else:
            target, purchases = self._item(item_id or ""), Purchases.of(self._dataset)
        habits = purchases.habits(self.now_ms)
        wanted = habits.pairs.target_P == target
        habits = habits.only(wanted if user is None else wanted & (habits.pairs.user_P == user))
        if len(habits.pairs) == 0:
            raise NotFoundError(
                f"{repr(user_id) if user_id else 'nobody'} has never bought {item_id or category!r}: nothing to buy again"
            )
        calibration = calibrate(self._next_item, [purchases], self._some_buyers(), self.now_ms)[0]
        hazard_PJ = calibration(hazard_parts(self._next_item, [habits], self.now_ms)[0])
        columns = (expected_days(hazard_PJ), within_days(hazard_PJ, days), habits.since_days_P, habits.count_P)
        user_ids = [self._dataset.user_ids[user] for user in habits.pairs.user_P]
        rows = zip(user_ids, *(column.tolist() for column in columns), strict=True)
        return sorted(rows, key=lambda row: (row[1], row[0]))

    @property
    def _noon_ms(self) -> int:
        return self.now_ms + int(KNOT_DAYS[0] * DAY_MS)

    def _buyers(self) -> Int64:
        return np.unique(self._dataset.user_E[self._dataset.order_E >= 0])

    def _some_buyers(self) -> Int64:
        buyers = self._buyers()
        return np.sort(np.random.default_rng(self._seed).permutation(buyers)[:CALIBRATION_USERS])

    def _ranked(self, names: list[str], probability: NDArray[np.float32]) -> list[tuple[str, float]]:
        return sorted(zip(names, probability.tolist(), strict=True), key=lambda row: (-row[1], row[0]))

    def _user(self, user_id: str) -> int:
        return _found("user", user_id, "a user_id of the log", self._dataset.user_index)

    def _item(self, item_id: str) -> int:
        return _found("item", item_id, "an item_id of the catalogue", self._dataset.catalog.index)


def next_midnight_ms(dataset: Dataset) -> int:
    """The first midnight, by the store's clock, after the last event."""
    last = datetime.fromtimestamp(int(dataset.time_E.max()) / 1000, UTC).astimezone(ZoneInfo(dataset.store_timezone))
    day = last.replace(tzinfo=None) + timedelta(days=1)
    return local_ms(datetime(day.year, day.month, day.day), dataset.store_timezone)


def _found(what: str, name: str, expected: str, index: dict[str, int]) -> int:
    if name not in index:
        near = get_close_matches(name, index, n=1, cutoff=0.0)
        raise NotFoundError(f"{what} {name!r} does not exist, expected {expected}, such as {near[0] if near else ''!r}")
    return index[name]
