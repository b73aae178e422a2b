"""IRIS as it is served: items' sides once, in NumPy (see `models.dgmrec.weights` for why), then scores of targets for a
history and what speaks for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.arrays import Array
from models.bundle import Bundle, BundleWriter, ModelEntry
from models.dgmrec.weights import Linear, ProjectionWeights, numpy_of
from models.iris.config import IRISConfig
from models.iris.model import IRIS, NOTHING, ItemSides
from models.linalg import unit
from models.modality import ModalitySpec
from models.vocabulary import Vocabulary

Flags = NDArray[np.bool_]

NAME = "iris"
FILE = "iris.safetensors"
ITEMS = "iris_items"
AT_ONCE = 16_384  # pairs of target and history item scored at once, so that what comes between stays in the caches


@dataclass(frozen=True)
class Sides:
    """All that scoring needs of `n` items, one row each (`models.iris.ItemSides` as arrays).

    Attributes:
        p, q: `[n, d]`. lean: `[n]`. history, target: `[n, k]`. without: `[n, M, k]`.
    """

    p: Array
    q: Array
    lean: Array
    history: Array
    target: Array
    without: Array

    def __len__(self) -> int:
        return len(self.lean)

    def select(self, rows: Sequence[int] | NDArray[np.int64]) -> Sides:
        """The sides of these rows."""
        index = np.asarray(rows, dtype=np.int64)
        return Sides(*(getattr(self, one.name)[index] for one in fields(self)))

    @classmethod
    def joined(cls, parts: Sequence[Sides]) -> Sides:
        """Several items' sides below each other; there must be one part at least."""
        return cls(*(np.concatenate([getattr(part, one.name) for part in parts]) for one in fields(cls)))


@dataclass(frozen=True)
class Explained:
    """Scores of T targets for a history of H items, and what speaks for them.

    Attributes:
        score: `[T]`, the sum of the relevances and the target's lean.
        relevance: `[T, H]`, what each history item adds to the score, a_ij p_i . q_j |H|^-alpha; 0 for the target
            itself.
        shares: `[T, H, M]`, how the relevance falls to the history item's modalities: what it changes by were the
            modality not there, brought to a sum of 1; all 0 where no modality changes it.
    """

    score: Array
    relevance: Array
    shares: Array


class Reranker:
    """A trained IRIS. Features come raw and completed: a missing one is the generated one, or marked as not present."""

    def __init__(self, model: IRIS, items: Vocabulary) -> None:
        self.model = model.eval().requires_grad_(False)
        self.items = items
        self._projections = [ProjectionWeights(model.projection(name)) for name in model.names]
        self._towers = [Linear([model.towers.first[name]]) for name in model.names]
        self._readers = numpy_of(model.readers())  # [M, h, 2k]
        self._bias, self._typical = numpy_of(model.bias), numpy_of(model.typical)
        self._from_content, self._met = numpy_of(model.from_content), model.met.numpy()
        self._factors = numpy_of(model.p), numpy_of(model.q), numpy_of(model.lean)[:, None]

    @property
    def names(self) -> tuple[str, ...]:
        """The modalities that are read, in the order of the columns of `present` and `shares`."""
        return self.model.names

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of one item's row in each field of `Sides`."""
        d, k = self.model.p.shape[1], self.model.config.interest_size
        sizes = {"p": (d,), "q": (d,), "lean": (), "history": (k,), "target": (k,), "without": (len(self.names), k)}
        return {one.name: sizes[one.name] for one in fields(Sides)}

    def sides(self, features: Mapping[str, Array], present: Flags, ids: Sequence[str]) -> Sides:
        """What scoring needs of items, known or new.

        Args:
            features: raw, by modality `[n, dim_m]`; rows that are not present hold anything finite.
            present: `[n, M]`, columns as in `names`; a generated feature is present.
            ids: whose latent factors are taken where training met the item, and predicted from content otherwise.
        """
        there = present.astype(np.float32)
        d, k = self.model.p.shape[1], len(self._bias)
        signals = [
            projection.project(features[name]) for name, projection in zip(self.names, self._projections, strict=True)
        ]
        factors = self._factors_of(signals, there, ids)
        shares = np.zeros((len(self.names), len(ids), 2 * k), np.float32)  # of each modality in both roles (eq. 7-8)
        for column, (signal, tower) in enumerate(zip(signals, self._towers, strict=True)):
            shares[column] = (np.maximum(tower(signal), 0) * there[:, [column]]) @ self._readers[column]
        roles = shares.sum(axis=0)
        history = roles[:, :k] + self._bias
        without = history - shares[:, :, :k]  # what a modality adds, the item lacks without it
        p, q, lean = factors[:, :d], factors[:, d : 2 * d], factors[:, 2 * d]
        return Sides(p, q, lean, history, roles[:, k:], without.swapaxes(0, 1))

    def _factors_of(self, signals: Sequence[Array], there: Array, ids: Sequence[str]) -> Array:
        """[p; q; b] `[n, 2d + 1]` of items: predicted from content where training did not meet them."""
        told = [unit(signal) * there[:, [column]] for column, signal in enumerate(signals)]
        expected = self._typical + np.concatenate([*told, there], axis=1) @ self._from_content
        factors = np.asarray(expected, dtype=np.float32)
        rows = [self.items.get(one) for one in ids]
        met = {place: row for place, row in enumerate(rows) if row is not None and self._met[row]}
        if met:
            trained = [part[list(met.values())] for part in self._factors]
            factors[list(met)] = np.concatenate(trained, axis=1)
        return factors

    def score(
        self, history: Sides, targets: Sides, *, weights: Array | None = None, same: Flags | None = None
    ) -> Array:
        """Scores `[T]`; arguments as for `explain`."""
        past, wanted = _opened(history), _opened(targets)
        counts, length = _counted(history, targets, weights, same)
        scores = wanted.lean.clone()
        step = max(AT_ONCE // max(len(history), 1), 1)
        for start in range(0, len(targets), step):
            some = slice(start, start + step)
            relevance = self._relevance(past, _rows(wanted, some), counts[some], length[some])
            scores[some] += relevance.sum(dim=1)
        found: Array = scores.numpy()
        return found

    def alike(self, history: Sides, *, weights: Array | None = None) -> Array:
        """The query `[d + 1]` whose inner product with a target's `[q; lean]` is the target's score were all interests
        1: what an index can be searched by for targets worth scoring."""
        share = np.ones(len(history), np.float32) if weights is None else weights
        length = max(float(share.sum()), 1.0)
        config = self.model.config
        query: Array = np.append(share @ history.p / length ** (config.alpha + config.beta), 1).astype(np.float32)
        return query

    def explain(
        self, history: Sides, targets: Sides, *, weights: Array | None = None, same: Flags | None = None
    ) -> Explained:
        """Score targets for a history and say what speaks for them.

        Args:
            history: of the H items that the user has met; may be empty, and then only the leans speak.
            targets: of the T items in question.
            weights: `[H]`, how much each history item counts; 1 by default.
            same: `[T, H]`, where the history item is the target itself, which then is no part of its own history.
        """
        past, wanted = _opened(history), _opened(targets)
        counts = _counted(history, targets, weights, same)
        relevance = self._relevance(past, wanted, *counts)
        change = self._changes(past, wanted, relevance, *counts)
        shares = change / change.sum(dim=2, keepdim=True).clamp_min(NOTHING)
        return Explained((relevance.sum(dim=1) + wanted.lean).numpy(), relevance.numpy(), shares.numpy())

    @torch.inference_mode()
    def _relevance(self, history: ItemSides, targets: ItemSides, counts: Tensor, length: Tensor) -> Tensor:
        interest = self._interest(history.history, targets) * counts  # [T, H]
        return self._weighed(interest, interest.sum(dim=1, keepdim=True), history, targets, length)

    def _interest(self, history: Tensor, targets: ItemSides) -> Tensor:
        return self.model.interest(history, targets.target).T  # [T, H]

    def _weighed(
        self, interest: Tensor, total: Tensor, history: ItemSides, targets: ItemSides, length: Tensor
    ) -> Tensor:
        """a_ij p_i . q_j |H|^-alpha `[T, H]`. (eq. 4-5)"""
        config = self.model.config
        scale = total.clamp_min(NOTHING) ** config.beta * length**config.alpha  # [T, 1]
        return interest / scale * (targets.q @ history.p.T)

    @torch.inference_mode()
    def _changes(
        self, history: ItemSides, targets: ItemSides, relevance: Tensor, counts: Tensor, length: Tensor
    ) -> Tensor:
        """By how much each relevance changes were one of the history item's modalities not there, `[T, H, M]`."""
        interest = self._interest(history.history, targets) * counts
        total = interest.sum(dim=1, keepdim=True)
        changed = []
        for column in range(len(self.names)):
            other = self._interest(history.without[:, column], targets) * counts
            # Each history item loses it by itself: the others' interests stay in the sum.
            changed.append((relevance - self._weighed(other, total - interest + other, history, targets, length)).abs())
        return torch.stack(changed, dim=2) if changed else relevance[..., None][..., :0]

    # --- bundle ------------------------------------------------------------------------------------------------------

    def save(self, writer: BundleWriter, metrics: Mapping[str, float]) -> ModelEntry:
        """Write weights and vocabulary into a bundle."""
        writer.tensors(FILE, {name: one.cpu().numpy() for name, one in self.model.state_dict().items()})
        writer.vocabulary(ITEMS, self.items)
        config: dict[str, Any] = {
            "model": self.model.config.model_dump(mode="json"),
            "sizes": {spec.name: spec.dim for spec in self.model.specs},
        }
        return ModelEntry(config=config, metrics=dict(metrics), file=FILE)

    @classmethod
    def load(cls, bundle: Bundle) -> Reranker | None:
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
            model.load_state_dict({name: torch.from_numpy(one) for name, one in arrays.items()})
        return cls(model, items)


def _opened(sides: Sides) -> ItemSides:
    return ItemSides(*(_tensor(getattr(sides, one.name)) for one in fields(Sides)))


def _rows(sides: ItemSides, rows: slice) -> ItemSides:
    return ItemSides(*(getattr(sides, one.name)[rows] for one in fields(sides)))


def _counted(history: Sides, targets: Sides, weights: Array | None, same: Flags | None) -> tuple[Tensor, Tensor]:
    """How much each history item counts for each target `[T, H]`, and the histories' lengths `[T, 1]`, 1 at least."""
    counts = torch.ones(len(targets), len(history)) if weights is None else _tensor(weights).expand(len(targets), -1)
    counts = counts if same is None else counts * ~_tensor(same)
    return counts, counts.sum(dim=1, keepdim=True).clamp_min(1)


def _tensor(array: NDArray[Any]) -> Tensor:
    # What comes straight from a database is read-only, which torch warns of.
    return torch.from_numpy(array if array.flags.writeable else array.copy())
