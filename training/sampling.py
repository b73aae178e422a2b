"""Negative items and shuffled batches for pairwise training."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from models.arrays import Rows
from training.splits import Pairs


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
        self._tensors: dict[torch.device, tuple[Tensor, Tensor]] = {}

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

    def interacted(self, users: Tensor, items: Tensor) -> Tensor:
        """Which of the different `items` `[s]` each user `[b]` has interacted with, bool `[b, s]`, on their device."""
        start, item = self._on(items.device)
        place = torch.full((self._n_items,), -1, device=items.device)
        place[items] = torch.arange(len(items), device=items.device)
        users, row_of = torch.unique(users, return_inverse=True)  # who has a long history stands in many rows
        begin, count = start[users], start[users + 1] - start[users]
        row = torch.repeat_interleave(torch.arange(len(users), device=items.device), count)
        offset = torch.arange(len(row), device=items.device) + (begin - (count.cumsum(0) - count))[row]
        column = place[item[offset]]
        interacted = torch.zeros(len(users), len(items), dtype=torch.bool, device=items.device)
        interacted[row[column >= 0], column[column >= 0]] = True
        return interacted[row_of]

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Where each user's items start, and the items, on a device."""
        if device not in self._tensors:
            self._tensors[device] = (torch.from_numpy(self._start).to(device), torch.from_numpy(self._items).to(device))
        return self._tensors[device]

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
