"""Linear algebra that several models need: lengths and directions of rows, principal axes, truncated singular value
decompositions, and ridge regression with a given penalty or one chosen by cross-validation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows
from scipy.sparse.linalg import svds
from torch import Tensor

from models.arrays import Double

PENALTIES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
FOLDS = 5
JUDGED = 5000  # rows that are enough to choose a penalty by
FEWEST_ROWS = 2 * FOLDS  # fewer say nothing

Numbers: TypeAlias = Any
"""A torch tensor or a NumPy array: the arithmetic of a model is written once for both."""


def library(numbers: Numbers) -> Any:
    """The library that computes with these numbers: torch or NumPy."""
    return torch if isinstance(numbers, Tensor) else np


def cast(numbers: Numbers, like: Numbers) -> Numbers:
    """Numbers of the type of others of the same library."""
    return numbers.to(like.dtype) if isinstance(numbers, Tensor) else numbers.astype(like.dtype)


# --- rows ------------------------------------------------------------------------------------------------------------


def length(rows: Numbers) -> Numbers:
    """Euclidean length of each row, `[..., k]` -> `[..., 1]`; of an array, a row's is the same alone and among others.

    `Tensor.norm` and `F.normalize` go through layers of Python that take longer than the norm of a single row.
    """
    if isinstance(rows, Tensor):
        return torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return np.sqrt(np.vecdot(rows, rows))[..., None]


def unit(rows: Numbers) -> Numbers:
    """Rows `[..., k]` brought to length 1; those of zeros stay."""
    return rows / length(rows).clip(min=1e-12)


# --- decompositions --------------------------------------------------------------------------------------------------


def principal_axes(gram: Numbers, size: int) -> tuple[Numbers, Numbers]:
    """The `size` largest eigenvalues `[size]` of a symmetric matrix `[d, d]`, largest first, and their eigenvectors
    `[d, size]`, each of whichever sign: the principal axes of centred rows X where the matrix is X^T X.

    Args:
        gram: a tensor or an array, in double precision; the answer is of the same kind.
    """
    xp = library(gram)
    values, vectors = xp.linalg.eigh(gram)
    return xp.flip(values, (0,))[:size], xp.flip(vectors, (1,))[:, :size]


def truncated_svd(matrix: sp.csr_array, rank: int) -> tuple[Double, Double, Double]:
    """The `rank` leading singular vectors and values of a sparse matrix `[m, n]`, by the Lanczos method (ARPACK): left
    `[m, rank]`, values `[rank]`, right `[rank, n]`.

    Args:
        rank: below both sides of the matrix.
    """
    # A start of its own, or else it would be drawn anew at each call.
    start = np.random.default_rng(0).standard_normal(min(matrix.shape))
    left, values, right = svds(sp.csc_array(matrix).astype(np.float64), k=rank, v0=start)
    return left, np.asarray(values, dtype=np.float64), right


def randomised_svd(matrix: sp.csr_array, rank: int, *, seed: int) -> tuple[Double, Double]:
    """About the `rank` leading left singular vectors `[m, rank]` of a sparse matrix `[m, n]` and their values `[rank]`,
    by a randomised range finder (Halko et al., 2011): many at once, in a fraction of the time of `truncated_svd`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        coordinates = matrix.tocoo()
        sparse = torch.sparse_coo_tensor(
            torch.from_numpy(np.stack(coordinates.coords)),
            torch.from_numpy(coordinates.data),
            size=matrix.shape,
            check_invariants=False,
        ).coalesce()
        left, values, _ = torch.svd_lowrank(sparse, rank, niter=4)
    return left.numpy(), values.numpy()


# --- ridge regression ------------------------------------------------------------------------------------------------


def ridge(inputs: Tensor, target: Tensor, penalty: float) -> Tensor:
    """argmin_W |inputs W - target|^2 + penalty |W|^2: `[n, w]`, `[n, r]` -> `[w, r]`, computed in double precision."""
    left = inputs.double()
    return _solved(left.T @ left, left.T @ target.double(), penalty).to(inputs.dtype)


def weighted_ridge(inputs: Tensor, targets: Tensor, weights: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """Ridge regression with row weights `[n]` and a free intercept: inputs `[n, k]`, targets `[n, t]` -> slopes
    `[k, t]`, intercept `[t]`."""
    share = (weights / weights.sum())[None]
    inputs_mean, targets_mean = share @ inputs, share @ targets
    root = weights[:, None].sqrt()
    slopes = ridge((inputs - inputs_mean) * root, (targets - targets_mean) * root, penalty)
    return slopes, (targets_mean - inputs_mean @ slopes)[0]


@dataclass(frozen=True)
class RidgeFit:
    """A fitted ridge regression.

    Attributes:
        weights: `[w, r]`.
        estimate: `[n, r]`, what it answers for every row; for one it learned from, by a fit without its fold.
    """

    weights: Tensor
    estimate: Tensor


def cross_validated_ridge(inputs: Tensor, target: Tensor, rows: Tensor, *, base: Tensor | None = None) -> RidgeFit:
    """Ridge weights `[w, r]` from inputs `[n, w]` to what `base` `[n, r]` leaves of the target `[n, r]`.

    The penalty is the one of `PENALTIES` with the best mean cosine between base + prediction and target in a
    cross-validation. Zero where there are fewer than `FEWEST_ROWS` rows.

    Args:
        rows: bool `[n]`, what to learn from.
    """
    chosen = rows.nonzero().squeeze(1)
    weights = inputs.new_zeros(inputs.shape[1], target.shape[1])
    if len(chosen) < FEWEST_ROWS:
        return RidgeFit(weights, torch.zeros_like(target))
    varying = inputs[chosen].any(dim=0).nonzero().squeeze(1)  # what says nothing of these rows gets no weight
    a, t = inputs[chosen][:, varying].double(), target[chosen].double()
    start = torch.zeros_like(t) if base is None else base[chosen].double()
    ridges = (_by_columns if len(a) >= len(varying) else _by_rows)(a, t - start)
    judged = _judged(len(a), a.device)

    def quality(penalty: float) -> float:
        predicted = start[judged] + ridges.left_out(penalty, judged)[judged]
        return float(F.cosine_similarity(predicted, t[judged], dim=1).sum())

    penalty = max(PENALTIES, key=quality)
    best = ridges.left_out(penalty, torch.ones_like(judged))
    weights[varying] = ridges.weights(penalty).to(inputs.dtype)
    return RidgeFit(weights, (inputs @ weights).index_copy(0, chosen, best.to(inputs.dtype)))


def _judged(count: int, device: torch.device) -> Tensor:
    """The rows by which a penalty is chosen, bool `[k]`: all, or of many `JUDGED` at most, of every fold as many."""
    return torch.arange(count, device=device) // FOLDS % math.ceil(count / JUDGED) == 0


@dataclass(frozen=True)
class _Ridges:
    """The ridges from some inputs `[k, w]` to a target `[k, r]`, by their penalty.

    Attributes:
        left_out: what is answered for each of some rows (bool `[k]`) by the ridge without the row's fold `[k, r]`, zero
            for the others.
        weights: of the ridge of all rows `[w, r]`.
    """

    left_out: Callable[[float, Tensor], Tensor]
    weights: Callable[[float], Tensor]


def _by_columns(inputs: Tensor, target: Tensor) -> _Ridges:
    """From the products of the inputs' columns: (X^T X + penalty)^-1 X^T Y."""
    folds = _folds(inputs)
    grams = [inputs[held].T @ inputs[held] for held in folds]
    moments = [inputs[held].T @ target[held] for held in folds]
    gram, moment = torch.stack(grams).sum(dim=0), torch.stack(moments).sum(dim=0)

    def left_out(penalty: float, among: Tensor) -> Tensor:
        predicted = torch.zeros_like(target)
        for fold, own_gram, own_moment in zip(folds, grams, moments, strict=True):
            held = fold & among
            predicted[held] = inputs[held] @ _solved(gram - own_gram, moment - own_moment, penalty)
        return predicted

    return _Ridges(left_out, lambda penalty: _solved(gram, moment, penalty))


def _by_rows(inputs: Tensor, target: Tensor) -> _Ridges:
    """From the products of the inputs' rows, of which there are fewer: X^T (X X^T + penalty)^-1 Y."""
    products, folds = inputs @ inputs.T, _folds(inputs)

    def left_out(penalty: float, among: Tensor) -> Tensor:
        predicted = torch.zeros_like(target)
        for fold in folds:
            held, rest = fold & among, products[~fold]
            predicted[held] = rest[:, held].T @ _solved(rest[:, ~fold], target[~fold], penalty)
        return predicted

    return _Ridges(left_out, lambda penalty: inputs.T @ _solved(products, target, penalty))


def _folds(inputs: Tensor) -> list[Tensor]:
    """The rows of each fold, bool `[k]`."""
    fold = torch.arange(len(inputs), device=inputs.device) % FOLDS
    return [fold == number for number in range(FOLDS)]


def _solved(gram: Tensor, moment: Tensor, penalty: float) -> Tensor:
    shifted = gram.clone()
    shifted.diagonal().add_(penalty)
    weights: Tensor = torch.cholesky_solve(moment, torch.linalg.cholesky(shifted))
    return weights
