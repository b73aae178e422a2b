"""What is made of the model's confidence in a generated feature: what is served of it, and whether the feature is used.

The model's own confidence is stored with the feature and never changes by itself. What is served is that number under
the calibration of the modality, if pairs of generated and real features have led to one (`pipeline.recalibrate`);
whether the feature counts in searches and vectors follows from what is served and from LACUNA_MIN_CONFIDENCE. So both
are functions of what is stored and of the settings, and a new calibration changes no stored feature.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import orjson

from models.arrays import Double, Mask
from models.calibration import DIGITS, CalibrationMap


@dataclass(frozen=True, slots=True)
class Calibration:
    """The calibration of one modality, and from how many pairs."""

    map: CalibrationMap
    pairs: int


@dataclass(frozen=True)
class Confidence:
    """`least` served confidence by modality below which a generated feature is not used (0 where none is named), and
    the calibrations by modality."""

    least: Mapping[str, float] = field(default_factory=dict)
    calibrations: Mapping[str, Calibration] = field(default_factory=dict)

    def served(self, modality: str, raw: Double) -> Double:
        """What is served `[...]` of the model's confidences; 0, of which the model says nothing, stays 0."""
        calibration, raw = self.calibrations.get(modality), np.round(raw, DIGITS)  # as it is stored
        served = raw if calibration is None else np.where(raw > 0, calibration.map(raw), 0.0)
        return np.round(served, DIGITS)

    def used(self, modality: str, raw: Double) -> Mask:
        """Whether features of these confidences `[...]`, NaN for what is not generated, are used."""
        least = self.least.get(modality, 0.0)
        if least <= 0:
            return np.ones(np.shape(raw), dtype=np.bool_)
        return np.isnan(raw) | (self.served(modality, raw) >= least)

    def serve(self, modality: str, raw: float) -> float:
        """`served` of one confidence."""
        return float(self.served(modality, np.asarray(raw, dtype=np.float64)))

    def calibrated_on(self, modality: str) -> int | None:
        """How many pairs a served confidence rests on; None for the model's own."""
        calibration = self.calibrations.get(modality)
        return None if calibration is None else calibration.pairs

    def dump(self) -> dict[str, Any]:
        """As plain values; `load` reads them."""
        return {
            "least": dict(sorted(self.least.items())),
            "calibrations": {name: asdict(self.calibrations[name]) for name in sorted(self.calibrations)},
        }

    @classmethod
    def load(cls, values: Mapping[str, Any]) -> Confidence:
        """The reverse of `dump`."""
        calibrations = {
            name: Calibration(
                CalibrationMap(one["map"]["form"], tuple(one["map"]["raw"]), tuple(one["map"]["served"])), one["pairs"]
            )
            for name, one in values["calibrations"].items()
        }
        return cls(values["least"], calibrations)

    @cached_property
    def identity(self) -> str:
        """What tells it from every other."""
        return hashlib.sha256(orjson.dumps(self.dump())).hexdigest()
