"""Calibrating a confidence on pairs of what was forecast and what came true (centred cosines of generated features and
of the real ones that replaced them).

Every form is a map from the model's own confidence to the one that is served: piecewise linear, never falling, in 0..1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from models.arrays import Double

IDENTITY, LINEAR, ISOTONIC = "identity", "linear", "isotonic"
FOLDS = 5
PENALTY = 1.0  # of the linear form, in pairs
LEAST = 10  # pairs behind a step of the isotonic form
DIGITS = 4  # of a served confidence


@dataclass(frozen=True, slots=True)
class CalibrationMap:
    """Knots of a map from raw to served confidences, `raw` ascending; constant beyond its ends."""

    form: str
    raw: tuple[float, ...]
    served: tuple[float, ...]

    def __call__(self, confidences: Double) -> Double:
        """Served confidences `[...]` of raw ones."""
        return np.interp(confidences, self.raw, self.served).clip(0, 1)


@dataclass(frozen=True, slots=True)
class Calibrated:
    """A map that was chosen, and the expected calibration errors of the raw confidences and, on pairs that it was not
    fitted on, of its own."""

    map: CalibrationMap
    error_before: float
    error_after: float


def identity() -> CalibrationMap:
    """The map that leaves confidences as they are."""
    return CalibrationMap(IDENTITY, (0.0, 1.0), (0.0, 1.0))


def linear(raw: Double, true: Double) -> CalibrationMap:
    """The form in which training calibrates: a ridge regression of how far measured cosines `[n]` are from the raw
    confidences `[n]`, here on these alone."""
    facts = np.stack([np.ones_like(raw), raw], axis=1)
    offset, slope = np.linalg.solve(facts.T @ facts + PENALTY * np.eye(2), facts.T @ (true - raw))
    slope = max(1 + float(slope), 0.0)
    # The map is cut off at 0 and 1; a knot stands where that happens.
    cuts = [] if slope == 0 else [cut for cut in (-offset / slope, (1 - offset) / slope) if 0 < cut < 1]
    knots = sorted({0.0, *map(float, cuts), 1.0})
    return CalibrationMap(LINEAR, tuple(knots), tuple(float(np.clip(offset + slope * knot, 0, 1)) for knot in knots))


def isotonic(raw: Double, true: Double) -> CalibrationMap:
    """Isotonic regression (pool adjacent violators; Barlow et al., 1972) of measured cosines `[n]` on raw confidences
    `[n]`, over groups of at least LEAST pairs that are next to each other, interpolated between the means of its
    steps."""
    order = np.argsort(raw, kind="stable")
    groups = np.array_split(order, max(len(order) // LEAST, 1))
    weights = np.array([len(group) for group in groups], dtype=np.float64)
    means = np.array([[raw[group].mean(), true[group].mean()] for group in groups])
    fitted = isotonic_regression(means[:, 1], weights=weights)
    bounds = fitted.blocks
    knots = [
        (float(np.average(means[start:end, 0], weights=weights[start:end])), float(np.clip(fitted.x[start], 0, 1)))
        for start, end in pairwise(bounds)
    ]
    distinct = dict(knots)  # equal confidences may be in several groups
    return CalibrationMap(ISOTONIC, tuple(distinct), tuple(distinct.values()))


FORMS: dict[str, Callable[[Double, Double], CalibrationMap]] = {
    IDENTITY: lambda _raw, _true: identity(),
    LINEAR: linear,
    ISOTONIC: isotonic,
}


def choose(raw: Sequence[float] | Double, true: Sequence[float] | Double) -> Calibrated:
    """The form whose squared error is the least on pairs that it was not fitted on (5-fold cross-validation; of equal
    ones the simpler), fitted on all pairs.

    Args:
        raw: confidences `[n]` of the model, in the order in which the pairs came. true: centred cosines `[n]`.

    Raises:
        ValueError: there are fewer pairs than folds.
    """
    x, y = np.asarray(raw, dtype=np.float64), np.asarray(true, dtype=np.float64)
    if len(x) < FOLDS:
        raise ValueError(f"calibration takes {FOLDS} pairs at least, not {len(x)}")
    fold = np.arange(len(x)) % FOLDS
    held_out = {form: np.empty_like(x) for form in FORMS}
    for number in range(FOLDS):
        rest, left = fold != number, fold == number
        for form, fit in FORMS.items():
            held_out[form][left] = fit(x[rest], y[rest])(x[left])
    best = min(FORMS, key=lambda form: float(np.square(held_out[form] - y).mean()))
    return Calibrated(FORMS[best](x, y), calibration_error(x, y), calibration_error(held_out[best], y))


def calibration_error(served: NDArray[np.floating[Any]], measured: NDArray[np.floating[Any]], bins: int = 10) -> float:
    """Expected calibration error: mean over equal-width bins of |mean served - mean measured|, weighted by size."""
    if len(served) == 0:
        return 0.0
    place = np.minimum((served * bins).astype(int), bins - 1)
    gaps = [
        abs(served[place == b].mean() - measured[place == b].mean()) * (place == b).mean()
        for b in range(bins)
        if (place == b).any()
    ]
    return float(np.sum(gaps))
