"""DGMRec as a service uses it: from a bundle, a few items at a time, in NumPy (see `models.dgmrec.weights` for why).

Methods compute what `DGMRec`'s of the same name do; only the neighbours are handed in from an index instead of a graph,
and collaborative parts are folded in (see `DGMRec.fold_in_tables`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.bundle import Bundle, BundleError, BundleWriter, ModelEntry
from models.dgmrec.config import DGMRecConfig
from models.dgmrec.generator import EVIDENCE_SCALE, leaned_on
from models.dgmrec.model import DGMRec
from models.dgmrec.weights import Array, FrozenTower, Linear, answer, length, numpy_of, sigmoid, unit
from models.modality import ModalitySpec
from models.vocabulary import Vocabulary

Mask = NDArray[np.bool_]

FILE = "dgmrec.safetensors"
TABLES = (
    "user_residual",  # [U, d], see DGMRec.fold_in_tables; zero rows for users without training interactions
    "user_message",  # [U, d]
    "item_message",  # [n, d]
    "item_id",  # [n, d], LightGCN's collaborative part
    "id_length",  # [1], the mean length of the collaborative parts of items that somebody touched
    "item_expected",  # [n, d], see Settling.settle
    "item_degree",  # [n], number of training interactions
    "item_taste",  # [n, M, d]
    "mean_taste",  # [M, d], over the items that somebody touched
    "user_factor",  # [U, q], see evidence.user_factors
    "item_factor",  # [n, q], see evidence.collaborative_factors
    "known",  # uint8 [n], items with training interactions
    "observed",  # uint8 [n, M], the cells that training saw
    "confidence",  # [n, M], of the generated cells
    "rung_weight",  # [n, M], see imputers.Spread
)
BY_MODALITY = (
    "feature",  # [n, r_m], completed and projected
    "rung",  # [n, r_m], see imputers.Spread
)
# Interactions at which a new item's own users weigh as much as what its content leads to expect. More than the prior of
# items that training knew: what is folded in lacks the layer of its own that keeps a single user's item modest.
FOLD_IN_PRIOR = 5.0


@dataclass(frozen=True)
class Known:
    """What is known of `b` items before generation.

    `features` by modality `[b, r_m]` projected, zero where unobserved; `observed` bool `[b, M]`; `near`, `closest` and
    `shared` as in `models.imputers.Evidence`, with their validity; `factors` `[b, q]` likewise; `taste` `[b, M, d]`.
    """

    features: Mapping[str, Array]
    observed: Mask
    near: Mapping[str, Array]
    closest: Mapping[str, Array]
    near_valid: Mask
    shared: Mapping[str, Array]
    shared_valid: Mask
    factors: Array
    taste: Array

    def touched(self) -> Mask:
        """Items of which interactions say anything, bool `[b]`."""
        return np.asarray(self.shared_valid.any(axis=1) | self.factors.any(axis=1))

    def from_interactions(self) -> Array:
        """What an item's users tell about it: `[b, interaction_width]`."""
        blocks = [unit(block) for block in self.shared.values()]
        return np.concatenate([*blocks, self.factors, self.shared_valid], axis=1, dtype=np.float32)

    def from_content(self, column: int) -> Array:
        """What an item's other modalities tell about the one in this column: `[b, content_width]`. Its own feature is
        not among them."""
        names = list(self.features)
        others = [place for place in range(len(names)) if place != column]
        told = [*(self.features[names[place]] for place in others), self.near[names[column]]]
        flags = self.observed[:, others], self.near_valid[:, [column]]
        return np.concatenate([*map(unit, told), *flags], axis=1, dtype=np.float32)


class OnlineDGMRec:
    """A trained DGMRec with its serving tables. The model must not change any more."""

    def __init__(self, model: DGMRec, tables: Mapping[str, Array], users: Vocabulary, items: Vocabulary) -> None:
        self.model = model.eval().requires_grad_(False)
        self._towers = [FrozenTower(model.tower(name)) for name in model.names]
        self._by_name = dict(zip(model.names, self._towers, strict=True))
        columns = range(len(model.names))
        self._others = [[other for other in columns if other != column] for column in columns]
        self._general = Linear([model.general])
        settling = model.settling
        self._axis, self._untouched_map = numpy_of(settling.popularity_axis), numpy_of(settling.untouched_map)
        self._taste = Linear([model.tower(name).taste for name in model.names])
        count = len(model.names)
        weight = numpy_of(model.weight.exp()) / np.float32(1 + count)
        self._fusing = np.stack([weight / np.float32(count), weight], axis=1).ravel()  # of g^1, s^1, g^2, ... (eq. 17)
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
        with bundle.reading("dgmrec"):
            config = DGMRecConfig.model_validate(entry.config)
            model = DGMRec(config, specs, len(users), len(items))
            model.load_state_dict(
                {
                    key.removeprefix("model."): torch.from_numpy(array)
                    for key, array in arrays.items()
                    if key.startswith("model.")
                }
            )
            own = [f"{table}.{name}" for table in BY_MODALITY for name in model.names]
            tables = {name: arrays[f"table.{name}"] for name in (*TABLES, *own)}
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

    def project(self, name: str, raw: Array) -> Array:
        """Raw features `[b, dim_m]` to projected ones `[b, r_m]`."""
        return self._by_name[name].projection(raw)

    def unproject(self, name: str, projected: Array) -> Array:
        """Projected features `[b, r_m]` to raw ones `[b, dim_m]`."""
        return self._by_name[name].projection.back(projected)

    def centred_cosine(self, name: str, left: Array, right: Array) -> float:
        """Cosine of two raw features `[dim_m]` after subtracting the modality's mean."""
        mean = self._by_name[name].projection.mean
        a, b = left - mean, right - mean
        return float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-12))

    def trained_row(self, item: str) -> int | None:
        """The row of an item that training saw interactions of, or None."""
        row = self.items.get(item)
        return row if row is not None and self.tables["known"][row] else None

    @property
    def rung(self) -> str:
        """Name of the imputer over the co-interaction graph that `from_users` is."""
        return self.model.config.rung

    def from_users(self, name: str, rows: Sequence[int], counts: Sequence[int]) -> Array | None:
        """That imputer's guess `[r_m]` for an item (see `imputers.Spread`); None where nothing can be told.

        Args:
            rows: other items of its users, as training knew them `[k]`.
            counts: how many of its users have each `[k]`.
        """
        known = np.asarray(rows, dtype=np.int64)
        weights = self.tables["rung_weight"][known, self.names.index(name)] * np.asarray(counts, dtype=np.float32)
        guess = weights @ self.tables[f"rung.{name}"][known] / np.maximum(weights.sum(), np.float32(1e-12))
        return np.asarray(guess, dtype=np.float32) if guess.any() else None

    def described(self, name: str) -> bool:
        """Whether training saw anything of this modality, so that its mean means something."""
        return bool(self._by_name[name].projection.mean.any())

    # --- generation (eq. 12-15) ---------------------------------------------------------------------------------

    def generate(self, known: Known) -> dict[str, tuple[Array, Array]]:
        """The modalities that any of `b` items lacks, as DGMRec generates them for all: projected `[b, r_m]`, and the
        confidence `[b]`."""
        lacking = [column for column in range(len(self.names)) if not known.observed[:, column].all()]
        return {self.names[column]: self._generated(column, known) for column in lacking}

    def _generated(self, column: int, known: Known) -> tuple[Array, Array]:
        tower = self._towers[column]
        base = self._base(column, known)
        direction, sure = unit(base), np.minimum(length(base), np.float32(1))
        if tower.trust > 0:
            step = unit(tower.projection.direction(self._learned(column, known))) - direction
            direction = unit(direction + tower.trust * step)
        direction = self._leaning(tower.real, direction, sure)
        confidence = np.clip(self._facts(column, known, sure) @ tower.calibration, 0, 1)
        return tower.projection.signal(direction * sure), confidence

    def _leaning(self, real: Array, direction: Array, sure: Array) -> Array:
        lean = np.float32(self.model.config.lean)
        if not lean or not len(real):
            return direction
        count = leaned_on(len(real))
        found = np.argpartition(direction @ real.T, -count, axis=1)[:, -count:]
        return unit(direction + lean * (1 - sure) * unit(real[found].mean(axis=1)))

    def reads_neighbours(self, name: str, *, touched: bool) -> bool:
        """Whether a modality is generated from an item's neighbours by other modalities: their mean of it, or the taste
        that an untouched item borrows from them."""
        tower = self._towers[self.names.index(name)]
        follows = tower.from_closest[0 if touched else 1] > 0
        return bool(tower.near or follows or (tower.trust > 0 and not touched))

    def _base(self, column: int, known: Known) -> Array:
        tower, shown = self._towers[column], known.from_content(column)
        touched = known.touched()[:, None]
        described = known.observed[:, self._others[column]].any(axis=1, keepdims=True)
        closest = known.closest[self.names[column]]
        closest = tower.projection.direction(closest * np.float32(closest.shape[1] ** 0.5))
        told = answer(known.from_interactions(), tower.from_interactions)
        content = answer(shown, tower.from_content) + tower.from_closest[0] * closest
        alone = answer(shown, tower.from_content_alone) + tower.from_closest[1] * closest
        base: Array = np.where(touched, told + described * content, described * alone)
        return base

    def _learned(self, column: int, known: Known) -> Array:
        """The learned generator's signal `[b, r_m]`."""
        tower = self._towers[column]
        generals = [self._known_general(other, known) for other in self._others[column]]
        inputs = np.concatenate([known.from_interactions(), known.from_content(column)], axis=1)
        inputs *= tower.read * np.float32(EVIDENCE_SCALE)
        general = self._activate(tower.general_generator(np.concatenate([*generals, inputs], axis=1)))
        specific = np.concatenate([known.taste[:, column], inputs], axis=1)
        return tower.decode(np.concatenate([general, self._activate(tower.specific_generator(specific))], axis=1))

    def _known_general(self, column: int, known: Known) -> Array:
        tower, features = self._towers[column], known.features[self.names[column]]
        general = self._activate(self._general(np.tanh(tower.parts(features)[:, : self.size])))
        gated = general * self._gate(known.taste[:, column])
        return np.where(known.observed[:, [column]], gated, tower.mean_general)

    def _facts(self, column: int, known: Known, sure: Array) -> Array:
        others = self._others[column]
        own = known.observed[:, others].sum(axis=1, keepdims=True) / max(len(others), 1)
        valid = known.near_valid[:, [column]], known.shared_valid[:, [column]]
        facts = np.concatenate([own, *valid], axis=1, dtype=np.float32)
        return np.concatenate([np.ones_like(sure), sure, facts, sure * facts], axis=1)

    # --- embedding (eq. 1-6, 17-18) -----------------------------------------------------------------------------

    def encode(self, features: Mapping[str, Array], taste: Array) -> Array:
        """General and specific parts `[b, M, 2d]` of completed features `[b, r_m]` under taste `[b, M, d]`."""
        parts = np.empty((*taste.shape[:2], 2, self.size), dtype=np.float32)
        for column, name in enumerate(self.names):
            encoded = self._towers[column].parts(features[name])
            parts[:, column, 0] = self._general(np.tanh(encoded[:, : self.size]))
            parts[:, column, 1] = encoded[:, self.size :]
        gated = self._activate(parts) * self._gate(taste)[:, :, None]
        return gated.reshape(*taste.shape[:2], 2 * self.size)

    def _activate(self, parts: Array) -> Array:
        return np.tanh(parts) if self.model.config.activation == "tanh" else sigmoid(parts)

    def _gate(self, taste: Array) -> Array:
        if self.model.config.gate == "none":
            return np.ones_like(taste)
        return sigmoid(taste) if self.model.config.gate == "sigmoid" else taste

    def fuse(self, propagated: Array) -> Array:
        """Modal part `[b, d]` from propagated parts `[b, M, 2d]`."""
        return np.asarray(self._fusing @ propagated.reshape(len(propagated), -1, self.size))

    def untouched(
        self, features: Mapping[str, Array], neighbours: Array, cosines: Array, degree: NDArray[np.int64], later: Mask
    ) -> Array:
        """The vectors `[b, d]` to be expected of items that nobody touched.

        Args:
            features: completed, by modality `[b, r_m]`.
            neighbours: final vectors `[b, k, d]` of the nearest by every modality.
            cosines: `[b, k]`, by that modality's features. degree: `[b, k]`, their numbers of users; 0 for none.
            later: bool `[b]`, items that came after training, all of which are new.
        """
        settling, config = self.model.settling, self.model.config
        near = np.exp((cosines - np.float32(1)) / np.float32(config.cold_temperature))
        weight = np.where(degree > 0, near * np.maximum(degree, 1) ** np.float32(config.cold_popularity), 0)
        weight = weight / np.maximum(weight.sum(axis=1, keepdims=True), np.float32(1e-12))
        mixed = np.einsum("bk,bkd->bd", weight, neighbours)
        content = np.concatenate([features[name] / np.float32(rank**0.5) for name, rank in self.ranks.items()], axis=1)
        across = mixed - (mixed @ self._axis)[:, None] * self._axis
        lift = np.where(later, np.float32(config.cold_lift), numpy_of(settling.untouched_offset))
        expected = numpy_of(settling.untouched_typical) + content @ self._untouched_map
        told = expected + np.float32(config.cold_kernel) * across
        return np.asarray(told + lift[:, None] * self._axis, dtype=np.float32)

    def preference(self, user_id: Array) -> Array:
        """p_u^m `[b, M, d]` from collaborative parts `[b, d]`."""
        return np.tanh(self._taste(user_id)).reshape(len(user_id), len(self.names), self.size)

    def combine(self, collaborative: Array, modal: Array) -> Array:
        """What users and items are compared by `[..., d]` (eq. 18)."""
        total = collaborative + modal
        return unit(total) if self.model.config.ranking == "softmax" else total

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

    def item_id(self, expected: Array, messages: Array) -> Array:
        """The collaborative part `[d]` of an item that came after training: towards its expected vector `[d]`, giving
        way to its users' messages `[k, d]`."""
        told = expected * self.tables["id_length"]
        return self._giving_way(told, self._folded(messages), len(messages)) if len(messages) else told

    def final(self, expected: Array, messages: Array, modal: Array) -> Array:
        """The final vector `[d]` of an item that came after training: the expected one `[d]`, giving way to what its
        users' messages `[k, d]` and its modal part `[d]` make (eq. 18)."""
        if not len(messages):
            return expected
        return self._giving_way(expected, self.combine(self._folded(messages), modal), len(messages))

    def _folded(self, messages: Array) -> Array:
        return np.asarray(messages.sum(axis=0) / np.sqrt(len(messages)) * self._without_own_layer, dtype=np.float32)

    def _giving_way(self, expected: Array, own: Array, count: int) -> Array:
        return np.asarray((FOLD_IN_PRIOR * expected + count * own) / (FOLD_IN_PRIOR + count), dtype=np.float32)

    def settled(self, row: int, modal: Array) -> Array:
        """The final vector `[d]` of an item that somebody touched in training, with its present modal part `[d]`."""
        own = self.combine(self.tables["item_id"][row], modal)
        lacking = self.tables["item_expected"][row] - own
        lacking -= (lacking @ self._axis) * self._axis
        prior = numpy_of(self.model.settling.prior_users)
        return np.asarray(own + prior / (self.tables["item_degree"][row] + prior) * lacking, dtype=np.float32)

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
