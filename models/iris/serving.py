"""IRIS as it is served: items' sides once, then scores of targets for a history and the relevances behind them.

All of it is NumPy (`models.dgmrec.weights` says why); torch holds the weights only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from models.arrays import Array, Mask, Rows
from models.bundle import Bundle, BundleWriter, ModelEntry
from models.dgmrec.weights import Linear, ProjectionWeights, numpy_of
from models.iris import inference
from models.iris.config import IRISConfig
from models.iris.inference import NOTHING
from models.iris.model import IRIS
from models.linalg import unit
from models.modality import ModalitySpec
from models.vocabulary import Vocabulary

NAME = "iris"
FILE = "iris.safetensors"
ITEMS = "iris_items"
AT_ONCE = 16_384  # pairs of target and history item scored at once, so that what comes between stays in the caches


@dataclass(frozen=True)
class ItemSides:
    """All that scoring needs of `n` items, one row each.

    Attributes:
        p, q: `[n, d]`, latent factors as a history item and as a target.
        item_bias: `[n]`, b_j.
        history, target: `[n, k]`, what the item brings into the interest-related network in either role.
        without: `[n, M, k]`, `history` had the item not the modality.
    """

    p: Array
    q: Array
    item_bias: Array
    history: Array
    target: Array
    without: Array

    def __len__(self) -> int:
        return len(self.item_bias)

    def select(self, rows: Sequence[int] | Rows | slice) -> ItemSides:
        """The sides of these rows."""
        index = rows if isinstance(rows, slice) else np.asarray(rows, dtype=np.int64)
        return ItemSides(*(getattr(self, field.name)[index] for field in fields(self)))


@dataclass(frozen=True)
class Explained:
    """Scores of T targets for a history of H items, and the relevances that they are made of.

    Attributes:
        score: `[T]`, the sum of the relevances and the target's item bias.
        interest: `[T, H]`, a_ij, how much each history item counts for the target; 0 for the target itself. (eq. 4)
        relevance: `[T, H]`, what each history item adds to the score, a_ij p_i . q_j |H|^-alpha; 0 for the target
            itself.
        effects: `[T, H, M]`, by how much each of the history item's modalities raises its relevance: the relevance less
            what it is without the modality.
        shares: `[T, H, M]`, the size of these effects, brought to a sum of 1; all 0 where no modality changes it.
    """

    score: Array
    interest: Array
    relevance: Array
    effects: Array
    shares: Array


class IRISServing:
    """A trained IRIS. Features come raw and completed: a missing one is the generated one, or marked as not present."""

    def __init__(self, model: IRIS, items: Vocabulary) -> None:
        self.model = model.eval().requires_grad_(False)
        self.items = items
        projections = [model.projection(name) for name in model.names]
        self._projections = [None if one is None else ProjectionWeights(one) for one in projections]
        self._scales = numpy_of(model.scales)
        first = model.towers.first
        self._towers = [Linear([first[name]]) if name in first else None for name in model.names]
        self._readers = numpy_of(model.readers())  # [M, h, 2k]
        self._bias, self._h = numpy_of(model.bias), numpy_of(model.h)
        self._mean_factors, self._from_content = numpy_of(model.mean_factors), numpy_of(model.from_content)
        self._warm: Mask = model.warm.numpy()
        self._factors = numpy_of(model.p), numpy_of(model.q), numpy_of(model.item_bias)[:, None]

    @property
    def names(self) -> tuple[str, ...]:
        """The modalities that are read, in the order of the columns of `present` and `shares`."""
        return self.model.names

    @property
    def reads_generated(self) -> bool:
        """Whether a generated feature counts as present; else a missing modality is zero."""
        return self.model.config.generated

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of one item's row in each field of `ItemSides`."""
        d, k = self.model.p.shape[1], self.model.config.interest_size
        sizes = {
            "p": (d,),
            "q": (d,),
            "item_bias": (),
            "history": (k,),
            "target": (k,),
            "without": (len(self.names), k),
        }
        return {field.name: sizes[field.name] for field in fields(ItemSides)}

    def sides(self, features: Mapping[str, Array], present: Mask, ids: Sequence[str]) -> ItemSides:
        """What scoring needs of items, known or new.

        Args:
            features: raw, by modality `[n, dim_m]`; rows that are not present hold anything finite.
            present: `[n, M]`, columns as in `names`; a generated feature is present where `reads_generated`.
            ids: whose latent factors are those of training where the item is warm, and predicted from content
                otherwise.
        """
        flags = present.astype(np.float32)
        d, k = self.model.p.shape[1], len(self._bias)
        signals = [
            features[name] / scale if projection is None else projection.project(features[name])
            for name, projection, scale in zip(self.names, self._projections, self._scales, strict=True)
        ]
        factors = self._factors_of(signals, flags, ids)
        shares = np.zeros((len(self.names), len(ids), 2 * k), np.float32)  # of each modality in both roles (eq. 7-8)
        for column, (signal, tower) in enumerate(zip(signals, self._towers, strict=True)):
            hidden = signal if tower is None else np.maximum(tower(signal), 0)
            shares[column] = np.where(present[:, [column]], hidden, np.float32(0)) @ self._readers[column]
        roles = shares.sum(axis=0)
        history = roles[:, :k] + self._bias
        without = history - shares[:, :, :k]  # what a modality adds, the item lacks without it
        p, q, item_bias = factors[:, :d], factors[:, d : 2 * d], factors[:, 2 * d]
        return ItemSides(p, q, item_bias, history, roles[:, k:], without.swapaxes(0, 1))

    def _factors_of(self, signals: Sequence[Array], flags: Array, ids: Sequence[str]) -> Array:
        """[p; q; b] `[n, 2d + 1]` of items: predicted from content for cold ones."""
        units = [unit(signal) * flags[:, [column]] for column, signal in enumerate(signals)]
        predicted = self._mean_factors + np.concatenate([*units, flags], axis=1) @ self._from_content
        factors = np.asarray(predicted, dtype=np.float32)
        rows = [self.items.get(item) for item in ids]
        warm = {place: row for place, row in enumerate(rows) if row is not None and self._warm[row]}
        if warm:
            trained = [part[list(warm.values())] for part in self._factors]
            factors[list(warm)] = np.concatenate(trained, axis=1)
        return factors

    def score(
        self, history: ItemSides, targets: ItemSides, *, weights: Array | None = None, same: Mask | None = None
    ) -> Array:
        """Scores `[T]`; arguments as for `explain`."""
        counts, length = _counted(history, targets, weights, same)
        scores = targets.item_bias.copy()
        step = max(AT_ONCE // max(len(history), 1), 1)
        for start in range(0, len(targets), step):
            rows = slice(start, start + step)
            relevance = self._relevance(history, targets.select(rows), counts[rows], length[rows])
            scores[rows] += relevance.sum(axis=1)
        return scores

    def alike(self, history: ItemSides, *, weights: Array | None = None) -> Array:
        """The query `[d + 1]` whose inner product with a target's `[q; item_bias]` is the target's score were all
        interests 1: what an index can be searched by for targets worth scoring."""
        share = np.ones(len(history), np.float32) if weights is None else weights
        length = max(float(share.sum()), 1.0)
        config = self.model.config
        query: Array = np.append(share @ history.p / length ** (config.alpha + config.beta), 1).astype(np.float32)
        return query

    def explain(
        self, history: ItemSides, targets: ItemSides, *, weights: Array | None = None, same: Mask | None = None
    ) -> Explained:
        """Score targets for a history, with the relevances behind it.

        Args:
            history: of the H items of the user's history; may be empty, and then only the item biases count.
            targets: of the T items in question.
            weights: `[H]`, how much each history item counts; 1 by default.
            same: `[T, H]`, where the history item is the target itself, which then is no part of its own history.
        """
        counts, length = _counted(history, targets, weights, same)
        interest, shift = self._interest(history.history, targets)
        interest = interest * counts  # [T, H]
        total = interest.sum(axis=1, keepdims=True)
        relevance = self._weighted(interest, shift, total, history, targets, length)
        effects = self._effects(history, targets, relevance, interest, shift, counts, length)
        size = np.abs(effects)
        shares = size / np.maximum(size.sum(axis=2, keepdims=True), np.float32(NOTHING))
        beta = self.model.config.beta
        a = interest / inference.normaliser(total, length, alpha=0.0, beta=beta) * inference.rescaled(shift, beta)
        return Explained(relevance.sum(axis=1) + targets.item_bias, a, relevance, effects, shares)

    def _relevance(self, history: ItemSides, targets: ItemSides, counts: Array, length: Array) -> Array:
        interest, shift = self._interest(history.history, targets)
        interest = interest * counts  # [T, H]
        return self._weighted(interest, shift, interest.sum(axis=1, keepdims=True), history, targets, length)

    def _interest(self, history: Array, targets: ItemSides) -> tuple[Array, Array]:
        """Interests `[T, H]`, and by what they are shifted, `[T, 1]`."""
        bounded = self.model.config.bounded
        interest, shift = inference.interest(history, targets.target, self._h, bounded=bounded)
        return interest.T, shift[:, None]

    def _weighted(
        self, interest: Array, shift: Array, total: Array, history: ItemSides, targets: ItemSides, length: Array
    ) -> Array:
        """a_ij p_i . q_j |H|^-alpha `[T, H]`. (eq. 4-5)"""
        config = self.model.config
        scale = inference.normaliser(total, length, alpha=config.alpha, beta=config.beta)
        return interest / scale * inference.rescaled(shift, config.beta) * (targets.q @ history.p.T)

    def _effects(
        self,
        history: ItemSides,
        targets: ItemSides,
        relevance: Array,
        interest: Array,
        shift: Array,
        counts: Array,
        length: Array,
    ) -> Array:
        """By how much each relevance is larger than were one of the history item's modalities not there `[T, H, M]`."""
        total = interest.sum(axis=1, keepdims=True)
        effects = np.zeros((*relevance.shape, len(self.names)), np.float32)
        for column in range(len(self.names)):
            other, others_shift = self._interest(history.without[:, column], targets)
            other = other * np.exp(others_shift - shift) * counts  # by the shift of the others, which stay in the sum
            # Each history item loses it by itself.
            changed = self._weighted(other, shift, total - interest + other, history, targets, length)
            effects[..., column] = relevance - changed
        return effects

    # --- bundle ------------------------------------------------------------------------------------------------------

    def save(self, writer: BundleWriter, metrics: Mapping[str, float]) -> ModelEntry:
        """Write weights and vocabulary into a bundle."""
        writer.tensors(FILE, {name: tensor.cpu().numpy() for name, tensor in self.model.state_dict().items()})
        writer.vocabulary(ITEMS, self.items)
        config: dict[str, Any] = {
            "model": self.model.config.model_dump(mode="json"),
            "sizes": {spec.name: spec.dim for spec in self.model.specs},
        }
        return ModelEntry(config=config, metrics=dict(metrics), file=FILE, form=self.model.config.form)

    @classmethod
    def load(cls, bundle: Bundle) -> IRISServing | None:
        """Rebuild from a bundle; None where it holds no IRIS.

        Raises:
            BundleError: it holds one that this Lacuna cannot read.
        """
        entry = bundle.manifest.models.get(NAME)
        if entry is None:
            return None
        arrays = bundle.tensors(entry.file)
        with bundle.reading(NAME):
            items = bundle.vocabulary(ITEMS)
            specs = [ModalitySpec(name, dim) for name, dim in entry.config["sizes"].items()]
            model = IRIS(IRISConfig.model_validate(entry.config["model"]), specs, len(items))
            model.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
        return cls(model, items)


def _counted(history: ItemSides, targets: ItemSides, weights: Array | None, same: Mask | None) -> tuple[Array, Array]:
    """How much each history item counts for each target `[T, H]`, and the histories' lengths `[T, 1]`, 1 at least."""
    shape = len(targets), len(history)
    counts: Array = np.ones(shape, np.float32) if weights is None else np.broadcast_to(weights, shape)
    counts = counts if same is None else counts * ~same
    return counts, np.maximum(counts.sum(axis=1, keepdims=True), np.float32(1))
