"""A user or an item as a vector, made of its reviews: how they rate, and what they say.

A profile holds rating statistics (bias, shares of the levels, variance, ...), then the document: the mean vector of its
reviews, newest first within L words. It is made of any set of reviews, in training with the predicted one taken out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from models.arrays import Array, Double, Mask, Rows
from models.lrmm.factors import Penalties, fold_in
from models.lrmm.model import USER

BOUNDS = (3.5, 4.5)  # of low, middle and high ratings
RATING_SHRINKAGE = 3.0  # pseudo-count of ratings that shares and variance are shrunk by
TEXT_SHRINKAGE = 2.0  # pseudo-count of reviews that a document is shrunk by
USER_SHRINKAGE, ITEM_SHRINKAGE = 5.0, 10.0  # pseudo-counts of ratings that biases are shrunk by
TEXT_SCALE = 5.0  # of the document beside the standardised statistics
BIAS, MEAN_RESIDUAL, COUNT, LOW, MIDDLE, HIGH, VARIANCE, OTHER_BIAS, SENTIMENT, SENTIMENT_GAP = range(10)
STATISTICS = 10
WITHOUT_RATINGS = (COUNT, SENTIMENT)  # statistics that texts alone give
SWEEPS = 10


def bias_shrinkage(side: str) -> float:
    """The pseudo-count of ratings that the biases of a side (USER or ITEM) are shrunk by."""
    return USER_SHRINKAGE if side == USER else ITEM_SHRINKAGE


@dataclass(frozen=True)
class Reviewed:
    """Reviews by whom they are of, each `[r]` but `vector` `[r, d + 1]` (the sentiment comes last).

    `group` is the number of the user or item; `value` the rating, nan where there is none; `other_bias` and
    `other_factors [r, k + 1]` (factors and the bias fitted with them) those of the other side of the pair (the item of
    a user's review, the user of an item's); `has_text` whether there is a text that counts.
    """

    group: Rows
    value: Double
    other_bias: Double
    other_factors: Double
    vector: Array
    has_text: Mask


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
    residual = value - mean
    of_user, of_item = np.zeros(n_users), np.zeros(n_items)
    users, items = np.bincount(user, minlength=n_users), np.bincount(item, minlength=n_items)
    for _ in range(SWEEPS):
        of_item = np.bincount(item, residual - of_user[user], n_items) / np.maximum(items + shrinkage[1], 1e-9)
        of_user = np.bincount(user, residual - of_item[item], n_users) / np.maximum(users + shrinkage[0], 1e-9)
    return Biases(mean, of_user, of_item)


def in_document(group: Rows, words: Rows, limit: int) -> Mask:
    """Which reviews begin within the first `limit` words of their document; rows by group, newest first."""
    before = np.cumsum(words) - words
    starts = np.r_[True, group[1:] != group[:-1]] if len(group) else np.zeros(0, np.bool_)
    first = np.maximum.accumulate(np.where(starts, np.arange(len(group)), 0))
    inside: Mask = before - before[first] < limit
    return inside


@dataclass(frozen=True)
class Prior:
    """The statistics of all ratings: their mean, the shares of low, middle and high ones, and their variance."""

    mean: float
    shares: Double
    variance: float

    @classmethod
    def of(cls, value: Double) -> Prior:
        """Of ratings `[n]`."""
        level = np.searchsorted(BOUNDS, value, side="right")
        return cls(float(value.mean()), np.bincount(level, minlength=3) / len(value), float(value.var()))


def profiles(reviewed: Reviewed, n: int, prior: Prior, shrinkage: float) -> tuple[Double, Mask]:
    """Raw profiles `[n, STATISTICS + d]` of the groups, and who has any review at all."""
    group, rated = reviewed.group, ~np.isnan(reviewed.value)
    value = np.where(rated, reviewed.value, 0.0)
    residual = np.where(rated, value - prior.mean, 0.0)
    other_bias = np.where(rated, reviewed.other_bias, 0.0)
    ratings = np.bincount(group, rated, n)
    text_count = np.bincount(group, reviewed.has_text, n)
    text = _mean_vectors(reviewed, n, text_count)

    raw = np.empty((n, STATISTICS + text.shape[1] - 1))
    raw[:, BIAS] = np.bincount(group, residual - other_bias, n) / (ratings + shrinkage)
    raw[:, MEAN_RESIDUAL] = np.bincount(group, residual, n) / (ratings + shrinkage)
    raw[:, COUNT] = np.log1p(np.maximum(ratings, text_count))
    level = np.searchsorted(BOUNDS, value, side="right")
    for place in range(3):
        share = np.bincount(group, rated & (level == place), n) + RATING_SHRINKAGE * prior.shares[place]
        raw[:, LOW + place] = share / (ratings + RATING_SHRINKAGE)
    deviation = np.where(rated, residual - other_bias - raw[group, BIAS], 0.0) ** 2
    total = np.bincount(group, deviation, n) + RATING_SHRINKAGE * prior.variance
    raw[:, VARIANCE] = total / (ratings + RATING_SHRINKAGE)
    raw[:, OTHER_BIAS] = np.bincount(group, other_bias, n) / (ratings + TEXT_SHRINKAGE)
    raw[:, SENTIMENT] = text[:, -1]
    gap = np.where(reviewed.has_text & rated, reviewed.vector[:, -1] - residual, 0.0)
    raw[:, SENTIMENT_GAP] = np.bincount(group, gap, n) / (text_count + TEXT_SHRINKAGE)
    raw[:, STATISTICS:] = text[:, :-1]
    return raw, np.maximum(ratings, text_count) > 0


def _mean_vectors(reviewed: Reviewed, n: int, text_count: NDArray[Any]) -> Double:
    """Documents with the mean sentiment in the last column `[n, d + 1]`, shrunk towards zero."""
    vectors = np.where(reviewed.has_text[:, None], reviewed.vector, 0.0)
    rows = np.arange(len(reviewed.group))
    by_group = sp.csr_array((np.ones(len(rows)), (reviewed.group, rows)), shape=(n, len(rows)))
    means: Double = (by_group @ vectors) / (text_count + TEXT_SHRINKAGE)[:, None]
    return means


def fold_in_factors(side: str, reviewed: Reviewed, raw: Double, prior: Prior, penalties: Penalties) -> Double:
    """What the groups of a side (USER or ITEM), whose raw profiles are given, bring to a pair's affinity `[n, k + 2]`.

    The inner product of a user's and an item's is p . q and what each bias, fitted with the factors, differs by from
    that of the profile: (p, b_u - bias_u, 1) . (q, 1, b_i - bias_i). Zeros where there are no factors or no ratings.
    """
    size = reviewed.other_factors.shape[1] - 1
    brought = np.zeros((len(raw), size + 2))
    if not reviewed.other_factors.any():
        return brought
    rated = ~np.isnan(reviewed.value)
    group, residual = reviewed.group[rated], reviewed.value[rated] - prior.mean
    bias_penalty = penalties.user_bias if side == USER else penalties.item_bias
    found = fold_in(group, reviewed.other_factors[rated], residual, len(raw), (penalties.factors, bias_penalty))
    known = np.bincount(group, minlength=len(raw)) > 0
    difference = np.where(known, found[:, size] - raw[:, BIAS], 0.0)
    brought[:, :size] = found[:, :size]
    brought[:, size:] = np.stack([difference, known] if side == USER else [known, difference], axis=1)
    return brought


@dataclass(frozen=True)
class Scale:
    """What makes raw profiles comparable: statistics standardised, documents scaled."""

    mean: Array
    factor: Array

    @classmethod
    def fit(cls, raw: Double, *, use_biases: bool) -> Scale:
        """From raw profiles `[n, STATISTICS + d]`."""
        mean, deviation = raw.mean(axis=0), raw.std(axis=0)
        factor = np.full(raw.shape[1], TEXT_SCALE)
        varies = deviation[:STATISTICS] > 1e-6
        factor[:STATISTICS] = np.where(varies, 1 / np.maximum(deviation[:STATISTICS], 1e-6), 0.0)
        mean[STATISTICS:] = 0.0
        if not use_biases:
            factor[[column for column in range(STATISTICS) if column not in WITHOUT_RATINGS]] = 0.0
        return cls(mean.astype(np.float32), factor.astype(np.float32))

    def __call__(self, raw: Double) -> Array:
        """Scaled profiles, the shape of the raw ones."""
        scaled: Array = ((raw - self.mean) * self.factor).astype(np.float32)
        return scaled
