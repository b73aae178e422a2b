"""Ratings and reviews for rating prediction: who rated what how, in which words, and how they are split."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from models.arrays import Double, Rows
from models.feedback import EVENT_TYPES, RATED
from training.datasets.base import TEST, TRAIN, VALID, Dataset

_RATED = tuple(EVENT_TYPES.index(name) for name in RATED)

Split = NDArray[np.uint8]


class RatingDataError(ValueError):
    """A dataset whose ratings cannot be used; the message is one sentence."""


@dataclass(frozen=True)
class Ratings:
    """Rated events as parallel arrays `[n]`: rows of user and item, value in 1..5, time (nan: unknown), text (or "").

    `event` is each one's place among the dataset's events.
    """

    user: Rows
    item: Rows
    value: Double
    time: Double
    text: tuple[str, ...]
    event: Rows
    n_users: int
    n_items: int

    def __len__(self) -> int:
        return len(self.user)

    @classmethod
    def of(cls, dataset: Dataset) -> Ratings:
        """The dataset's ratings and reviews that have a value; of those of a pair, the newest.

        The older ones are left out: a repeated rating would leak its value from one part of a split to another.

        Raises:
            RatingDataError: there are none.
        """
        events = dataset.interactions
        rows = np.flatnonzero(np.isin(events.type, _RATED) & ~np.isnan(events.value))
        if not len(rows):
            raise RatingDataError(f"the dataset {dataset.name} has no ratings to learn from")
        rated = cls(
            user=events.user[rows],
            item=events.item[rows],
            value=events.value[rows],
            time=events.timestamp[rows],
            text=tuple(events.texts.get(int(row), "") for row in rows),
            event=rows,
            n_users=len(dataset.users),
            n_items=len(dataset.items),
        )
        pair = rated.user * rated.n_items + rated.item
        return rated.only(np.sort(newest_of(pair, newest_first(rated), 1)))

    def only(self, rows: Rows) -> Ratings:
        """Those in `rows`."""
        return replace(
            self,
            user=self.user[rows],
            item=self.item[rows],
            value=self.value[rows],
            time=self.time[rows],
            text=tuple(self.text[row] for row in rows),
            event=self.event[rows],
        )


@dataclass(frozen=True, slots=True)
class RatingParts:
    """Rows into `Ratings` by part, ascending."""

    train: Rows
    valid: Rows
    test: Rows

    @classmethod
    def of(cls, split: Split) -> RatingParts:
        """The parts of a split `[n]`."""
        return cls(*(np.flatnonzero(split == part) for part in (TRAIN, VALID, TEST)))


def newest_first(ratings: Ratings) -> Rows:
    """All rows, newest first; ratings without a time come last, the later row before the earlier one."""
    newest = np.where(np.isnan(ratings.time), -np.inf, ratings.time)
    return np.lexsort((-np.arange(len(ratings)), -newest))


def newest_of(group: Rows, rows: Rows, most: int) -> Rows:
    """Those among rows (newest first) that are one of the `most` newest of their group `[n]`, in the same order."""
    order = np.argsort(group[rows], kind="stable")
    ordered = group[rows][order]
    place = np.arange(len(rows)) - np.searchsorted(ordered, ordered)
    return rows[np.sort(order[place < most])]


def thinned(ratings: Ratings, parts: RatingParts, item_reviews: int | None) -> RatingParts:
    """The same with at most so many training ratings of an item, the newest ones; None for all."""
    if item_reviews is None:
        return parts
    order = newest_first(ratings)
    kept = newest_of(ratings.item, order[np.isin(order, parts.train)], item_reviews)
    return replace(parts, train=np.sort(kept))


def published_parts(dataset: Dataset, ratings: Ratings) -> RatingParts | None:
    """The dataset's own split, if it publishes one."""
    return None if dataset.rating_split is None else RatingParts.of(dataset.rating_split[ratings.event])


def random_parts(n: int, seed: int) -> RatingParts:
    """80/10/10 of `n` ratings at random.

    Raises:
        RatingDataError: fewer than ten ratings.
    """
    if n < 10:
        raise RatingDataError(f"{n} ratings are too few to be split; it takes at least 10")
    order = np.random.default_rng(seed).permutation(n)
    tenth = n // 10
    return RatingParts(*(np.sort(part) for part in (order[2 * tenth :], order[:tenth], order[tenth : 2 * tenth])))
