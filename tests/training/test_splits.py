"""Splits of interactions."""

from __future__ import annotations

import numpy as np
import pytest

from training.datasets.base import TEST, TRAIN, VALID
from training.splits import Parts, draw_new_items, hold_out_items, leave_one_out, random_split, time_split


def pairs_of(*counts: int) -> np.ndarray:
    """User k has counts[k] items; rows shuffled, so that nothing leans on their order."""
    pairs = np.array([(user, item) for user, count in enumerate(counts) for item in range(count)])
    return np.random.default_rng(0).permutation(pairs)


def test_random_split_shares_by_user() -> None:
    counts = (1, 2, 3, 10, 25, 100)
    pairs = pairs_of(*counts)
    split = random_split(pairs, np.random.default_rng(1))
    for user, expected in enumerate([(1, 0, 0), (2, 0, 0), (1, 1, 1), (8, 1, 1), (19, 3, 3), (80, 10, 10)]):
        part = split[pairs[:, 0] == user]
        assert tuple(np.bincount(part, minlength=3)) == expected


def test_random_split_is_seeded_and_random() -> None:
    pairs = pairs_of(50, 50)
    first, again, other = (random_split(pairs, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


def test_random_split_takes_every_place_alike() -> None:
    pairs = pairs_of(*[10] * 2000)
    test_items = pairs[random_split(pairs, np.random.default_rng(3)) == TEST, 1]
    assert np.bincount(test_items, minlength=10).min() > 140  # 200 each, standard deviation 13


def test_random_split_without_validation() -> None:
    split = random_split(pairs_of(10, 20), np.random.default_rng(1), valid=0.0)
    assert np.bincount(split, minlength=3).tolist() == [27, 0, 3]


def test_time_split_takes_the_last() -> None:
    pairs = pairs_of(2, 3, 10, 40)
    times = 1000.0 * pairs[:, 0] + pairs[:, 1]
    split = time_split(pairs, times, np.random.default_rng(0))
    for user, (train, valid, test) in enumerate([(2, 0, 0), (1, 1, 1), (7, 1, 2), (28, 4, 8)]):
        own = pairs[:, 0] == user
        in_order = split[own][np.argsort(times[own])]
        assert in_order.tolist() == [TRAIN] * train + [VALID] * valid + [TEST] * test


def test_time_split_without_some_times() -> None:
    """What has no time is the oldest; ties are in random order."""
    pairs = np.array([[0, item] for item in range(10)])
    times = np.array([np.nan] * 5 + [7.0] * 5)
    seen = set()
    for seed in range(20):
        split = time_split(pairs, times, np.random.default_rng(seed))
        assert (split[:5] == TRAIN).all()
        seen.add(tuple(split[5:].tolist()))
    assert len(seen) > 5


def test_leave_one_out() -> None:
    pairs = pairs_of(2, 3, 40)
    split = leave_one_out(pairs, np.random.default_rng(1))
    counts = [np.bincount(split[pairs[:, 0] == user], minlength=3).tolist() for user in range(3)]
    assert counts == [[2, 0, 0], [1, 1, 1], [38, 1, 1]]


def test_draw_new_items() -> None:
    rows = draw_new_items(101, np.random.default_rng(1))
    assert len(rows) == 20
    assert (np.diff(rows) > 0).all()
    assert 0 <= rows[0] <= rows[-1] < 101


def test_hold_out_items_moves_training_pairs_only() -> None:
    pairs = np.array([[0, 5], [0, 6], [1, 5], [1, 7], [2, 5]])
    split = np.array([TRAIN, TRAIN, VALID, TRAIN, TEST], dtype=np.uint8)
    held = hold_out_items(pairs, split, np.array([5, 7]))
    assert held.tolist() == [TEST, TRAIN, VALID, TEST, TEST]
    assert split.tolist() == [TRAIN, TRAIN, VALID, TRAIN, TEST]


def test_parts_leave_out_users_without_training() -> None:
    pairs = np.array([[0, 1], [0, 2], [1, 1], [1, 3], [0, 4]])
    split = np.array([TRAIN, VALID, VALID, TEST, TEST], dtype=np.uint8)
    parts = Parts.of(pairs, split)
    assert parts.valid.tolist() == [[0, 2], [1, 1]]
    assert parts.test.tolist() == [[1, 3], [0, 4]]
    kept = parts.evaluable()
    assert kept.train.tolist() == [[0, 1]]
    assert kept.valid.tolist() == [[0, 2]]
    assert kept.test.tolist() == [[0, 4]]


@pytest.mark.parametrize("split_of", [random_split, leave_one_out])
def test_no_interactions(split_of: object) -> None:
    assert callable(split_of)
    assert len(split_of(np.empty((0, 2), dtype=np.int64), np.random.default_rng(1))) == 0
