"""Negative items and shuffled batches for pairwise training."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Pairs = NDArray[np.int64]
Rows = NDArray[np.int64]


class NegativeSampler:
    """Draws items that a user has not interacted with, uniformly and without a retry.

    With p_0 < p_1 < ... the positives of a user, the r-th item that is none of them is r + #{j : p_j - j <= r}. So one
    random number below the number of free items names one free item; the count is a binary search in the sorted keys
    `user * (n_items + 1) + p_j - j`.
    """

    def __init__(self, pairs: Pairs, n_users: int, n_items: int) -> None:
        """Take the positive (user, item) pairs, `[n, 2]`; repeated ones count once."""
        distinct = np.unique(pairs[:, 0] * n_items + pairs[:, 1])
        owner, item = np.divmod(distinct, n_items)
        count = np.bincount(owner, minlength=n_users)
        self._items = item
        self._n_items = n_items
        self._start = np.concatenate([[0], np.cumsum(count)])
        self._keys = owner * (n_items + 1) + item - (np.arange(len(distinct)) - self._start[owner])
        self._free = n_items - count
        self._stride = n_items + 1

    def sample(self, users: Rows, rng: np.random.Generator, size: int | None = None) -> Rows:
        """One negative item per user, `[b]`, or `size` independent ones, `[b, size]`.

        Raises:
            ValueError: a user has interacted with every item.
        """
        self._require(users, 1)
        owners = users if size is None else np.broadcast_to(users[:, None], (len(users), size))
        return self._free_item(owners, rng.integers(self._free[owners]))

    def sample_distinct(self, users: Rows, size: int, rng: np.random.Generator) -> Rows:
        """`size` different negative items per user, `[b, size]`.

        Raises:
            ValueError: a user has fewer free items than that.
        """
        self._require(users, size)
        ranks = [rng.choice(free, size, replace=False) for free in self._free[users]]
        return self._free_item(users[:, None], np.array(ranks, dtype=np.int64).reshape(len(users), size))

    def touched(self, users: Rows, items: Rows) -> NDArray[np.bool_]:
        """Which of the different `items` `[s]` each user has interacted with, `[b, s]`."""
        place = np.full(self._n_items, -1, dtype=np.int64)
        place[items] = np.arange(len(items))
        begin, count = self._start[users], np.diff(self._start)[users]
        row = np.repeat(np.arange(len(users)), count)
        column = place[self._items[np.arange(len(row)) + np.repeat(begin - (np.cumsum(count) - count), count)]]
        found = np.zeros((len(users), len(items)), dtype=np.bool_)
        found[row[column >= 0], column[column >= 0]] = True
        return found

    def _free_item(self, users: Rows, rank: Rows) -> Rows:
        place = np.searchsorted(self._keys, users * self._stride + rank, side="right")
        items: Rows = rank + place - self._start[users]
        return items

    def _require(self, users: Rows, size: int) -> None:
        short = self._free[users] < size
        if short.any():
            user = int(users[short.argmax()])
            raise ValueError(
                f"user row {user} has {self._free[user]} items left without interaction, {size} are needed as negatives"
            )


def batches(pairs: Pairs, batch_size: int, rng: np.random.Generator) -> Iterator[Pairs]:
    """One pass over the pairs `[n, 2]` in random order, as batches `[b, 2]`; the last one may be smaller."""
    shuffled = pairs[rng.permutation(len(pairs))]
    for start in range(0, len(pairs), batch_size):
        yield shuffled[start : start + batch_size]
