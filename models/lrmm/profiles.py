"""What is known of a user or an item from its reviews: how they were rated, and what they say.

A profile is a vector: the stars (bias, shares, spread), then the document (mean vector of its reviews, newest first
within L words). It is made of any set of reviews, in training with the predicted one taken out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from models.lrmm.factors import fold_in

Array = NDArray[np.float32]
Double = NDArray[np.float64]
Rows = NDArray[np.int64]
Flags = NDArray[np.bool_]
Side = Literal["user", "item"]

BOUNDS = (3.5, 4.5)  # of low, middle and high ratings
PRIOR = 3.0  # ratings that shares and spread are shrunk by
QUIET = 2.0  # reviews that a document is shrunk by
BIAS, ALONE, COUNT, LOW, MIDDLE, HIGH, SPREAD, OTHERS, TONE, CONTRAST = range(10)
STARS = 10
UNRATED = (COUNT, TONE)  # what of the stars can be told without ratings
SWEEPS = 10


@dataclass(frozen=True)
class Reviewed:
    """Reviews by whom they are of, each `[r]` but `vector` `[r, d + 1]` (the tone comes last).

    `group` is the number of the user or item; `value` the rating, nan where there is none; `other` the bias of the
    item (of a user's review) or of the user, and `taste [r, k]` its taste; `told` whether there is a text that counts.
    """

    group: Rows
    value: Double
    other: Double
    taste: Double
    vector: Array
    told: Flags


@dataclass(frozen=True)
class Biases:
    """Mean rating and shrunk biases: r_ui ~ mean + user_u + item_i."""

    mean: float
    user: Double
    item: Double


def fit_biases(
    user: Rows, item: Rows, value: Double, n_users: int, n_items: int, shrinkage: tuple[float, float]
) -> Biases:
    """Alternating least squares; who has no rating has a bias of zero."""
    mean = float(value.mean()) if len(value) else 0.0
    left = value - mean
    of_user, of_item = np.zeros(n_users), np.zeros(n_items)
    users, items = np.bincount(user, minlength=n_users), np.bincount(item, minlength=n_items)
    for _ in range(SWEEPS):
        of_item = np.bincount(item, left - of_user[user], n_items) / np.maximum(items + shrinkage[1], 1e-9)
        of_user = np.bincount(user, left - of_item[item], n_users) / np.maximum(users + shrinkage[0], 1e-9)
    return Biases(mean, of_user, of_item)


def within(group: Rows, words: Rows, limit: int) -> Flags:
    """Which reviews begin within the first `limit` words of their document; rows by group, newest first."""
    before = np.cumsum(words) - words
    starts = np.r_[True, group[1:] != group[:-1]] if len(group) else np.zeros(0, np.bool_)
    first = np.maximum.accumulate(np.where(starts, np.arange(len(group)), 0))
    inside: Flags = before - before[first] < limit
    return inside


@dataclass(frozen=True)
class Prior:
    """What ratings are like on the whole: their mean, the shares of low, middle and high ones, and their spread."""

    mean: float
    shares: Double
    spread: float

    @classmethod
    def of(cls, value: Double) -> Prior:
        """Of ratings `[n]`."""
        level = np.searchsorted(BOUNDS, value, side="right")
        return cls(float(value.mean()), np.bincount(level, minlength=3) / len(value), float(value.var()))


def profiles(reviewed: Reviewed, n: int, prior: Prior, shrinkage: float) -> tuple[Double, Flags]:
    """Raw profiles `[n, STARS + d]` of the groups, and who has any review at all."""
    group, rated = reviewed.group, ~np.isnan(reviewed.value)
    value = np.where(rated, reviewed.value, 0.0)
    left = np.where(rated, value - prior.mean, 0.0)
    other = np.where(rated, reviewed.other, 0.0)
    ratings = np.bincount(group, rated, n)
    told = np.bincount(group, reviewed.told, n)
    vectors = np.where(reviewed.told[:, None], reviewed.vector, 0.0)
    gather = sp.csr_array((np.ones(len(group)), (group, np.arange(len(group)))), shape=(n, len(group)))
    heard = (gather @ vectors) / (told + QUIET)[:, None]

    found = np.empty((n, STARS + vectors.shape[1] - 1))
    found[:, BIAS] = np.bincount(group, left - other, n) / (ratings + shrinkage)
    found[:, ALONE] = np.bincount(group, left, n) / (ratings + shrinkage)
    found[:, COUNT] = np.log1p(np.maximum(ratings, told))
    level = np.searchsorted(BOUNDS, value, side="right")
    for place in range(3):
        share = np.bincount(group, rated & (level == place), n) + PRIOR * prior.shares[place]
        found[:, LOW + place] = share / (ratings + PRIOR)
    surprise = np.where(rated, left - other - found[group, BIAS], 0.0) ** 2
    found[:, SPREAD] = (np.bincount(group, surprise, n) + PRIOR * prior.spread) / (ratings + PRIOR)
    found[:, OTHERS] = np.bincount(group, other, n) / (ratings + QUIET)
    found[:, TONE] = heard[:, -1]
    contrast = np.where(reviewed.told & rated, reviewed.vector[:, -1] - left, 0.0)
    found[:, CONTRAST] = np.bincount(group, contrast, n) / (told + QUIET)
    found[:, STARS:] = heard[:, :-1]
    return found, np.maximum(ratings, told) > 0


def tastes(reviewed: Reviewed, raw: Double, prior: Prior, penalty: float) -> Double:
    """Tastes `[n, k]` of the groups whose raw profiles are given: what their ratings say beyond their biases."""
    if not reviewed.taste.any():
        return np.zeros((len(raw), reviewed.taste.shape[1]))
    rated = ~np.isnan(reviewed.value)
    group = reviewed.group[rated]
    left = reviewed.value[rated] - prior.mean - reviewed.other[rated] - raw[group, BIAS]
    return fold_in(group, reviewed.taste[rated], left, len(raw), penalty)


@dataclass(frozen=True)
class Scale:
    """What makes raw profiles comparable: stars standardised, documents scaled."""

    mean: Array
    factor: Array

    @classmethod
    def fit(cls, raw: Double, text_scale: float, *, use_biases: bool) -> Scale:
        """From raw profiles `[n, STARS + d]`."""
        mean, spread = raw.mean(axis=0), raw.std(axis=0)
        factor = np.full(raw.shape[1], text_scale)
        factor[:STARS] = np.where(spread[:STARS] > 1e-6, 1 / np.maximum(spread[:STARS], 1e-6), 0.0)
        mean[STARS:] = 0.0
        if not use_biases:
            factor[[column for column in range(STARS) if column not in UNRATED]] = 0.0
        return cls(mean.astype(np.float32), factor.astype(np.float32))

    def __call__(self, raw: Double) -> Array:
        """Scaled profiles, the shape of the raw ones."""
        scaled: Array = ((raw - self.mean) * self.factor).astype(np.float32)
        return scaled
