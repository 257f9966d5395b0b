"""Each loss against a slow reference written from its definition."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch

from trainer.losses import (
    code_loss,
    distillation_kl,
    distillation_listwise,
    multi_positive_infonce,
    teacher_is_right,
)


def softmax(scores: list[float]) -> list[float]:
    total = sum(math.exp(s) for s in scores)
    return [math.exp(s) / total for s in scores]


def test_infonce_is_the_mean_over_positives_then_over_users_that_have_one() -> None:
    scores = [[1.0, 2.0, 0.5], [0.0, 0.0, 3.0], [1.0, 1.0, 1.0]]
    positive = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    first = -(math.log(softmax(scores[0])[0]) + math.log(softmax(scores[0])[1])) / 2
    second = -math.log(softmax(scores[1])[2])
    assert multi_positive_infonce(torch.tensor(scores), positive).item() == pytest.approx((first + second) / 2)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_a_users_weight_is_the_size_of_the_order_to_a_power(power: float) -> None:
    scores = [[1.0, 2.0, 0.5], [0.0, 0.0, 3.0], [1.0, 1.0, 1.0]]
    positive = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    first = -(math.log(softmax(scores[0])[0]) + math.log(softmax(scores[0])[1])) / 2
    second = -math.log(softmax(scores[1])[2])
    expected = (2**power * first + second) / (2**power + 1)
    loss = multi_positive_infonce(torch.tensor(scores), positive, size_power=power)
    assert loss.item() == pytest.approx(expected)


def test_infonce_of_the_design_is_the_log_of_the_sum_over_positives() -> None:
    scores = [[1.0, 2.0, 0.5], [0.0, 0.0, 3.0], [1.0, 1.0, 1.0]]
    positive = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    first = -math.log(sum(softmax(scores[0])[:2]))
    second = -math.log(softmax(scores[1])[2])
    loss = multi_positive_infonce(torch.tensor(scores), positive, combined="sum")
    assert loss.item() == pytest.approx((first + second) / 2)


def test_log_q_takes_popularity_out_of_the_scores() -> None:
    scores, log_q = [1.0, 2.0, 0.5], [math.log(0.9), math.log(0.1), 0.0]
    corrected = softmax([s - q for s, q in zip(scores, log_q, strict=True)])
    loss = multi_positive_infonce(torch.tensor([scores]), torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor(log_q))
    assert loss.item() == pytest.approx(-math.log(corrected[1]), rel=1e-5)


@pytest.mark.parametrize("combined", ["mean", "sum"])
def test_infonce_without_any_positive_is_zero_and_finite(combined: Literal["mean", "sum"]) -> None:
    assert multi_positive_infonce(torch.randn(2, 3), torch.zeros(2, 3), combined=combined).item() == 0


def test_code_loss_sums_levels_and_ignores_padding() -> None:
    likelihood = torch.tensor([[[0.5, 0.25], [0.125, 0.5]], [[0.1, 0.1], [0.2, 0.5]]])
    expected = -(math.log(0.5 * 0.25) + 3 * math.log(0.2 * 0.5)) / 4
    assert code_loss(likelihood.log(), torch.tensor([[1.0, 0.0], [0.0, 3.0]])).item() == pytest.approx(expected)
    assert code_loss(likelihood.log(), torch.zeros(2, 2)).item() == 0


def test_kl_is_taken_over_valid_candidates_of_gated_users() -> None:
    student, teacher = [[1.0, 0.0, 99.0], [5.0, 1.0, 0.0]], [[0.0, 2.0, -99.0], [0.0, 0.0, 0.0]]
    valid = torch.tensor([[True, True, False], [True, True, True]])
    p, q = softmax([0.0, 1.0]), softmax([0.5, 0.0])  # temperature 2
    expected = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) * 4
    loss = distillation_kl(torch.tensor(student), torch.tensor(teacher), valid, torch.tensor([1.0, 0.0]), 2.0)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_listwise_is_the_likelihood_of_the_teachers_order() -> None:
    student, teacher = [0.3, 1.0, -0.5], [3.0, 1.0, 2.0]  # the teacher's order: 0, 2, 1
    e = [math.exp(s) for s in student]
    expected = -(math.log(e[0] / sum(e)) + math.log(e[2] / (e[2] + e[1])) + math.log(1.0)) / 3
    valid = torch.ones(1, 3, dtype=torch.bool)
    loss = distillation_listwise(torch.tensor([student]), torch.tensor([teacher]), valid, torch.ones(1))
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_the_gate_opens_only_where_the_teacher_likes_the_true_items_more() -> None:
    student = torch.tensor([[2.0, 0.0], [0.0, 2.0], [0.0, 2.0]])
    teacher = torch.tensor([[0.0, 2.0], [2.0, 0.0], [2.0, 0.0]])
    positive = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    gate = teacher_is_right(student, teacher, torch.ones(3, 2, dtype=torch.bool), positive)
    assert gate.tolist() == [0.0, 1.0, 0.0]
