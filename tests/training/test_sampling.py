"""Negative sampling and batches."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from training.sampling import NegativeSampler, batches

PAIRS = np.array([[0, 1], [0, 3], [0, 1], [2, 0], [2, 1], [2, 2], [2, 4]])


def test_samples_are_free_and_uniform() -> None:
    sampler = NegativeSampler(PAIRS, n_users=3, n_items=5)
    rng = np.random.default_rng(1)
    draws = sampler.sample(np.repeat([0, 1, 2], 6000), rng).reshape(3, 6000)
    for user, free in enumerate([[0, 2, 4], [0, 1, 2, 3, 4], [3]]):
        counts = np.bincount(draws[user], minlength=5)
        assert np.flatnonzero(counts).tolist() == free
        assert abs(counts[free] - 6000 / len(free)).max() < 200  # over five standard deviations


def test_never_a_positive_on_random_data() -> None:
    rng = np.random.default_rng(2)
    dense = rng.random((60, 40)) < rng.random((60, 1))
    dense[:, 0] = False
    users = np.repeat(np.arange(60), 200)
    drawn = NegativeSampler(np.argwhere(dense), 60, 40).sample(users, rng)
    assert not dense[users, drawn].any()
    reached = np.zeros_like(dense)
    reached[users, drawn] = True
    assert (reached | dense).mean() > 0.98


def test_several_and_distinct_negatives() -> None:
    sampler = NegativeSampler(PAIRS, n_users=3, n_items=5)
    several = sampler.sample(np.array([0, 2]), np.random.default_rng(1), size=7)
    assert several.shape == (2, 7)
    assert set(several[0]) <= {0, 2, 4}
    assert set(several[1]) == {3}
    distinct = sampler.sample_distinct(np.array([0, 1]), 3, np.random.default_rng(1))
    assert set(distinct[0]) == {0, 2, 4}
    assert len(set(distinct[1])) == 3


def test_touched_is_what_the_sets_say() -> None:
    rng = np.random.default_rng(3)
    dense = rng.random((12, 20)) < rng.random((12, 1))
    dense[4], dense[5] = False, True
    pairs = rng.permutation(np.concatenate([np.argwhere(dense), np.argwhere(dense)[:9]]))  # some twice
    sampler = NegativeSampler(pairs, 12, 20)
    histories = {user: {int(item) for owner, item in pairs if owner == user} for user in range(12)}
    users = np.array([4, 5, 5, 0, 11, 2, 4])
    for items in (rng.permutation(20), rng.permutation(20)[:6], np.array([], dtype=np.int64)):
        expected = [[int(item) in histories[user] for item in items] for user in users.tolist()]
        found = sampler.interacted(torch.from_numpy(users), torch.from_numpy(items))
        assert found.shape == (7, len(items))
        assert found.tolist() == expected
    assert sampler.interacted(torch.from_numpy(users[:0]), torch.arange(3)).shape == (0, 3)


def test_users_with_too_few_free_items() -> None:
    sampler = NegativeSampler(np.array([[0, 0], [1, 0], [1, 1]]), n_users=2, n_items=2)
    rng = np.random.default_rng(1)
    assert sampler.sample(np.array([0]), rng).tolist() == [1]
    with pytest.raises(ValueError, match="user row 1 has 0 items left without interaction, 1 are needed"):
        sampler.sample(np.array([0, 1]), rng)
    with pytest.raises(ValueError, match="user row 0 has 1 items left without interaction, 2 are needed"):
        sampler.sample_distinct(np.array([0]), 2, rng)


def test_batches_cover_everything_once() -> None:
    pairs = np.stack([np.arange(10), np.arange(10) * 7], axis=1)
    parts = list(batches(pairs, 4, np.random.default_rng(1)))
    assert [len(part) for part in parts] == [4, 4, 2]
    together = np.concatenate(parts)
    assert (together[np.argsort(together[:, 0])] == pairs).all()
    assert (together != pairs).any()
    again = np.concatenate(list(batches(pairs, 4, np.random.default_rng(1))))
    assert (together == again).all()


def test_an_epoch_is_fast() -> None:
    rng = np.random.default_rng(1)
    pairs = np.stack([rng.integers(10_000, size=80_000), rng.integers(7_000, size=80_000)], axis=1)
    sampler = NegativeSampler(pairs, 10_000, 7_000)
    fastest = min(timed_epoch(pairs, sampler, rng) for _ in range(5))
    assert fastest < 0.25  # about 0.02 s on an idle core; the bound is for crowded machines


def timed_epoch(pairs: np.ndarray, sampler: NegativeSampler, rng: np.random.Generator) -> float:
    start = time.perf_counter()
    for batch in batches(pairs, 2048, rng):
        sampler.sample(batch[:, 0], rng)
    return time.perf_counter() - start
