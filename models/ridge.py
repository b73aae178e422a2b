"""Ridge regression with the penalty chosen by cross-validation: the closed form behind the training-free imputer and
the generator's base."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows
from torch import Tensor

PENALTIES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
FOLDS = 5
FEWEST_ROWS = 2 * FOLDS  # fewer tell nothing


def solve(inputs: Tensor, target: Tensor, penalty: float) -> Tensor:
    """argmin_W |inputs W - target|^2 + penalty |W|^2: `[n, w]`, `[n, r]` -> `[w, r]`, computed in double precision."""
    left = inputs.double()
    return _solved(left.T @ left, left.T @ target.double(), penalty).to(inputs.dtype)


@dataclass(frozen=True)
class Fit:
    """A fitted ridge.

    Attributes:
        weights: `[w, r]`.
        estimate: `[n, r]`, what it answers for every row; for one it learned from, by a fit without its fold.
    """

    weights: Tensor
    estimate: Tensor


def fit(inputs: Tensor, target: Tensor, rows: Tensor, *, base: Tensor | None = None) -> Fit:
    """Ridge weights `[w, r]` from inputs `[n, w]` to what `base` `[n, r]` leaves of the target `[n, r]`.

    The penalty is the one of `PENALTIES` with the best mean cosine between base + prediction and target in a
    cross-validation. Zero where there are fewer than `FEWEST_ROWS` rows.

    Args:
        rows: bool `[n]`, what to learn from.
    """
    chosen = rows.nonzero().squeeze(1)
    if len(chosen) < FEWEST_ROWS:
        return Fit(inputs.new_zeros(inputs.shape[1], target.shape[1]), torch.zeros_like(target))
    a, t = inputs[chosen].double(), target[chosen].double()
    start = torch.zeros_like(t) if base is None else base[chosen].double()
    fold = torch.arange(len(chosen), device=a.device) % FOLDS
    folds = [(fold == number).nonzero().squeeze(1) for number in range(FOLDS)]
    grams = [a[held].T @ a[held] for held in folds]
    moments = [a[held].T @ (t - start)[held] for held in folds]
    gram, moment = torch.stack(grams).sum(dim=0), torch.stack(moments).sum(dim=0)

    def left_out(penalty: float) -> Tensor:
        made = torch.empty_like(t)
        for held, own_gram, own_moment in zip(folds, grams, moments, strict=True):
            made[held] = a[held] @ _solved(gram - own_gram, moment - own_moment, penalty)
        return made

    def quality(made: Tensor) -> float:
        return float(F.cosine_similarity(start + made, t, dim=1).sum())

    tried = [(left_out(penalty), penalty) for penalty in PENALTIES]
    made, penalty = max(tried, key=lambda one: quality(one[0]))
    found = _solved(gram, moment, penalty).to(inputs.dtype)
    return Fit(found, (inputs @ found).index_copy(0, chosen, made.to(inputs.dtype)))


def _solved(gram: Tensor, moment: Tensor, penalty: float) -> Tensor:
    shifted = gram.clone()
    shifted.diagonal().add_(penalty)
    weights: Tensor = torch.cholesky_solve(moment, torch.linalg.cholesky(shifted))
    return weights
