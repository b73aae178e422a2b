"""DGMRec as a service uses it: from a bundle, a few items at a time, NumPy in and out.

The numbers come from the very functions that training uses; only the neighbours are handed in from an index instead
of a graph, and collaborative parts are folded in (see `DGMRec.fold_in_tables`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from models.bundle import Bundle, BundleError, BundleWriter, ModelEntry
from models.dgmrec import DGMRec, DGMRecConfig
from models.imputers import Evidence
from models.modality import ModalitySpec
from models.vocabulary import Vocabulary

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]

FILE = "dgmrec.safetensors"
TABLES = (
    "user_residual",  # [U, d], see DGMRec.fold_in_tables; zero rows for users without training interactions
    "user_message",  # [U, d]
    "item_message",  # [n, d]
    "item_id",  # [n, d], LightGCN's collaborative part
    "item_taste",  # [n, M, d]
    "mean_taste",  # [M, d], over the items that somebody touched
    "user_factor",  # [U, q], see imputers.user_factors
    "item_factor",  # [n, q], see imputers.collaborative_factors
    "known",  # uint8 [n], items with training interactions
    "observed",  # uint8 [n, M], the cells that training saw
    "confidence",  # [n, M], of the generated cells
)
FOLD_IN_PRIOR = 5.0  # interactions at which a new item's own users weigh as much as what its content predicts


@dataclass(frozen=True)
class Known:
    """What is known of `b` items before generation.

    `features` by modality `[b, r_m]` projected, zero where unobserved; `observed` bool `[b, M]`; `near` and `shared`
    as in Evidence, with their validity; `factors` `[b, q]` as in Evidence; `taste` `[b, M, d]`.
    """

    features: Mapping[str, Array]
    observed: Mask
    near: Mapping[str, Array]
    near_valid: Mask
    shared: Mapping[str, Array]
    shared_valid: Mask
    factors: Array
    taste: Array


class OnlineDGMRec:
    """A trained DGMRec with its serving tables."""

    def __init__(self, model: DGMRec, tables: Mapping[str, Array], users: Vocabulary, items: Vocabulary) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tables = dict(tables)
        self.users, self.items = users, items
        self.names = model.names
        self.specs = {spec.name: spec for spec in model.specs}
        self.size = model.config.embedding_size
        self.neighbours, self.layers = model.config.neighbours, model.config.item_layers
        self.ranks = {name: int(model.tower(name).from_content.shape[1]) for name in self.names}

    @classmethod
    def load(cls, bundle: Bundle) -> OnlineDGMRec:
        """Rebuild from a bundle.

        Raises:
            BundleError: the bundle holds no DGMRec, or one that this Lacuna cannot read.
        """
        entry = bundle.manifest.models.get("dgmrec")
        if entry is None:
            raise BundleError(f"the bundle {bundle.path} holds no dgmrec model")
        specs = [ModalitySpec(modality.name, modality.dim) for modality in bundle.manifest.modalities]
        users, items = bundle.vocabulary("users"), bundle.vocabulary("items")
        arrays = bundle.tensors(entry.file)
        try:
            config = DGMRecConfig.model_validate(entry.config)
            model = DGMRec(config, specs, len(users), len(items))
            model.load_state_dict(
                {
                    key.removeprefix("model."): torch.from_numpy(array)
                    for key, array in arrays.items()
                    if key.startswith("model.")
                }
            )
            features = [f"feature.{name}" for name in model.names]  # [n, r_m], completed and projected
            tables = {name: arrays[f"table.{name}"] for name in (*TABLES, *features)}
        except (ValidationError, RuntimeError, KeyError) as error:
            raise BundleError(
                f"the dgmrec model of the bundle {bundle.path} does not fit this Lacuna: {str(error).splitlines()[0]}"
            ) from None
        return cls(model, tables, users, items)

    def save(self, writer: BundleWriter, metrics: Mapping[str, float]) -> ModelEntry:
        """Write weights, tables and vocabularies into a bundle."""
        arrays: dict[str, NDArray[Any]] = {
            f"model.{key}": value.cpu().numpy() for key, value in self.model.state_dict().items()
        }
        arrays |= {f"table.{name}": array for name, array in self.tables.items()}
        writer.tensors(FILE, arrays)
        writer.vocabulary("users", self.users)
        writer.vocabulary("items", self.items)
        return ModelEntry(config=self.model.config.model_dump(), metrics=dict(metrics), file=FILE)

    # --- features --------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def project(self, name: str, raw: Array) -> Array:
        """Raw features `[b, dim_m]` to projected ones `[b, r_m]`."""
        return _numpy(self.model.tower(name).projection(_tensor(raw)))

    @torch.inference_mode()
    def unproject(self, name: str, projected: Array) -> Array:
        """Projected features `[b, r_m]` to raw ones `[b, dim_m]`."""
        return _numpy(self.model.tower(name).projection.back(_tensor(projected)))

    def centred_cosine(self, name: str, left: Array, right: Array) -> float:
        """Cosine of two raw features `[dim_m]` after subtracting the modality's mean."""
        mean = _numpy(self.model.tower(name).projection.mean)
        a, b = left - mean, right - mean
        return float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-12))

    def trained_row(self, item: str) -> int | None:
        """The row of an item that training saw interactions of, or None."""
        row = self.items.get(item)
        return row if row is not None and self.tables["known"][row] else None

    def described(self, name: str) -> bool:
        """Whether training saw anything of this modality, so that its mean means something."""
        return bool(self.model.tower(name).projection.mean.any())

    # --- generation and embedding ------------------------------------------------------------------------------

    @torch.inference_mode()
    def generate(self, known: Known) -> dict[str, tuple[Array, Array]]:
        """The modalities that any of `b` items lacks, as DGMRec generates them for all: projected `[b, r_m]`, and the
        confidence `[b]`."""
        evidence = Evidence(
            _tensors(known.features),
            _tensors(known.near),
            _tensors(known.shared),
            _tensor(known.factors),
            _tensor(known.observed),
            _tensor(known.near_valid),
            _tensor(known.shared_valid),
        )
        taste = _leading(known.taste)
        lacking = [name for column, name in enumerate(self.names) if not known.observed[:, column].all()]
        made = {name: self.model.generate(name, evidence, taste) for name in lacking}
        return {
            name: (_numpy(generation.features), _numpy(self.model.confidence(name, generation)))
            for name, generation in made.items()
        }

    @torch.inference_mode()
    def encode(self, features: Mapping[str, Array], taste: Array) -> Array:
        """General and specific parts `[b, M, 2d]` of completed features `[b, r_m]` under taste `[b, M, d]`."""
        return _numpy(self.model.encode(_tensors(features), _leading(taste)).transpose(0, 1))

    @torch.inference_mode()
    def fuse(self, propagated: Array) -> Array:
        """Modal part `[b, d]` from propagated parts `[b, M, 2d]`."""
        return _numpy(self.model.fuse(_leading(propagated)))

    @torch.inference_mode()
    def predict_id(self, features: Mapping[str, Array], ids: Sequence[str]) -> Array:
        """The collaborative part `[b, d]` that completed features `[b, r_m]` let expect of untouched items, which are
        new if training did not have them in its catalogue."""
        new = np.array([item not in self.items for item in ids])
        predicted = np.empty((len(ids), self.size), dtype=np.float32)
        for which in np.unique(new):
            rows = new == which
            some = {name: block[rows] for name, block in features.items()}
            predicted[rows] = _numpy(self.model.predict_id(_tensors(some), new=bool(which)))
        return predicted

    @torch.inference_mode()
    def preference(self, user_id: Array) -> Array:
        """p_u^m `[b, M, d]` from collaborative parts `[b, d]`."""
        return _numpy(self.model.preference(_tensor(user_id)).transpose(0, 1))

    @torch.inference_mode()
    def combine(self, collaborative: Array, modal: Array) -> Array:
        """What users and items are compared by `[..., d]` (eq. 18)."""
        return _numpy(self.model.combine(_tensor(collaborative), _tensor(modal)))

    # --- fold-in -----------------------------------------------------------------------------------------------

    def user_id(self, user: str | None, messages: Array, weights: Array | None = None) -> Array:
        """A user's collaborative part `[d]` from the messages `[k, d]` of the items of the history.

        Exactly LightGCN's for a user of the training set with the training history. For a user that training never
        saw, the embedding's own layer is taken to be the mean of the propagated ones.
        """
        if weights is None:
            weights = np.ones(len(messages), dtype=np.float32)
        folded = weights @ messages / np.sqrt(max(float(weights.sum()), 1.0))
        row = None if user is None else self.users.get(user)
        if row is not None and self.tables["user_residual"][row].any():
            return np.asarray(self.tables["user_residual"][row] + folded, dtype=np.float32)
        return np.asarray(folded * self._without_own_layer, dtype=np.float32)

    def user_message(self, user: str, user_id: Array, degree: int) -> Array:
        """What a user with `degree` items passes on to an item `[d]`."""
        row = self.users.get(user)
        if row is not None and self.tables["user_message"][row].any():
            return np.asarray(self.tables["user_message"][row], dtype=np.float32)
        return np.asarray(user_id / self._without_own_layer / np.sqrt(max(degree, 1)), dtype=np.float32)

    def item_id(self, predicted: Array, messages: Array) -> Array:
        """A new item's collaborative part `[d]`: what content predicts, giving way to its users' messages `[k, d]`."""
        count = len(messages)
        if count == 0:
            return predicted
        folded = messages.sum(axis=0) / np.sqrt(count) * self._without_own_layer
        return np.asarray((FOLD_IN_PRIOR * predicted + count * folded) / (FOLD_IN_PRIOR + count), dtype=np.float32)

    def item_message(self, item_id: Array, degree: int) -> Array:
        """What a new item with `degree` users passes on to a user `[d]`."""
        return np.asarray(item_id / self._without_own_layer / np.sqrt(max(degree, 1)), dtype=np.float32)

    def user_factor(self, user: str) -> Array | None:
        """What a user adds to the collaborative factors of an item `[q]`; None for one that training did not see."""
        row = self.users.get(user)
        return None if row is None else self.tables["user_factor"][row]

    def item_factor(self, users: Sequence[Array]) -> Array:
        """An item's collaborative factors `[q]` from its users'; zero without any."""
        total = np.sum(users, axis=0, dtype=np.float32) if users else np.zeros(self.model.config.factors, np.float32)
        return np.asarray(total / max(float(np.linalg.norm(total)), 1e-12), dtype=np.float32)

    @property
    def _without_own_layer(self) -> float:
        layers = self.model.config.layers
        return (layers + 1) / layers


def _numpy(tensor: Tensor) -> Array:
    array: Array = tensor.contiguous().numpy()
    return array


def _tensor(array: Array | Mask) -> Tensor:
    # What comes straight from a database is read-only, which torch warns of.
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _tensors(arrays: Mapping[str, Array]) -> dict[str, Tensor]:
    return {name: _tensor(array) for name, array in arrays.items()}


def _leading(array: Array) -> Tensor:
    """`[b, M, k]` -> `[M, b, k]`."""
    return _tensor(array).transpose(0, 1)
