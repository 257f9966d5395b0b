"""Item statistics of a month are those of the time before it, and nothing later."""

from __future__ import annotations

import math

import numpy as np

from baguni.domain.sequences import DAY_MS
from trainer.run import Run
from trainer.statistics import (
    FACTOR_DECAY_DAYS,
    FACTOR_REGULARISATION,
    TEXT_REGULARISATION,
    ItemStatistics,
    TextRegression,
    collaborative_factors,
)


def test_deleting_the_future_changes_no_statistic(trained: Run) -> None:
    log, end = trained.dataset, trained.test_start_ms
    whole, cut = ItemStatistics.of(log, end, (14, 28), 4), ItemStatistics.of(log.before(end), end, (14, 28), 4)
    np.testing.assert_array_equal(whole.start_T, cut.start_T)
    np.testing.assert_array_equal(whole.values_TNP, cut.values_TNP)


def test_every_moment_sees_the_statistics_of_the_month_it_lies_in(trained: Run) -> None:
    found = trained.statistics
    assert found.month(found.start_T).tolist() == list(range(len(found.start_T)))
    assert found.month(found.start_T[1:] - 1).tolist() == list(range(len(found.start_T) - 1))
    assert found.month(found.start_T[-1:] + 60 * DAY_MS).tolist() == [
        len(found.start_T) - 1
    ]  # a release goes on serving


def test_nothing_was_known_before_the_first_sale(trained: Run) -> None:
    assert (trained.statistics.values_TNP[0] == 0).all()


def test_counts_and_shares_by_hand(trained: Run) -> None:
    log, end = trained.training_log, trained.test_start_ms
    item, ordered = 7, log.order_E >= 0
    mine = ordered & (log.item_E == item)
    recent = mine & (log.time_E >= end - 28 * DAY_MS)
    buyers = len(np.unique(log.user_E[mine]))
    values = ItemStatistics.of(log, end, (28,)).newest_NP[item]
    assert math.isclose(values[0], math.log1p(recent.sum()) / 4, rel_tol=1e-5)
    assert math.isclose(values[1], math.log1p(mine.sum()) / 4, rel_tol=1e-5)
    assert math.isclose(values[2], (mine.sum() - buyers) / (mine.sum() + 10), rel_tol=1e-5)


def test_factors_are_ridge_regression_cut_to_its_largest_parts(trained: Run) -> None:
    log, end = trained.training_log, trained.test_start_ms
    ordered = log.order_E >= 0
    counts_UN = np.zeros((len(log.user_ids), len(log.catalog)))
    decay = np.exp(-(end - log.time_E[ordered]) / DAY_MS / FACTOR_DECAY_DAYS)
    np.add.at(counts_UN, (log.user_E[ordered], log.item_E[ordered]), decay)
    gram_NN = np.log1p(counts_UN).T @ np.log1p(counts_UN)
    share_N, vector_NN = np.linalg.eigh(gram_NN @ np.linalg.inv(gram_NN + FACTOR_REGULARISATION * np.eye(len(gram_NN))))
    kept = slice(-4, None)
    expected = (vector_NN[:, kept] * share_N[kept]) @ vector_NN[:, kept].T
    factors_NK = collaborative_factors(log, end, 4)
    np.testing.assert_allclose(factors_NK @ factors_NK.T, expected, atol=1e-5)


def test_a_log_too_small_for_the_factors_fills_them_with_zeros(trained: Run) -> None:
    log = trained.training_log
    many = collaborative_factors(log, trained.test_start_ms, len(log.catalog) + len(log.user_ids))
    assert np.isfinite(many).all()
    assert (many[:, min(len(log.catalog), len(log.user_ids)) :] == 0).all()
    assert (collaborative_factors(log.before(int(log.time_E.min())), trained.test_start_ms, 4) == 0).all()


def test_without_windows_there_are_no_statistics(trained: Run) -> None:
    assert ItemStatistics.of(trained.training_log, trained.test_start_ms, ()).num_statistics == 0


def test_an_item_without_orders_has_the_statistics_that_its_text_promises(trained: Run) -> None:
    counted = trained.statistics
    text_NX = trained.training_set.text_NT.numpy()
    ordered_N = np.ones(len(text_NX), bool)
    ordered_N[[2, 5, 11]] = False
    completed = counted.completed(text_NX, ordered_N)
    np.testing.assert_array_equal(completed.values_TNP[:-1], counted.values_TNP[:-1])
    np.testing.assert_array_equal(completed.newest_NP[ordered_N], counted.newest_NP[ordered_N])

    design = np.c_[text_NX[ordered_N], np.ones(ordered_N.sum())].astype(float)
    penalty = TEXT_REGULARISATION * np.diag([*np.ones(text_NX.shape[1]), 0.0])  # the mean is free
    weight = np.linalg.solve(design.T @ design + penalty, design.T @ counted.newest_NP[ordered_N])
    expected = np.c_[text_NX[~ordered_N], np.ones(3)] @ weight
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(completed.newest_NP[~ordered_N], expected, atol=1e-4)


def test_texts_promise_nothing_where_nothing_was_sold() -> None:
    promised = TextRegression.fit(np.zeros((0, 3), np.float32), np.zeros((0, 2), np.float32))
    assert (promised(np.ones((4, 3), np.float32)) == 0).all()
