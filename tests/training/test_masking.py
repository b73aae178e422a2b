"""Masks of item-modality cells."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from training.masking import levels, mask_cells, mask_levels


def full(n_items: int, n_modalities: int) -> np.ndarray:
    return np.ones((n_items, n_modalities), dtype=np.bool_)


def test_mask_cells_are_nested_and_exact() -> None:
    observed = np.random.default_rng(0).random((101, 3)) < 0.8
    masks = [mask_cells(observed, ratio, np.random.default_rng(5)) for ratio in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)]
    assert [int(mask.sum()) for mask in masks] == [round(r * observed.sum()) for r in (0, 0.2, 0.4, 0.6, 0.8, 1)]
    for smaller, larger in pairwise(masks):
        assert (smaller <= larger).all()
    assert not (masks[-1] & ~observed).any()
    assert (masks[2] != mask_cells(observed, 0.4, np.random.default_rng(6))).any()


@pytest.mark.parametrize("ratio", [-0.1, 1.1, float("nan")])
def test_mask_cells_bad_ratio(ratio: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        mask_cells(full(3, 2), ratio, np.random.default_rng(1))


@pytest.mark.parametrize(("n_modalities", "expected"), [(1, [600, 600]), (2, [400, 400, 400]), (3, [300] * 4)])
def test_mask_levels_has_equal_shares(n_modalities: int, expected: list[int]) -> None:
    mask = mask_levels(full(1200, n_modalities), np.random.default_rng(1))
    assert np.bincount(mask.sum(axis=1)).tolist() == expected
    alone = mask[mask.sum(axis=1) == 1]
    assert np.ptp(alone.sum(axis=0)) == 0  # each modality alone equally often


def test_mask_levels_with_a_given_share() -> None:
    mask = mask_levels(full(6710, 3), np.random.default_rng(1), share=0.6)
    assert np.bincount(mask.sum(axis=1)).tolist() == [2684, 1342, 1342, 1342]
    with pytest.raises(ValueError, match="between 0 and 1"):
        mask_levels(full(4, 2), np.random.default_rng(1), share=1.5)


def test_mask_levels_covers_observed_cells_only() -> None:
    observed = np.random.default_rng(0).random((300, 2)) < 0.5
    mask = mask_levels(observed, np.random.default_rng(1))
    assert mask.any()
    assert not (mask & ~observed).any()


def test_mask_levels_is_seeded() -> None:
    first, again, other = (mask_levels(full(50, 2), np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


def test_levels() -> None:
    assert levels(np.array([[True, True], [False, True], [False, False]])).tolist() == [0, 1, 2]
