"""The losses. Each takes what it scores and what is true; none is told of a model. The tests hold each to a slow reference."""

# B = batch, N = items scored, C = candidates of one user, Q = target items, L = code levels, K = codebook size

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor

from trainer.model import MASKED


def multi_positive_infonce(
    scores_BN: Tensor,
    positive_BN: Tensor,
    log_q_N: Tensor | None = None,
    combined: Literal["mean", "sum"] = "mean",
    size_power: float = 0.0,
) -> Tensor:
    """Weighted mean over users of InfoNCE with several positives, in nats; the softmax is over all N.

    mean: the mean over a user's positives of −log softmax(score): each must be likely
    sum:  −log of the sum over the positives of softmax(score): one of them must be (the loss of the design)

    `log_q_N` is the log of each item's chance of being among the N when they were sampled; it is subtracted from the scores
    (Bengio & Senécal 2008), so that popular items are not punished for being drawn often. A user's weight is the number of
    positives to the power of `size_power`. Users without a positive do not count; without any user the loss is 0.
    """
    logits = scores_BN.float() if log_q_N is None else scores_BN.float() - log_q_N
    log_prob = F.log_softmax(logits, dim=-1)
    num_positives = positive_BN.sum(-1)
    has_positive = num_positives > 0
    if combined == "mean":
        per_user = -(log_prob * positive_BN).sum(-1) / num_positives.clamp(min=1)
    else:
        per_user = -log_prob.masked_fill(positive_BN == 0, MASKED).logsumexp(-1)
    weight = has_positive * num_positives.clamp(min=1) ** size_power
    return (per_user * weight).sum() / weight.sum().clamp(min=1)


def code_loss(log_likelihood_BQL: Tensor, weight_BQ: Tensor) -> Tensor:
    """Weighted mean over target items of −log-likelihood summed over code levels, in nats (arXiv:2305.05065).

    `weight_BQ` is 0 for padding; a sequence of targets whose weights are all 0 gives 0.
    """
    return -(log_likelihood_BQL.sum(-1) * weight_BQ).sum() / weight_BQ.sum().clamp(min=1e-6)


def distillation_kl(
    student_BC: Tensor, teacher_BC: Tensor, valid_BC: Tensor, gate_B: Tensor, temperature: float
) -> Tensor:
    """Mean over gated users of KL(teacher ‖ student) between the softmaxes over each user's candidates, in nats.

    Scaled by temperature², so that its gradient keeps its size as the temperature changes (Hinton et al. 2015,
    arXiv:1503.02531). The teacher's scores are constants.
    """
    teacher = F.log_softmax(teacher_BC.float().masked_fill(~valid_BC, MASKED).detach() / temperature, dim=-1)
    student = F.log_softmax(student_BC.float().masked_fill(~valid_BC, MASKED) / temperature, dim=-1)
    divergence = (teacher.exp() * (teacher - student)).masked_fill(~valid_BC, 0.0).sum(-1)
    return (divergence * gate_B).sum() / gate_B.sum().clamp(min=1) * temperature**2


def distillation_listwise(
    student_BC: Tensor, teacher_BC: Tensor, valid_BC: Tensor, gate_B: Tensor, top: int = 20
) -> Tensor:
    """ListMLE (Xia et al. 2008): −log-likelihood of the teacher's order of its `top` candidates under the student's
    Plackett-Luce model, per ranked item, averaged over gated users, in nats."""
    order = teacher_BC.float().masked_fill(~valid_BC, MASKED).detach().argsort(dim=-1, descending=True, stable=True)
    ranked = student_BC.float().masked_fill(~valid_BC, MASKED).gather(1, order)
    valid = valid_BC.gather(1, order)
    remaining = ranked.flip(-1).logcumsumexp(dim=-1).flip(-1)
    per_rank = (remaining - ranked)[:, :top] * valid[:, :top]
    per_user = per_rank.sum(-1) / valid[:, :top].sum(-1).clamp(min=1)
    return (per_user * gate_B).sum() / gate_B.sum().clamp(min=1)


def teacher_is_right(student_BC: Tensor, teacher_BC: Tensor, valid_BC: Tensor, positive_BC: Tensor) -> Tensor:
    """gate_B, 1.0 for users whose true items the teacher finds more likely among the candidates than the student does.

    A dense head can be better than its generative teacher, and then copying it everywhere makes it worse: it learns only
    where there is something to learn. Users without a true item among the candidates are never gated in.
    """

    def likelihood(scores_BC: Tensor) -> Tensor:
        log_prob = F.log_softmax(scores_BC.float().masked_fill(~valid_BC, MASKED), dim=-1)
        return (log_prob * positive_BC).sum(-1)

    better = likelihood(teacher_BC.detach()) > likelihood(student_BC.detach())
    return (better & (positive_BC.sum(-1) > 0)).float()
