"""What is liked beyond biases: vectors of users and items whose product is part of the rating of a pair.

Matrix factorisation (Koren, Bell and Volinsky, 2009) with one penalty for every user and item, which is soft
thresholding of singular values: directions of the residuals that are weaker than the penalty vanish, so that small data
leave no tastes at all. A side's own vector is not a parameter but folded in from its ratings, given the other sides'.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Double = NDArray[np.float64]
Rows = NDArray[np.int64]

SWEEPS = 10
VANISHED = 1e-3  # of a rating


@dataclass(frozen=True)
class Tastes:
    """Vectors of users `[n_users, k]` and items `[n_items, k]`; zeros for who has no rating."""

    user: Double
    item: Double


def fit_tastes(
    user: Rows, item: Rows, left: Double, n_users: int, n_items: int, *, size: int, penalty: float
) -> Tastes:
    """Alternating least squares on `left [n]`, what biases leave of the ratings.

    min sum (left_ui - p_u . q_i)^2 + penalty (|P|^2 + |Q|^2)
    """
    of_user, of_item = np.zeros((n_users, size)), np.random.default_rng(0).normal(size=(n_items, size))
    if not size:
        return Tastes(of_user, of_item)
    for _ in range(SWEEPS):
        of_user = fold_in(user, of_item[item], left, n_users, penalty)
        of_item = fold_in(item, of_user[user], left, n_items, penalty)
        if max(np.abs(of_user).max(), np.abs(of_item).max()) < VANISHED:
            return Tastes(np.zeros_like(of_user), np.zeros_like(of_item))
    return Tastes(of_user, of_item)


def fold_in(group: Rows, other: Double, left: Double, n: int, penalty: float) -> Double:
    """Vectors `[n, k]` of the groups from those of the other sides of their ratings `[r, k]`: ridge regressions."""
    size = other.shape[1]
    found = np.zeros((n, size))
    order = np.argsort(group, kind="stable")
    ends = np.searchsorted(group[order], np.arange(n + 1))
    shrink = penalty * np.eye(size)
    for one in np.flatnonzero(np.diff(ends)):
        rows = order[ends[one] : ends[one + 1]]
        given = other[rows]
        found[one] = np.linalg.solve(given.T @ given + shrink, given.T @ left[rows])
    return found
