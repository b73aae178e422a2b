"""DGMRec's forward arithmetic, once for training and for serving; equation numbers are the paper's (see
`models.dgmrec.model`).

Pure functions that take torch tensors and NumPy arrays alike: in training the weights are modules and whole catalogues
go through; in a service they are `models.dgmrec.weights`, for a row or two at a time, where a call of torch takes
several times as long as the arithmetic. Neighbours are handed in, from a graph or from an index, as what their rows
and cosines give. Modalities lead, then rows, then components: `[M, n, d]`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from models import linalg
from models.arrays import Array, Mask, Rows
from models.dgmrec.config import DGMRecConfig
from models.evidence import Evidence
from models.linalg import Numbers, cast, library
from models.projection import ProjectionMaps

EVIDENCE_SCALE = 8.0  # blocks of unit length have small entries; brought to the size of the parts beside them
FACTS = 8  # numbers that a confidence is read from, see `generation_facts`
LENGTH_FACT = 1  # the column of them with the base's length

Layer: TypeAlias = Callable[[Any], Any]
"""Rows `[n, in]` -> `[n, out]`: a module, or the same weights for NumPy."""


class Tower(Protocol):
    """What the functions below read of one modality's weights: `models.dgmrec.generator.ModalityTower`, or
    `models.dgmrec.weights.TowerWeights`."""

    @property
    def projection(self) -> ProjectionMaps: ...

    @property
    def encode(self) -> Layer: ...

    @property
    def specific(self) -> Layer: ...

    @property
    def decode(self) -> Layer: ...

    @property
    def preference(self) -> Layer: ...

    @property
    def general_generator(self) -> Layer: ...

    @property
    def specific_generator(self) -> Layer: ...

    @property
    def interaction_weights(self) -> Numbers: ...

    @property
    def content_weights(self) -> Numbers: ...

    @property
    def content_only_weights(self) -> Numbers: ...

    @property
    def near_duplicate_weights(self) -> Numbers: ...

    @property
    def interaction_mask(self) -> Numbers: ...

    @property
    def content_mask(self) -> Numbers: ...

    @property
    def mean_general(self) -> Numbers: ...

    @property
    def calibration(self) -> Numbers: ...

    @property
    def trust(self) -> Numbers: ...

    def mean_of_nearest(self, directions: Any) -> Numbers | None:
        """The mean `[n, r]` of the observed features' directions nearest to each direction `[n, r]`; None where there
        are none to look among."""


Towers: TypeAlias = Mapping[str, Tower]

# --- parts (eq. 1-3) -------------------------------------------------------------------------------------------------


def sigmoid(values: Numbers) -> Numbers:
    """1 / (1 + exp(-x)), without overflow."""
    return torch.sigmoid(values) if isinstance(values, Tensor) else np.tanh(values * 0.5) * 0.5 + 0.5


def activate(config: DGMRecConfig, parts: Numbers) -> Numbers:
    """The activation of parts (eq. 1)."""
    return library(parts).tanh(parts) if config.activation == "tanh" else sigmoid(parts)


def gate(config: DGMRecConfig, preference: Numbers) -> Numbers:
    """What parts are multiplied by, from preferences (eq. 3)."""
    if config.gate == "none":
        return library(preference).ones_like(preference)
    return sigmoid(preference) if config.gate == "sigmoid" else preference


def general_part(tower: Tower, shared: Layer, features: Numbers) -> Numbers:
    """F(tanh(enc_m(x))) `[n, d]`, before its activation; F is `shared` by all modalities."""
    return shared(library(features).tanh(tower.encode(features)))


def encode(
    config: DGMRecConfig, towers: Towers, shared: Layer, features: Mapping[str, Numbers], preference: Numbers
) -> Numbers:
    """General and specific parts `[M, n, 2d]` of completed features `[n, r_m]`, gated by preferences `[M, n, d]`
    (eq. 1, 3)."""
    xp = library(preference)
    parts = xp.stack(
        [
            activate(config, xp.stack([general_part(tower, shared, own), tower.specific(own)], axis=1))
            for tower, own in ((towers[name], features[name]) for name in towers)
        ]
    )  # [M, n, 2, d]
    return (parts * gate(config, preference)[:, :, None]).reshape(*preference.shape[:2], -1)


def user_preference(towers: Towers, user_id: Numbers) -> Numbers:
    """p_u^m `[M, U, d]` from collaborative parts `[U, d]` (eq. 2)."""
    xp = library(user_id)
    return xp.stack([xp.tanh(towers[name].preference(user_id)) for name in towers])


# --- fusing (eq. 17-18) ----------------------------------------------------------------------------------------------


def shares(parts: Numbers, weight: Numbers) -> Numbers:
    """What each modality brings into `fuse`: `[M, n, d]`, from parts `[M, n, 2d]` and the modalities' weights `[M]`."""
    d = parts.shape[-1] // 2
    mean = (parts[..., :d] / len(parts) + parts[..., d:]) / (1 + len(parts))
    return mean * weight[:, None, None]


def fuse(parts: Numbers, weight: Numbers) -> Numbers:
    """mean(mean_m g^m, s^1, ..., s^M) (eq. 17), each modality by its weight: `[M, n, 2d]` -> `[n, d]`."""
    return shares(parts, weight).sum(axis=0)


def combine(config: DGMRecConfig, collaborative: Numbers, modal: Numbers) -> Numbers:
    """e of eq. 18 `[..., d]`: the sum of both parts, at unit length where cosines are the scores. Components of the
    linear form (`linear_size`) take no part in the sum: their cosine stands beside that of the others."""
    total = collaborative + modal
    if config.ranking != "softmax":
        return total
    if not config.linear_size:
        return linalg.unit(total)
    joint = linalg.unit(total[..., : -config.linear_size])
    linear = linalg.unit(collaborative[..., -config.linear_size :]) * config.linear_weight**0.5
    return library(total).concatenate([joint, linear], axis=-1) / (1 + config.linear_weight) ** 0.5


# --- generation (eq. 12-15) ------------------------------------------------------------------------------------------


def closed_form(inputs: Numbers, weights: Numbers) -> Numbers:
    """`[n, w]`, `[w + 1, r]` -> `[n, r]`, the last weights those of the constant."""
    return inputs @ weights[:-1] + weights[-1]


def near_duplicate_directions(tower: Tower, evidence: Evidence, name: str) -> Numbers:
    """`Evidence.near_duplicates` as directions among the components `[n, r_m]`."""
    duplicates = evidence.near_duplicates[name]
    return tower.projection.direction(duplicates * duplicates.shape[1] ** 0.5)


def base(tower: Tower, evidence: Evidence, name: str) -> Numbers:
    """The closed form that generation starts from: directions `[n, r_m]` as long as the cosine that they expect."""
    content = evidence.content_evidence(name)
    warm, described = evidence.has_interactions()[:, None], evidence.has_content(name)[:, None]
    duplicates = near_duplicate_directions(tower, evidence, name)
    from_users = closed_form(evidence.interaction_evidence(name), tower.interaction_weights)
    added = closed_form(content, tower.content_weights) + tower.near_duplicate_weights[0] * duplicates
    alone = closed_form(content, tower.content_only_weights) + tower.near_duplicate_weights[1] * duplicates
    return library(content).where(warm, from_users + described * added, described * alone)


def known_general(
    config: DGMRecConfig, towers: Towers, shared: Layer, evidence: Evidence, preference: Numbers, name: str
) -> Numbers:
    """g of a modality where it is observed, the modality's mean g elsewhere: `[n, d]`, preferences `[M, n, d]`."""
    column, tower = evidence.names.index(name), towers[name]
    general = activate(config, general_part(tower, shared, evidence.own[name])) * gate(config, preference[column])
    return library(general).where(evidence.observed[:, [column]], general, tower.mean_general)


def learned_parts(
    config: DGMRecConfig,
    towers: Towers,
    shared: Layer,
    evidence: Evidence,
    preference: Numbers,
    name: str,
    run: Callable[[Layer, Any], Any] = lambda layer, inputs: layer(inputs),
) -> tuple[Numbers, Numbers]:
    """The general and specific part `[n, d]` that the learned generators make of a modality (eq. 12-13), from the
    parts and preferences alone or beside all other evidence (`generator`).

    Args:
        preference: `[M, n, d]`.
        run: how a generator answers; training adds noise.
    """
    tower, xp = towers[name], library(preference)
    generals = [
        known_general(config, towers, shared, evidence, preference, evidence.names[column])
        for column in evidence.others(name)
    ]
    inputs = []
    if config.generator == "residual":
        interactions = evidence.interaction_evidence(name) * tower.interaction_mask
        content = evidence.content_evidence(name) * tower.content_mask
        inputs = [interactions * EVIDENCE_SCALE, content * EVIDENCE_SCALE]
    general = run(tower.general_generator, xp.concatenate([*generals, *inputs], axis=1))
    own = preference[evidence.names.index(name)]
    specific = run(tower.specific_generator, xp.concatenate([own, *inputs], axis=1))
    return activate(config, general), activate(config, specific)


def generation(
    config: DGMRecConfig, tower: Tower, evidence: Evidence, name: str, learned: Numbers | None
) -> tuple[Numbers, Numbers]:
    """Signals `[n, r_m]` of one modality for every row of the evidence, and what the confidence is read from
    `[n, FACTS]`: the base, from it the share of the learned generator's step that held-out cells bear out, and kNN
    smoothing.

    Args:
        learned: the learned generator's signals `[n, r_m]`; None where it is not trusted. With `generator=parts`, these
            are what is generated, and nothing is known of their length.
    """
    if config.generator == "parts":
        assert learned is not None
        return learned, generation_facts(evidence, name, learned[:, :1] * 0)
    start = base(tower, evidence, name)
    length = linalg.length(start).clip(max=1)
    direction = linalg.unit(start)
    if learned is not None:
        step = linalg.unit(tower.projection.direction(learned)) - direction
        direction = linalg.unit(direction + tower.trust * step)
    nearest = tower.mean_of_nearest(direction) if config.knn_smoothing else None
    if nearest is not None:
        direction = linalg.unit(direction + config.knn_smoothing * (1 - length) * linalg.unit(nearest))
    return tower.projection.signal(direction * length), generation_facts(evidence, name, length)


def generation_facts(evidence: Evidence, name: str, length: Numbers) -> Numbers:
    """What the confidence in a generated feature is read from, `[n, FACTS]`: one, the base's length `[n, 1]`, how many
    of the other modalities are observed, whether neighbours and interactions say anything, and these times the
    length."""
    column, others = evidence.names.index(name), evidence.others(name)
    observed = cast(evidence.observed[:, others].sum(axis=1, keepdims=True), length) / max(len(others), 1)
    flags = (evidence.neighbour_valid[:, [column]], evidence.co_interaction_valid[:, [column]])
    xp = library(length)
    facts = xp.concatenate([observed, *(cast(flag, length) for flag in flags)], axis=1)
    return xp.concatenate([xp.ones_like(length), length, facts, length * facts], axis=1)


def confidence(tower: Tower, facts: Numbers) -> Numbers:
    """Expected centred cosine between the generated and the true feature `[n]`, in 0..1."""
    return (facts @ tower.calibration).clip(0, 1)


# --- cold start ------------------------------------------------------------------------------------------------------


def across(rows: Numbers, axis: Numbers) -> Numbers:
    """What of the rows `[..., d]` lies across the axis of popularity `[d]`."""
    # Not a product of matrices, which rounds a row another way among other rows.
    along = rows @ axis if isinstance(rows, Tensor) else (rows * axis).sum(axis=-1)
    return rows - along[..., None] * axis


def content_row(features: Mapping[str, Numbers]) -> Numbers:
    """Features side by side `[n, sum of r_m]`, an observed one of length 1."""
    columns = [block / block.shape[1] ** 0.5 for block in features.values()]
    return library(columns[0]).concatenate(columns, axis=1)


def kernel_weight(config: DGMRecConfig, cosines: Numbers, degree: Numbers, power: float | None = None) -> Numbers:
    """How much neighbours weigh in the prediction of an item `[...]`, exp((cosine - 1) / t) degree^p, from their
    cosines and degrees `[...]`; cold ones nothing. The power is the configured one by default."""
    power = config.cold_popularity if power is None else power
    near = library(cosines).exp((cosines - 1) / config.cold_temperature)
    warm = cast(degree, cosines).clip(min=1)
    return library(cosines).where(degree > 0, near * warm**power, 0)


def shrink(own: Numbers, prediction: Numbers, degree: Numbers, pseudo_count: Numbers, axis: Numbers) -> Numbers:
    """Vectors `[n, d]` of warm items, shrunk across the axis of popularity towards the prediction from content, which
    counts as much as `pseudo_count` users beside the item's `degree` `[n]`."""
    share = pseudo_count / (degree + pseudo_count)
    return own + share[..., None] * across(prediction - own, axis)


# --- neighbours that an index has found ------------------------------------------------------------------------------


def mean_of_gathered(rows: Array, keys: Rows, weights: Array | None = None) -> tuple[Array, Mask]:
    """Mean `[b, ...]` of gathered rows `[b, k, ...]` of keys `[b, k]`, -1 for none, weighted by `[b, k]`; where there
    was any `[b]`. Over a whole catalogue `models.evidence.weighted_mean` computes the same without gathering."""
    present = keys >= 0
    counts = present.astype(np.float32) if weights is None else np.where(present, weights, np.float32(0))
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), np.float32(1e-12))
    return np.einsum("bk,bk...->b...", share, rows).astype(np.float32), np.asarray(present.any(axis=1))
