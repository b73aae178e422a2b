"""Which interactions are for training, validation and test."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from models.arrays import Double, Rows
from models.feedback import deciding_events
from training.datasets.base import TEST, TRAIN, VALID, Dataset

FEWEST = 3  # a user with fewer interactions has nothing to spare


class SplitName(StrEnum):
    """How interactions are divided into training, validation and test."""

    AUTO = "auto"
    RANDOM = "random"
    TIME = "time"


Pairs = Rows
Split = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Parts:
    """(user row, item row) pairs by part, each `[k, 2]`."""

    train: Pairs
    valid: Pairs
    test: Pairs

    @classmethod
    def of(cls, pairs: Pairs, split: Split) -> Parts:
        """The parts of pairs `[n, 2]` under their split `[n]`."""
        return cls(*(pairs[split == part] for part in (TRAIN, VALID, TEST)))

    def evaluable(self) -> Parts:
        """The same without the validation and test pairs of users who have no training pair."""
        known = np.unique(self.train[:, 0])
        return Parts(self.train, *(pairs[np.isin(pairs[:, 0], known)] for pairs in (self.valid, self.test)))


def random_split(pairs: Pairs, rng: np.random.Generator, *, valid: float = 0.1, test: float = 0.1) -> Split:
    """Split each user's interactions at random.

    Args:
        pairs: distinct (user, item) pairs, `[n, 2]`.
        rng: the source of randomness.
        valid, test: shares, rounded to whole interactions and at least one each; users with fewer than three
            interactions keep all of them in the training part.

    Returns:
        TRAIN, VALID or TEST of each pair, `[n]`.
    """
    return _split_by_place(*_places(pairs[:, 0], None, rng), valid, test)


def time_split(
    pairs: Pairs, times: Double, rng: np.random.Generator, *, valid: float = 0.1, test: float = 0.2
) -> Split:
    """Split each user's interactions by time: the last are the test part, those before them the validation part.

    Args:
        times: of the pairs `[n]`; what has none (nan) counts as the oldest. Ties are in random order.
        valid, test: shares, as for `random_split`.
    """
    place, count = _places(pairs[:, 0], np.nan_to_num(-times, nan=np.inf), rng)
    return _split_by_place(place, count, valid, test)


def pair_times(dataset: Dataset) -> Double:
    """When each of the dataset's pairs came about `[n]`, in epoch seconds: the time of the event that decides it; nan
    where it has none."""
    events, n_items = dataset.interactions, len(dataset.items)
    keys = events.user * n_items + events.item
    newest = deciding_events(keys, events.type, events.timestamp)  # in the order of the keys
    user, item = dataset.pairs().T
    times: Double = events.timestamp[newest][np.searchsorted(keys[newest], user * n_items + item)]
    return times


def leave_one_out(pairs: Pairs, rng: np.random.Generator) -> Split:
    """One random interaction of each user for test, another for validation; otherwise as `random_split`."""
    place, count = _places(pairs[:, 0], None, rng)
    split = np.full(len(pairs), TRAIN, dtype=np.uint8)
    split[place == 1] = VALID
    split[place == 0] = TEST
    split[count < FEWEST] = TRAIN
    return split


def draw_new_items(n_items: int, rng: np.random.Generator, *, share: float = 0.2) -> Rows:
    """Rows of the items that the new-items protocol withholds from training, ascending."""
    return np.sort(rng.permutation(n_items)[: round(share * n_items)]).astype(np.int64)


def hold_out_items(pairs: Pairs, split: Split, new_items: Rows) -> Split:
    """The split of the new-items protocol: training interactions of `new_items` join the test part.

    Validation and test interactions stay where they are, as in the published lists.

    Args:
        pairs: (user, item) pairs, `[n, 2]`.
        split: the split to start from, `[n]`.
        new_items: rows of the new items.
    """
    return np.where((split == TRAIN) & np.isin(pairs[:, 1], new_items), np.uint8(TEST), split)


def validation_parts(whole: Parts, held: Parts) -> Parts:
    """The parts with new items held out, whose test part is what that took from the training part `whole.train`, and
    the validation part."""
    keys, left = (pairs @ np.array([whole.train[:, 1].max() + 1, 1]) for pairs in (whole.train, held.train))
    return Parts(held.train, held.valid, np.concatenate([whole.train[~np.isin(keys, left)], held.valid])).evaluable()


def _split_by_place(place: Rows, count: Rows, valid: float, test: float) -> Split:
    """The first places for test, those after them for validation."""
    n_test = _at_least_one(count, test)
    n_valid = _at_least_one(count, valid)
    split = np.full(len(place), TRAIN, dtype=np.uint8)
    split[place < n_test + n_valid] = VALID
    split[place < n_test] = TEST
    split[count < FEWEST] = TRAIN
    return split


def _places(users: Rows, by: Double | None, rng: np.random.Generator) -> tuple[Rows, Rows]:
    """Each interaction's place among its user's interactions, in random order or by a number `[n]`, smallest first, and
    how many that user has."""
    chance = rng.random(len(users))
    order = np.lexsort((chance, users) if by is None else (chance, by, users))
    _, start, inverse, count = np.unique(users[order], return_index=True, return_inverse=True, return_counts=True)
    place = np.empty(len(users), dtype=np.int64)
    place[order] = np.arange(len(users)) - start[inverse]
    counts = np.empty(len(users), dtype=np.int64)
    counts[order] = count[inverse]
    return place, counts


def _at_least_one(count: Rows, share: float) -> Rows:
    """The share of each count, rounded half up, one at least unless no share is wanted."""
    rounded: Rows = np.floor(count * share + 0.5).astype(np.int64)
    return np.maximum(rounded, 1 if share else 0)
