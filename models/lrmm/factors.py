"""Latent factors: vectors of users and items whose inner product is what a rating holds beyond the biases.

Matrix factorisation (Koren, Bell and Volinsky, 2009) with one ridge penalty for every user and item, which is soft
thresholding of singular values: directions of the residuals that are weaker than the penalty vanish, so that small data
leave no factors at all. Biases are fitted together with the factors, since what a user gives too much by habit cannot
be told from what a user gives to a liked kind one after the other. A side's own vector is no parameter but folded in
from its ratings, given the other sides'.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.arrays import Double, Rows

SWEEPS = 12
VANISHED = 1e-3  # of a rating


@dataclass(frozen=True)
class Penalties:
    """Ridge penalties of the factors and of the biases that are fitted with them."""

    factors: float
    user_bias: float
    item_bias: float


@dataclass(frozen=True)
class LatentFactors:
    """Of users `[n_users, k + 1]` and items `[n_items, k + 1]`: k factors and the bias; zeros for who has no rating."""

    user: Double
    item: Double

    @property
    def size(self) -> int:
        """k, the number of factors."""
        return int(self.user.shape[1]) - 1

    @classmethod
    def zeros(cls, n_users: int, n_items: int, size: int) -> LatentFactors:
        """Of users and items of whom nothing is known."""
        return cls(np.zeros((n_users, size + 1)), np.zeros((n_items, size + 1)))


def fit_factors(
    user: Rows, item: Rows, residual: Double, n_users: int, n_items: int, *, size: int, penalties: Penalties
) -> LatentFactors:
    """Alternating least squares on `residual [n]`, ratings relative to their mean.

    min sum (residual_ui - b_u - b_i - p_u . q_i)^2 + penalties.factors (|P|^2 + |Q|^2) + those of the biases
    """
    if not size:
        return LatentFactors.zeros(n_users, n_items, size)
    items = np.random.default_rng(0).normal(size=(n_items, size + 1))
    items[:, size] = 0.0
    for _ in range(SWEEPS):
        users = fold_in(user, items[item], residual, n_users, (penalties.factors, penalties.user_bias))
        items = fold_in(item, users[user], residual, n_items, (penalties.factors, penalties.item_bias))
        if max(np.abs(users[:, :size]).max(), np.abs(items[:, :size]).max()) < VANISHED:
            return LatentFactors.zeros(n_users, n_items, size)
    return LatentFactors(users, items)


def fold_in(group: Rows, other: Double, residual: Double, n: int, penalties: tuple[float, float]) -> Double:
    """Factors and biases `[n, k + 1]` of the groups from those of the other sides of their ratings `[r, k + 1]`.

    Ridge regressions of what the other sides' biases leave, by the penalties of factors and of biases.
    """
    size = other.shape[1] - 1
    vectors = np.zeros((n, size + 1))
    order = np.argsort(group, kind="stable")
    ends = np.searchsorted(group[order], np.arange(n + 1))
    ridge = np.diag(np.r_[np.full(size, penalties[0]), penalties[1]])
    left = residual - other[:, size]
    given = np.concatenate([other[:, :size], np.ones((len(other), 1))], axis=1)
    for row in np.flatnonzero(np.diff(ends)):
        ratings = order[ends[row] : ends[row + 1]]
        inputs = given[ratings]
        vectors[row] = np.linalg.solve(inputs.T @ inputs + ridge, inputs.T @ left[ratings])
    return vectors
