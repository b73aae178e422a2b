"""Tastes: what is strong is found, what is weak vanishes, and a newcomer is folded in."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from models.lrmm.factors import fit_tastes, fold_in
from models.lrmm.profiles import BIAS, STARS, Prior, tastes
from tests.models.test_reviews import reviewed

USERS, ITEMS = 40, 30


def world(noise: float = 0.1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two kinds of users and of items that like their own kind; most pairs are rated."""
    rng = np.random.default_rng(0)
    user, item = np.nonzero(rng.random((USERS, ITEMS)) < 0.8)
    return user, item, np.where((user + item) % 2 == 0, 0.8, -0.8) + noise * rng.normal(size=len(user))


def test_what_is_liked_is_told_of_pairs_that_nobody_rated() -> None:
    user, item, left = world()
    kept = np.random.default_rng(1).random(len(user)) < 0.7
    found = fit_tastes(user[kept], item[kept], left[kept], USERS, ITEMS, size=4, penalty=2.0)
    product = (found.user[user] * found.item[item]).sum(1)
    assert np.mean((left - product)[~kept] ** 2) < 0.1 * np.mean(left[~kept] ** 2)


def test_weak_directions_vanish() -> None:
    user, item, left = world()
    noise = np.random.default_rng(2).permutation(left)
    strength = np.linalg.svd(_matrix(user, item, noise), compute_uv=False)[0]
    assert not fit_tastes(user, item, noise, USERS, ITEMS, size=4, penalty=1.5 * strength).user.any()
    assert fit_tastes(user, item, left, USERS, ITEMS, size=4, penalty=5.0).user.any()
    assert fit_tastes(user, item, left, USERS, ITEMS, size=0, penalty=5.0).user.shape == (USERS, 0)


def _matrix(user: np.ndarray, item: np.ndarray, left: np.ndarray) -> np.ndarray:
    found = np.zeros((USERS, ITEMS))
    found[user, item] = left
    return found


def test_folding_in_is_a_ridge_regression() -> None:
    rng = np.random.default_rng(0)
    given, left = rng.normal(size=(6, 2)), rng.normal(size=6)
    found = fold_in(np.array([2, 0, 2, 2, 0, 2]), given, left, 3, 1.5)
    rows = [0, 2, 3, 5]
    expected = np.linalg.inv(given[rows].T @ given[rows] + 1.5 * np.eye(2)) @ given[rows].T @ left[rows]
    np.testing.assert_allclose(found[2], expected)
    assert not found[1].any()


def test_a_side_without_ratings_has_no_taste() -> None:
    one = replace(reviewed([5.0, 1.0]), taste=np.array([[1.0, 0.0], [-1.0, 0.0]]))
    raw = np.zeros((2, STARS))
    raw[0, BIAS] = 0.5
    prior = Prior(3.0, np.full(3, 1 / 3), 1.0)
    found = tastes(one, raw, prior, 1.0)
    assert found[0, 0] == pytest.approx((1.5 + 2.5) / (2 + 1))
    assert not found[1].any()
    assert not tastes(replace(one, value=np.array([np.nan, np.nan])), raw, prior, 1.0).any()
