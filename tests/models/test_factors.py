"""Latent factors: strong directions are found, weak ones vanish, and a newcomer is folded in."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from models.lrmm.factors import fit_factors, fold_in
from models.lrmm.profiles import BIAS, STATISTICS, Prior, fold_in_factors
from tests.models.test_reviews import reviewed

USERS, ITEMS = 40, 30


def world(noise: float = 0.1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two kinds of users and of items that like their own kind; most pairs are rated."""
    rng = np.random.default_rng(0)
    user, item = np.nonzero(rng.random((USERS, ITEMS)) < 0.8)
    return user, item, np.where((user + item) % 2 == 0, 0.8, -0.8) + noise * rng.normal(size=len(user))


def test_pairs_that_nobody_rated_are_predicted() -> None:
    user, item, residual = world()
    kept = np.random.default_rng(1).random(len(user)) < 0.7
    found = fit_factors(user[kept], item[kept], residual[kept], USERS, ITEMS, size=4, penalty=2.0)
    product = (found.user[user] * found.item[item]).sum(1)
    assert np.mean((residual - product)[~kept] ** 2) < 0.1 * np.mean(residual[~kept] ** 2)


def test_weak_directions_vanish() -> None:
    user, item, residual = world()
    noise = np.random.default_rng(2).permutation(residual)
    strength = np.linalg.svd(_matrix(user, item, noise), compute_uv=False)[0]
    assert not fit_factors(user, item, noise, USERS, ITEMS, size=4, penalty=1.5 * strength).user.any()
    assert fit_factors(user, item, residual, USERS, ITEMS, size=4, penalty=5.0).user.any()
    assert fit_factors(user, item, residual, USERS, ITEMS, size=0, penalty=5.0).user.shape == (USERS, 0)


def _matrix(user: np.ndarray, item: np.ndarray, residual: np.ndarray) -> np.ndarray:
    found = np.zeros((USERS, ITEMS))
    found[user, item] = residual
    return found


def test_folding_in_is_a_ridge_regression() -> None:
    rng = np.random.default_rng(0)
    given, residual = rng.normal(size=(6, 2)), rng.normal(size=6)
    found = fold_in(np.array([2, 0, 2, 2, 0, 2]), given, residual, 3, 1.5)
    rows = [0, 2, 3, 5]
    expected = np.linalg.inv(given[rows].T @ given[rows] + 1.5 * np.eye(2)) @ given[rows].T @ residual[rows]
    np.testing.assert_allclose(found[2], expected)
    assert not found[1].any()


def test_a_side_without_ratings_has_no_factors() -> None:
    one = replace(reviewed([5.0, 1.0]), other_factors=np.array([[1.0, 0.0], [-1.0, 0.0]]))
    raw = np.zeros((2, STATISTICS))
    raw[0, BIAS] = 0.5
    prior = Prior(3.0, np.full(3, 1 / 3), 1.0)
    found = fold_in_factors(one, raw, prior, 1.0)
    assert found[0, 0] == pytest.approx((1.5 + 2.5) / (2 + 1))
    assert not found[1].any()
    assert not fold_in_factors(replace(one, value=np.array([np.nan, np.nan])), raw, prior, 1.0).any()
