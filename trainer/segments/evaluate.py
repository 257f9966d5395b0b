"""How good the segments are: the last month of the log, predicted by the generative head and by what a shop could do without
a model. Nothing is tuned in that month: baselines and calibration are fitted on the four weeks before it.
"""

# Q = orders to predict, C = categories of one depth, U = users, P = pairs of a user and a target

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baguni.domain.errors import InvalidInputError
from baguni.domain.history import Action
from baguni.domain.sequences import DAY_MS
from trainer.data.dataset import expand
from trainer.data.splits import evaluation_queries
from trainer.metrics import mean_interval
from trainer.model import DualHeadModel
from trainer.run import Progress, Run, silent
from trainer.segments.next_item import NextItem, category_probabilities
from trainer.segments.outcomes import Outcome, auc
from trainer.segments.purchases import Habits, Purchases
from trainer.segments.repurchase import CALIBRATION_DAYS, Calibration, Rhythm, calibrate, hazard_parts

SMOOTHING = tuple(2.0**power for power in range(-2, 9))
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Bools = NDArray[np.bool_]


def evaluate_segments(
    run: Run, model: DualHeadModel, num_users: int = 300, seed: int = 0, progress: Progress = silent
) -> dict[str, Any]:
    """Both segments on the run's test month, for `num_users` random users with enough orders before it: plain numbers."""
    next_item, user_B = NextItem(run, model, progress), random_users(run, num_users, seed)
    found = {
        "users": len(user_B),
        "category": evaluate_categories(run, next_item, user_B),
        "repurchase": evaluate_repurchase(run, next_item, user_B, np.random.default_rng(seed)),
    }
    return dict(_without_nan(found))


def random_users(run: Run, num_users: int, seed: int) -> Int64:
    """Users with at least the recipe's `min_test_orders` orders before the test month."""
    early = run.training_log.orders().user_O
    eligible = np.flatnonzero(np.bincount(early, minlength=len(run.dataset.user_ids)) >= run.recipe.min_test_orders)
    if len(eligible) == 0:
        raise InvalidInputError(f"no user has {run.recipe.min_test_orders} orders before the last month, expected some")
    return np.sort(np.random.default_rng(seed).choice(eligible, min(num_users, len(eligible)), replace=False))


def evaluate_categories(run: Run, next_item: NextItem, user_B: Int64) -> dict[str, Any]:
    """Per depth: the categories of the next order by the generative head, by the user's own shares of lines smoothed with
    everybody's, and by everybody's alone."""
    samples, start_ms = next_item.samples, run.test_start_ms
    order_Q = evaluation_queries(run.dataset, start_ms, min_orders=run.recipe.min_test_orders).order_Q
    order_Q = order_Q[np.isin(samples.user_O[order_Q], user_B)]
    if len(order_Q) == 0:
        raise InvalidInputError(
            f"none of {len(user_B)} users has an order in the last month, expected some: take more users"
        )
    month_before = (samples.time_O >= start_ms - CALIBRATION_DAYS * DAY_MS) & (samples.time_O < start_ms)
    tuning_Q = np.flatnonzero(month_before & np.isin(samples.user_O, user_B))
    foreseen = [np.zeros((0, len(next_item.categories)))]
    now_Q = samples.time_O[order_Q]
    for _, probability in next_item.batches(samples.user_O[order_Q], now_Q, now_Q, "categories"):
        foreseen.append(category_probabilities(probability, next_item.categories).numpy())
    foreseen_QC = np.concatenate(foreseen)
    results: dict[str, Any] = {"orders": len(order_Q)}
    for depth in range(1, next_item.categories.item_ND.shape[1] + 1):
        test, tuning = (CategoryOrders.of(next_item, orders, depth) for orders in (order_Q, tuning_Q))
        if not test.has_lines_Q.any():
            continue
        share_C = everybodys_shares(next_item, start_ms, depth)
        tuning_share_C = everybodys_shares(next_item, start_ms - CALIBRATION_DAYS * DAY_MS, depth)
        weight = min(SMOOTHING, key=lambda weight: tuning.log_loss(tuning.own_shares(tuning_share_C, weight)).sum())
        head_QC = foreseen_QC[:, next_item.categories.at_depth(depth)]
        own_QC = test.own_shares(share_C, weight)
        saved_Q = test.log_loss(own_QC) - test.log_loss(head_QC)
        saved = mean_interval(saved_Q, samples.user_O[order_Q][test.has_lines_Q], np.random.default_rng(0))
        results[f"depth {depth}"] = {
            "categories": len(share_C),
            "generative": test.scores(head_QC),
            "own shares": test.scores(own_QC) | {"smoothing, lines": weight},
            "everybody's shares": test.scores(np.tile(share_C, (len(order_Q), 1))),
            "log-loss saved against own shares": saved[0],
            "log-loss saved against own shares, interval": list(saved[1:]),
        }
    return results


def everybodys_shares(next_item: NextItem, before_ms: int, depth: int) -> Float64:
    """[C] share of all lines before a time, one line more for each category."""
    orders, columns = next_item.orders, next_item.categories.at_depth(depth)
    stop = np.repeat(orders.time_O < before_ms, orders.last_O - orders.first_O)
    category = next_item.categories.item_ND[orders.item_P[stop], depth - 1]
    lines_C = np.bincount(category[category >= 0], minlength=len(next_item.categories))[columns] + 1.0
    return np.asarray(lines_C / lines_C.sum())


@dataclass(frozen=True)
class CategoryOrders:
    """Lines of each category of one depth in some orders, and in what their users ordered before them."""

    ordered_QC: Float64
    before_QC: Float64

    @classmethod
    def of(cls, next_item: NextItem, order_Q: Int64, depth: int) -> CategoryOrders:
        """Of orders given by their places in `dataset.orders()`."""
        orders, columns = next_item.orders, next_item.categories.at_depth(depth)
        row_P, line_P = expand(orders.first_O[order_Q], orders.last_O[order_Q])
        events = next_item.samples.history_events(orders.user_O[order_Q], orders.time_O[order_Q])
        bought = events.action_E == Action.ORDERED

        def count(row: Int64, item: Int64) -> Float64:
            # Categories of one depth are neighbours.
            category = next_item.categories.item_ND[item, depth - 1] - columns[0]
            key = (row * len(columns) + category)[category >= 0]
            return np.bincount(key, minlength=len(order_Q) * len(columns)).reshape(len(order_Q), -1).astype(np.float64)

        return cls(count(row_P, orders.item_P[line_P]), count(events.row_E[bought], events.item_E[bought]))

    @property
    def has_lines_Q(self) -> Bools:  # noqa: N802 - a shape suffix
        """Orders with a category of this depth: only these can be judged."""
        return np.asarray(self.ordered_QC.any(axis=1))

    def own_shares(self, share_C: Float64, weight: float) -> Float64:
        """[Q, C] shares of what the user bought before, and everybody's shares worth `weight` lines."""
        return np.asarray((self.before_QC + weight * share_C) / (self.before_QC.sum(axis=1, keepdims=True) + weight))

    def log_loss(self, forecast_QC: Float64) -> Float64:
        """Cross-entropy of the order's own distribution over categories, in nats, for each order that has lines."""
        forecast_QC = forecast_QC / forecast_QC.sum(axis=1, keepdims=True)
        share_QC = self.ordered_QC / np.maximum(self.ordered_QC.sum(axis=1, keepdims=True), 1)
        return np.asarray(-(share_QC * np.log(np.maximum(forecast_QC, 1e-12))).sum(axis=1)[self.has_lines_Q])

    def scores(self, forecast_QC: Float64) -> dict[str, float]:
        """HR@1: the top category is in the order. AUC: which orders have a category, mean over categories by such orders."""
        top = np.take_along_axis(self.ordered_QC, forecast_QC.argmax(axis=1)[:, None], axis=1)[:, 0] > 0
        has_QC = self.ordered_QC > 0
        judged = np.flatnonzero(has_QC.any(axis=0) & ~has_QC.all(axis=0))
        aucs = [auc(forecast_QC[:, c], has_QC[:, c]) for c in judged]
        return {
            "log-loss": float(self.log_loss(forecast_QC).mean()),
            "HR@1": float(top[self.has_lines_Q].mean()),
            "AUC": float(np.average(aucs, weights=has_QC[:, judged].sum(axis=0))) if aucs else float("nan"),
        }


def evaluate_repurchase(run: Run, next_item: NextItem, user_B: Int64, rng: np.random.Generator) -> dict[str, Any]:
    """Of items, and of categories of depth 2, that a user bought at least twice: days from the start of the month to the next
    purchase, by the generative head calibrated and as it is, and by habits."""
    start_ms, end_ms = run.test_start_ms, int(run.dataset.time_E.max()) + 1
    depth = min(2, next_item.categories.item_ND.shape[1])
    kinds = {
        "item": Purchases.of(run.dataset),
        f"category of depth {depth}": Purchases.of(run.dataset, next_item.categories, depth),
    }
    calibrations = calibrate(next_item, list(kinds.values()), user_B, start_ms)
    everybody = [purchases.habits(start_ms) for purchases in kinds.values()]
    chosen = [habits.repeated(user_B) for habits in everybody]
    parts = hazard_parts(next_item, chosen, start_ms)
    rhythm = Rhythm.of(next_item.orders, len(run.dataset.user_ids), start_ms)
    results: dict[str, Any] = {}
    for number, (name, purchases) in enumerate(kinds.items()):
        outcome = Outcome(
            *purchases.next_purchases(chosen[number].pairs, start_ms, end_ms), (end_ms - start_ms) / DAY_MS
        )
        calibrated = outcome.of_hazard(calibrations[number](parts[number]), rng)
        results[name] = {
            "pairs": len(chosen[number].pairs),
            "bought in the month": float(outcome.bought_P.mean()) if len(chosen[number].pairs) else None,
            "generative head and habit": calibrated
            | {f"weight of the {part}": w for part, w in asdict(calibrations[number]).items()},
            "generative head alone": outcome.of_hazard(Calibration()(parts[number]), rng),
        } | {
            habit: outcome.of_days(days_P, rng)
            for habit, days_P in habit_days(everybody[number], chosen[number], rhythm).items()
        }
    return results


def habit_days(everybody: Habits, chosen: Habits, rhythm: Rhythm) -> dict[str, Float64]:
    """[P] days to the next purchase by what a shop could do without a model: the mean interval, the user's own or
    everybody's, minus the days since the last purchase, at least 0; or days per purchase, since the first purchase of the
    target or since the user's first order of anything."""
    everybodys_P = everybody.target_interval_days(chosen.pairs.target_P)
    return {
        "own interval": np.maximum(chosen.interval_days_P - chosen.since_days_P, 0),
        "everybody's interval": np.maximum(everybodys_P - chosen.since_days_P, 0),
        "own rate since the first purchase": (chosen.span_days_P + chosen.since_days_P) / chosen.count_P,
        "own rate": 1 / rhythm.purchases_per_day(chosen),
    }


def _without_nan(value: Any) -> Any:
    """What cannot be said (an AUC without a positive) is None: JSON has no NaN."""
    if isinstance(value, dict):
        return {name: _without_nan(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and np.isnan(value) else value
