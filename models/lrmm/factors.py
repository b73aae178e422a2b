"""Latent factors: vectors of users and items whose inner product is what a rating holds beyond the biases.

Matrix factorisation (Koren, Bell and Volinsky, 2009) with one ridge penalty for every user and item, which is soft
thresholding of singular values: directions of the residuals that are weaker than the penalty vanish, so that small data
leave no factors at all. A side's own vector is no parameter but folded in from its ratings, given the other sides'.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.arrays import Double, Rows

SWEEPS = 10
VANISHED = 1e-3  # of a rating


@dataclass(frozen=True)
class LatentFactors:
    """Vectors of users `[n_users, k]` and items `[n_items, k]`; zeros for who has no rating."""

    user: Double
    item: Double

    @property
    def size(self) -> int:
        """k, the number of factors."""
        return int(self.user.shape[1])

    @classmethod
    def zeros(cls, n_users: int, n_items: int, size: int) -> LatentFactors:
        """Of users and items of whom nothing is known."""
        return cls(np.zeros((n_users, size)), np.zeros((n_items, size)))


def fit_factors(
    user: Rows, item: Rows, residual: Double, n_users: int, n_items: int, *, size: int, penalty: float
) -> LatentFactors:
    """Alternating least squares on `residual [n]`, what biases leave of the ratings.

    min sum (residual_ui - p_u . q_i)^2 + penalty (|P|^2 + |Q|^2)
    """
    if not size:
        return LatentFactors.zeros(n_users, n_items, size)
    items = np.random.default_rng(0).normal(size=(n_items, size))
    for _ in range(SWEEPS):
        users = fold_in(user, items[item], residual, n_users, penalty)
        items = fold_in(item, users[user], residual, n_items, penalty)
        if max(np.abs(users).max(), np.abs(items).max()) < VANISHED:
            return LatentFactors.zeros(n_users, n_items, size)
    return LatentFactors(users, items)


def fold_in(group: Rows, other: Double, residual: Double, n: int, penalty: float) -> Double:
    """Vectors `[n, k]` of the groups from those of the other sides of their ratings `[r, k]`: ridge regressions."""
    size = other.shape[1]
    vectors = np.zeros((n, size))
    order = np.argsort(group, kind="stable")
    ends = np.searchsorted(group[order], np.arange(n + 1))
    ridge = penalty * np.eye(size)
    for row in np.flatnonzero(np.diff(ends)):
        ratings = order[ends[row] : ends[row + 1]]
        inputs = other[ratings]
        vectors[row] = np.linalg.solve(inputs.T @ inputs + ridge, inputs.T @ residual[ratings])
    return vectors
