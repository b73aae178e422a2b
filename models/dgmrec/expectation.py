"""What is to be expected of an item that nobody has met, from what is observed of it: how popular it will be, and whom
it is for.

Each observed modality gives two predictions of either, a ridge regression on the feature and a kernel regression on the
warm items nearest by it, and the words of a text one more (`models.words`). They are added up by the weights of the
best linear prediction from just those that the item has, which follow from the second moments of all of them and of the
truth over the warm items, each predicted as if it were new: w = G^-1 b, with G and b cut to the predictions that are
there. A modality that says nothing on this catalogue thus gets next to no weight alone, and one that repeats another
none beside it; generated features, which follow from the observed ones, take no part.

Such a prediction is short where it is unsure, and could not stand beside the vectors of warm items: all differences are
widened by one factor (`prediction_scale`), and the mean is placed along the axis of popularity so that the items that
are predicted to be one standard deviation above it stand `popularity_offset` standard deviations of the warm items'
places above the mean of these, whatever the modalities that are observed.

Pure functions of torch tensors or NumPy arrays, as in `models.dgmrec.inference`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.arrays import Double, Mask
from models.dgmrec.config import DGMRecConfig
from models.dgmrec.inference import across, kernel_weight
from models.linalg import Numbers, library

POPULARITY, TASTE = 0, 1
SHRINKAGE = 0.03  # of the moments' diagonal, so that two predictions that say the same can be told apart


@dataclass(frozen=True)
class ColdMaps:
    """What `models.dgmrec.cold_start.ColdStart` has fitted, of M modalities with r_m components each. Of rows of 1 + d
    numbers, the first is the logarithm of the degree, apart from its mean, the others are a vector across the axis.

    Attributes:
        axis: `[d]`, of popularity.
        slopes, intercepts: `[sum of r_m, 1 + d]` and `[M, 1 + d]`, of each modality's ridge regression.
        gram, moments: `[2, 2M + 1, 2M + 1]` and `[2, 2M + 1]`, of popularity and of taste: second moments of the
            predictions, the ridge regressions first, those of words last, and of these with the truth. Zero for what
            nothing was learned of.
        place: `[4]`: the mean logarithm of the warm items' degrees, the mean place along the axis, what a unit of the
            former is along it, and the standard deviation of the places.
    """

    axis: Numbers
    slopes: Numbers
    intercepts: Numbers
    gram: Numbers
    moments: Numbers
    place: Numbers


@dataclass(frozen=True)
class SourceWeights:
    """How the predictions of some items are added up: of popularity and of taste `[n, 2M + 1]`, zero where there is
    none, how many say anything `[n]`, and the standard deviation `[n]` of the sum for popularity."""

    popularity: Numbers
    taste: Numbers
    count: Numbers
    deviation: Numbers


def sources(told: Numbers) -> Numbers:
    """Which predictions there are `[n, 2M + 1]` of items with these modalities told, and, last, words `[n, M + 1]`."""
    return library(told).concatenate([told[:, :-1], told], axis=1)


def source_weights(maps: ColdMaps, told: Numbers) -> SourceWeights:
    """The weights for items with these modalities told, and, last, words `[n, M + 1]`."""
    gram, moments = (np.asarray(table, dtype=np.float64) for table in (maps.gram, maps.moments))
    patterns, which = np.unique(np.asarray(told, dtype=np.bool_), axis=0, return_inverse=True)
    present = sources(patterns) & (moments[POPULARITY] != 0)
    solved = [[_solved(gram[what], moments[what], row) for row in present] for what in (POPULARITY, TASTE)]
    weights = np.array(solved).reshape(2, *present.shape)
    variance = (weights[POPULARITY] * moments[POPULARITY]).sum(axis=1).clip(min=0)
    rows = (*weights, present.sum(axis=1), np.sqrt(variance))
    return SourceWeights(*(_like(maps.axis, table[which.ravel()]) for table in rows))


def _solved(gram: Double, moments: Double, present: Mask) -> Double:
    weights = np.zeros(len(moments))
    chosen = np.flatnonzero(present & (np.diagonal(gram) > 0))
    if len(chosen):
        weights[chosen] = np.linalg.solve(gram[np.ix_(chosen, chosen)], moments[chosen])
    return weights


def _like(numbers: Numbers, table: Double) -> Numbers:
    narrow = table.astype(np.float32)
    return torch.from_numpy(narrow).to(numbers.device) if isinstance(numbers, Tensor) else narrow


def ridge_predictions(maps: ColdMaps, features: Mapping[str, Numbers]) -> Numbers:
    """The ridge regressions `[n, M, 1 + d]` of features `[n, r_m]`."""
    predictions, start = [], 0
    for number, block in enumerate(features.values()):
        width = block.shape[1]
        predictions.append(maps.intercepts[number] + block @ maps.slopes[start : start + width])
        start += width
    return library(maps.axis).stack(predictions, axis=1)


def kernel_predictions(
    config: DGMRecConfig,
    maps: ColdMaps,
    mean: Callable[[Numbers], Numbers],
    cosines: Numbers,
    degree: Numbers,
    known_degree: Numbers,
) -> Numbers:
    """The kernel regressions `[n, M, 1 + d]` on neighbours: what is the mean of their vectors by shares `[n, M, k]`,
    `[n, M, d]`, their cosines and degrees `[n, M, k]`, 0 for none, and the degrees of those whose popularity is
    settled, 0 for the others."""
    xp = library(maps.axis)
    by_taste = _shares(kernel_weight(config, cosines, degree))
    by_popularity = _shares(kernel_weight(config, cosines, known_degree, 0.0))
    apart = xp.log(known_degree.clip(min=1)) - maps.place[0]
    popularity = (by_popularity * apart).sum(axis=-1)[..., None]
    taste = across(mean(by_taste), maps.axis)
    return xp.concatenate([popularity, taste], axis=-1)


def _shares(weights: Numbers) -> Numbers:
    return weights / weights.sum(axis=-1)[..., None].clip(min=1e-12)


def mean_place(config: DGMRecConfig, maps: ColdMaps, weights: SourceWeights, offset: Numbers) -> Numbers:
    """Where items `[n]` stand along the axis of which nothing sets the popularity apart, with an offset `[n]` in
    standard deviations of the warm items. Of an item that nothing is known of, nothing speaks for the first places."""
    xp = library(maps.axis)
    _, mean, gain, spread = maps.place
    lifted = offset * spread - config.prediction_scale * gain * weights.deviation
    return mean + xp.where(weights.count > 0, lifted, offset.clip(max=0) * spread)


def apart(config: DGMRecConfig, maps: ColdMaps, predictions: Numbers, popularity: Numbers, taste: Numbers) -> Numbers:
    """What predictions `[n, s, 1 + d]` by their weights `[n, s]` set items apart from the mean, `[n, d]`."""
    place = maps.place[2] * (popularity * predictions[..., 0]).sum(axis=-1)
    sum_of = (taste[:, None] @ predictions[..., 1:])[:, 0]
    return config.prediction_scale * (place[:, None] * maps.axis + sum_of)
