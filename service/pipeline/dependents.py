"""Which items' generated features follow from the observed features of an item that has changed: those that it says
something of as a neighbour, and those whose preference is expected from neighbours among which it has a place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from models.arrays import Array, Mask
from models.dgmrec.serving import DGMRecServing
from service.domain import Observed
from service.pipeline.catalogue import Catalogue, Derived, Entry, Shape
from service.pipeline.evidence import projected
from service.pipeline.vectors import TOLERANCE
from service.ports import UNKNOWN, FeatureChange, Keys


def pack(model: DGMRecServing, observed: Mapping[str, Observed]) -> bytes:
    """Observed features, projected, as `FeatureChange` keeps them: float32, those of every modality in order, NaN where
    there is none; nothing where there is none at all."""
    if not observed:
        return b""
    features = projected(model, observed)
    nothing = {name: np.full(rank, np.nan, dtype=np.float32) for name, rank in model.ranks.items()}
    return np.concatenate([features.get(name, nothing[name]) for name in model.names]).astype("<f4").tobytes()


def packed(catalogue: Catalogue, key: int) -> bytes:
    """The same of an item that is in memory."""
    features = {name: catalogue.rows.get(f"feature.{name}", key) for name in catalogue.names}
    for column, name in enumerate(catalogue.names):
        if not catalogue.observed[key, column]:
            features[name] = np.full_like(features[name], np.nan)
    return np.concatenate([features[name] for name in catalogue.names]).astype("<f4").tobytes()


def unpack(model: DGMRecServing, shape: Shape, before: bytes) -> dict[str, Array]:
    """The reverse of `pack`, by modality `[r_m]`; nothing where another bundle packed it. Of a whole row of model state
    (`Derived.pack`), its features."""
    derived = Derived.unpack(before, shape)
    if derived is not None:
        return dict(derived.features)
    flat = np.frombuffer(before, dtype="<f4").astype(np.float32)
    bounds = np.cumsum([0, *model.ranks.values()])
    if len(flat) != bounds[-1]:
        return {}
    blocks = {name: flat[start:end] for name, (start, end) in zip(model.names, pairwise(bounds), strict=True)}
    return {name: block for name, block in blocks.items() if not np.isnan(block).any()}


def find(model: DGMRecServing, catalogue: Catalogue, changes: Sequence[FeatureChange]) -> list[Entry]:
    """The items that are generated from the former or the present features of items that have changed, or would be; all
    where the former are not known."""
    if any(change.before == UNKNOWN for change in changes):
        return list(catalogue.entries.values())
    features: dict[str, list[Array]] = {name: [] for name in model.names}
    useful: dict[str, list[Mask]] = {name: [] for name in model.names}
    for change in changes:
        key = catalogue.key(change.item)
        states = [unpack(model, catalogue.shape, change.before)]
        if key is not None:
            states.append(
                {
                    name: catalogue.rows.get(f"feature.{name}", key)
                    for column, name in enumerate(model.names)
                    if catalogue.observed[key, column]
                }
            )
        for state in states:
            for name, feature in state.items():
                features[name].append(feature)
                useful[name].append(np.array([other in state for other in model.names], dtype=np.bool_))
    keys = [
        _reached(model, catalogue, name, np.stack(features[name]), np.stack(useful[name]))
        for name in model.names
        if features[name]
    ]
    unique = np.unique(np.concatenate(keys)) if keys else np.empty(0, dtype=np.int64)
    return [entry for key in unique.tolist() if (entry := catalogue.entries.get(key)) is not None]


def _reached(model: DGMRecServing, catalogue: Catalogue, name: str, features: Array, useful: Mask) -> Keys:
    """Keys of the items that any of some features `[c, r_m]` is near enough to, by `Derived.reach` where they lack what
    it says something of (`useful` `[c, M]`), or by the item graph where they read preferences."""
    column = catalogue.names.index(name)
    owners, rows = catalogue.rows.all(f"feature.{name}")
    reach, near_reach, users = (catalogue.rows.all(field)[1] for field in ("reach", "near.reach", "users"))
    lacking = ~catalogue.observed[owners]
    reading = np.array([model.reads_preference(other) for other in model.names], dtype=np.bool_)
    expecting = (catalogue.trained[owners] < 0) & (users == 0) & (lacking & reading).any(axis=1)
    chosen = (owners >= 0) & catalogue.observed[owners, column] & ((reach[:, column] < np.inf) | expecting)
    if not chosen.any():
        return owners[:0]
    length = np.linalg.norm(rows[chosen], axis=1, keepdims=True)
    directions = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-6)
    products = rows[chosen] @ directions.T
    said = products >= (reach[chosen, column, None] - TOLERANCE) * np.maximum(length, 1e-6)
    said &= lacking[chosen].astype(np.int64) @ useful.T.astype(np.int64) > 0
    placed = (products >= near_reach[chosen, column, None] - TOLERANCE * length) & expecting[chosen, None]
    reached: Keys = owners[chosen][(said | placed).any(axis=1)]
    return reached
