"""Losses as pure functions of tensors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows
from torch import Tensor

BLOCK = 2**21  # scores held at once: what is done to a table that fits no cache takes the longer
NEVER = -1e9  # a logit; an infinite one has no gradient where a row has no other


def bpr(positive: Tensor, negative: Tensor, weights: Tensor | None = None) -> Tensor:
    """Bayesian personalised ranking over scores `[b]`: mean of -log sigmoid(positive - negative), by weights `[b]`."""
    return _weighted_mean(F.softplus(negative - positive), weights)


def sampled_softmax(
    positive: Tensor,
    negatives: Tensor,
    temperature: float,
    *,
    out_of: int,
    excluded: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of the positive's score `[b]` against the scores of negatives `[b, s]` sampled from `out_of` items.

    Each negative stands for out_of / s items, so that the loss estimates the one over the whole catalogue. Its gradient
    weighs a negative by its softmax probability: hard ones count most without being sought.

    Args:
        excluded: bool `[b, s]`, negatives that are none for that row.
        weights: `[b]`, how much each row counts.
    """
    if negatives.shape[1] == 0:
        return positive.sum() * 0
    stands_for = math.log(max(out_of / negatives.shape[1], 1.0))
    scores, best = negatives / temperature, positive / temperature
    if excluded is not None:
        scores.masked_fill_(excluded, NEVER)  # in place, as all that is done to the whole table takes time
    total = torch.logaddexp(best, scores.logsumexp(dim=1) + stands_for)
    return _weighted_mean(total - best, weights)


ScoreLoss: TypeAlias = Callable[[Tensor, Tensor, slice], Tensor]
"""A mean, by their weights, over some rows: from the positives' scores `[k]`, the negatives' `[k, s]` and the rows."""


def of_scores(users: Tensor, positives: Tensor, negatives: Tensor, weights: Tensor, loss: ScoreLoss) -> Tensor:
    """The loss of vectors `[b, d]`, `[b, d]` and `[s, d]` whose inner products are the scores, rows weighing `[b]`.

    Where the table of all scores is large, a CPU computes it some rows at a time, the gradient along with them, so that
    it never stands in memory as a whole.
    """
    if users.device.type != "cpu" or len(users) * len(negatives) <= BLOCK:
        return loss((users * positives).sum(dim=1), users @ negatives.T, slice(None))
    mean: Tensor = _InBlocks.apply(users, positives, negatives, weights, loss)  # type: ignore[no-untyped-call]
    return mean


class _InBlocks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, users: Tensor, positives: Tensor, negatives: Tensor, weights: Tensor, loss: ScoreLoss
    ) -> Tensor:
        total, weight = users.new_zeros(()), weights.sum().clamp_min(1e-12)
        towards = [torch.empty_like(users), torch.empty_like(positives), torch.zeros_like(negatives)]
        step = max(1, BLOCK // len(negatives))
        for start in range(0, len(users), step):
            rows = slice(start, start + step)
            with torch.enable_grad():
                u, i, j = (block.detach().requires_grad_() for block in (users[rows], positives[rows], negatives))
                part = loss((u * i).sum(dim=1), u @ j.T, rows) * (weights[rows].sum() / weight)
                gradients = torch.autograd.grad(part, (u, i, j))
            total += part.detach()
            towards[0][rows], towards[1][rows] = gradients[:2]
            towards[2] += gradients[2]
        ctx.save_for_backward(*towards)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return *(gradients[0] * towards for towards in ctx.saved_tensors), None, None


def _weighted_mean(values: Tensor, weights: Tensor | None) -> Tensor:
    return values.mean() if weights is None else (values * weights).sum() / weights.sum().clamp_min(1e-12)


def info_nce(left: Tensor, right: Tensor, temperature: float) -> Tensor:
    """InfoNCE of rows `[b, d]`: each left row against all right rows, its own one the positive (eq. 8, 20, 21).

    Cosine similarities, log-sum-exp form. Zero for an empty batch.
    """
    if len(left) == 0:
        return left.sum()
    logits = F.normalize(left, dim=1) @ F.normalize(right, dim=1).T / temperature
    return (logits.logsumexp(dim=1) - logits.diagonal()).mean()


def gaussian_log_likelihood(value: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """log N(value; mean, exp(log_variance)) summed over the last axis, without its constant. Shapes `[b, d]`."""
    return -0.5 * (((value - mean) ** 2) / log_variance.exp() + log_variance).sum(dim=-1)


def club(value: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """vCLUB upper bound of I(condition; value), with q(value | condition) = N(mean, exp(log_variance)) (eq. 7).

    The expectation over the product of the marginals is taken exactly over all pairs of the batch `[b, d]`, in closed
    form: mean over j of (value_j - mean_i)^2 = (mean_i - E[value])^2 + Var[value].
    """
    if len(value) == 0:
        return value.sum()
    joint = (value - mean) ** 2
    marginal = (mean - value.mean(dim=0)) ** 2 + value.var(dim=0, unbiased=False)
    return 0.5 * ((marginal - joint) / log_variance.exp()).sum(dim=-1).mean()


def masked_mse(estimate: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error over the rows `[b]` of `mask`; zero where there are none. Shapes `[b, d]`."""
    squared = ((estimate - target) ** 2).mean(dim=1)
    weights = mask.to(squared.dtype)
    return (squared * weights).sum() / weights.sum().clamp_min(1)


def cosine_gap(estimate: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean of 1 - cosine over the rows `[b]` of `mask`; zero where there are none. Shapes `[b, d]`."""
    gap = 1 - F.cosine_similarity(estimate, target, dim=1)
    weights = mask.to(gap.dtype)
    return (gap * weights).sum() / weights.sum().clamp_min(1)


def l2(*parameters: Tensor) -> Tensor:
    """Half the squared norm of batch embeddings, divided by the batch size, as in BPR's regulariser."""
    total = torch.stack([parameter.pow(2).sum() for parameter in parameters]).sum()
    return 0.5 * total / max(len(parameters[0]), 1)


def sparsity(activation: Tensor, rho: float) -> Tensor:
    """KL divergence of hidden units' mean activations over the batch `[..., b, h]` from `rho`, mean over the units."""
    mean = activation.mean(dim=-2).clamp(1e-6, 1 - 1e-6)
    return (rho * (rho / mean).log() + (1 - rho) * ((1 - rho) / (1 - mean)).log()).mean()
