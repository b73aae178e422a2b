"""Latent factors: strong directions are found, weak ones vanish, and a newcomer is folded in."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from models.lrmm.factors import LatentFactors, Penalties, fit_factors, fold_in
from models.lrmm.model import ITEM, USER
from models.lrmm.profiles import BIAS, STATISTICS, Prior, fold_in_factors
from tests.models.test_reviews import reviewed

USERS, ITEMS = 40, 30


def world(noise: float = 0.1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two kinds of users and of items that like their own kind; most pairs are rated."""
    rng = np.random.default_rng(0)
    user, item = np.nonzero(rng.random((USERS, ITEMS)) < 0.8)
    return user, item, np.where((user + item) % 2 == 0, 0.8, -0.8) + noise * rng.normal(size=len(user))


def penalties(of_factors: float) -> Penalties:
    return Penalties(of_factors, 1.0, 1.0)


def predicted(found: LatentFactors, user: np.ndarray, item: np.ndarray) -> np.ndarray:
    size = found.size
    product: np.ndarray = (found.user[user, :size] * found.item[item, :size]).sum(1)
    return product + found.user[user, size] + found.item[item, size]


def test_pairs_that_nobody_rated_are_predicted() -> None:
    user, item, residual = world()
    kept = np.random.default_rng(1).random(len(user)) < 0.7
    found = fit_factors(user[kept], item[kept], residual[kept], USERS, ITEMS, size=4, penalties=penalties(2.0))
    product = predicted(found, user, item)
    assert np.mean((residual - product)[~kept] ** 2) < 0.1 * np.mean(residual[~kept] ** 2)


def test_weak_directions_vanish() -> None:
    user, item, residual = world()
    noise = np.random.default_rng(2).permutation(residual)
    strength = np.linalg.svd(_matrix(user, item, noise), compute_uv=False)[0]
    assert not fit_factors(user, item, noise, USERS, ITEMS, size=4, penalties=penalties(1.5 * strength)).user.any()
    assert fit_factors(user, item, residual, USERS, ITEMS, size=4, penalties=penalties(5.0)).user.any()
    assert fit_factors(user, item, residual, USERS, ITEMS, size=0, penalties=penalties(5.0)).user.shape == (USERS, 1)


def _matrix(user: np.ndarray, item: np.ndarray, residual: np.ndarray) -> np.ndarray:
    found = np.zeros((USERS, ITEMS))
    found[user, item] = residual
    return found


def test_biases_are_fitted_together_with_the_factors() -> None:
    """Who rated more of what is liked has no bias for that: fitted one after the other, it would be taken for one."""
    user, item, residual = world(noise=0.0)
    kept = (user + item) % 2 == 0
    kept |= np.random.default_rng(1).random(len(user)) < 0.3
    found = fit_factors(
        user[kept], item[kept], residual[kept], USERS, ITEMS, size=4, penalties=Penalties(1.0, 5.0, 5.0)
    )
    first = np.bincount(user[kept], residual[kept], USERS) / (np.bincount(user[kept], minlength=USERS) + 5.0)
    assert np.abs(found.user[:, 4]).mean() < 0.7 * np.abs(first).mean()
    error = residual - predicted(found, user, item)
    assert np.mean(error[~kept] ** 2) < 0.1 * np.mean(residual[~kept] ** 2)


def test_folding_in_is_a_ridge_regression() -> None:
    rng = np.random.default_rng(0)
    given, residual = rng.normal(size=(6, 3)), rng.normal(size=6)
    found = fold_in(np.array([2, 0, 2, 2, 0, 2]), given, residual, 3, (1.5, 4.0))
    rows = [0, 2, 3, 5]
    inputs = np.column_stack([given[rows, :2], np.ones(4)])
    left = residual[rows] - given[rows, 2]  # without the other sides' biases
    expected = np.linalg.inv(inputs.T @ inputs + np.diag([1.5, 1.5, 4.0])) @ inputs.T @ left
    np.testing.assert_allclose(found[2], expected)
    assert not found[1].any()


@pytest.mark.parametrize(("side", "places"), [(USER, (1, 2)), (ITEM, (2, 1))])
def test_what_a_side_brings_to_an_affinity(side: str, places: tuple[int, int]) -> None:
    """Factors, what the bias differs by from the profile's, and a one for the other side's; nothing without ratings."""
    one = replace(reviewed([5.0, 1.0]), other_factors=np.array([[1.0, 0.2], [-1.0, 0.0]]))
    raw = np.zeros((2, STATISTICS))
    raw[0, BIAS] = 0.5
    prior = Prior(3.0, np.full(3, 1 / 3), 1.0)
    found = fold_in_factors(side, one, raw, prior, Penalties(1.0, 2.0, 2.0))
    inputs, left = np.array([[1.0, 1.0], [-1.0, 1.0]]), np.array([2.0 - 0.2, -2.0])
    expected = np.linalg.solve(inputs.T @ inputs + np.diag([1.0, 2.0]), inputs.T @ left)
    difference, shared = places
    assert found[0, 0] == pytest.approx(expected[0])
    assert found[0, difference] == pytest.approx(expected[1] - 0.5)
    assert found[0, shared] == 1
    assert not found[1].any()
    unrated = replace(one, value=np.array([np.nan, np.nan]))
    assert not fold_in_factors(side, unrated, raw, prior, Penalties(1.0, 2.0, 2.0)).any()
