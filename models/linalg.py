"""Ridge regression with the penalty chosen by cross-validation: the closed form behind the training-free imputer and
the generator's base."""

from __future__ import annotations

from collections.abc import Callable
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
    weights = inputs.new_zeros(inputs.shape[1], target.shape[1])
    if len(chosen) < FEWEST_ROWS:
        return Fit(weights, torch.zeros_like(target))
    read = inputs[chosen].any(dim=0).nonzero().squeeze(1)  # what says nothing of these rows gets no weight
    a, t = inputs[chosen][:, read].double(), target[chosen].double()
    start = torch.zeros_like(t) if base is None else base[chosen].double()
    ridges = (_by_columns if len(a) >= len(read) else _by_rows)(a, t - start)
    tried = [(ridges.left_out(penalty), penalty) for penalty in PENALTIES]
    made, penalty = max(tried, key=lambda one: float(F.cosine_similarity(start + one[0], t, dim=1).sum()))
    weights[read] = ridges.weights(penalty).to(inputs.dtype)
    return Fit(weights, (inputs @ weights).index_copy(0, chosen, made.to(inputs.dtype)))


@dataclass(frozen=True)
class _Ridges:
    """The ridges from some inputs `[k, w]` to a target `[k, r]`, by their penalty.

    Attributes:
        left_out: what is answered for each row by the ridge without the row's fold `[k, r]`.
        weights: of the ridge of all rows `[w, r]`.
    """

    left_out: Callable[[float], Tensor]
    weights: Callable[[float], Tensor]


def _by_columns(inputs: Tensor, target: Tensor) -> _Ridges:
    """From the products of the inputs' columns: (X^T X + penalty)^-1 X^T Y."""
    folds = _folds(inputs)
    grams = [inputs[held].T @ inputs[held] for held in folds]
    moments = [inputs[held].T @ target[held] for held in folds]
    gram, moment = torch.stack(grams).sum(dim=0), torch.stack(moments).sum(dim=0)

    def left_out(penalty: float) -> Tensor:
        made = torch.empty_like(target)
        for held, own_gram, own_moment in zip(folds, grams, moments, strict=True):
            made[held] = inputs[held] @ _solved(gram - own_gram, moment - own_moment, penalty)
        return made

    return _Ridges(left_out, lambda penalty: _solved(gram, moment, penalty))


def _by_rows(inputs: Tensor, target: Tensor) -> _Ridges:
    """From the products of the inputs' rows, of which there are fewer: X^T (X X^T + penalty)^-1 Y."""
    products, folds = inputs @ inputs.T, _folds(inputs)

    def left_out(penalty: float) -> Tensor:
        made = torch.empty_like(target)
        for held in folds:
            rest = products[~held]
            made[held] = rest[:, held].T @ _solved(rest[:, ~held], target[~held], penalty)
        return made

    return _Ridges(left_out, lambda penalty: inputs.T @ _solved(products, target, penalty))


def _folds(inputs: Tensor) -> list[Tensor]:
    """The rows of each fold, bool `[k]`."""
    fold = torch.arange(len(inputs), device=inputs.device) % FOLDS
    return [fold == number for number in range(FOLDS)]


def _solved(gram: Tensor, moment: Tensor, penalty: float) -> Tensor:
    shifted = gram.clone()
    shifted.diagonal().add_(penalty)
    found: Tensor = torch.cholesky_solve(moment, torch.linalg.cholesky(shifted))
    return found
