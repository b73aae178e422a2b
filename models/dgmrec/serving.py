"""DGMRec as a service uses it: from a bundle, a few items at a time, in NumPy (see `models.dgmrec.weights` for why).

What a trained model computes is `models.dgmrec.inference`, here as there; only the neighbours are handed in from an
index instead of a graph, and collaborative parts are folded in (see `DGMRec.fold_in_tables`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import embedding_bag

from models.arrays import Array, Mask, Rows
from models.bundle import Bundle, BundleError, BundleWriter, ModelEntry
from models.dgmrec import expectation, inference
from models.dgmrec.config import OLD_NAMES, DGMRecConfig
from models.dgmrec.expectation import ColdMaps, SourceWeights
from models.dgmrec.model import DGMRec, Embeddings, ItemContent
from models.dgmrec.weights import Linear, TowerWeights, numpy_of
from models.evidence import EVIDENCE_NEIGHBOURS, NEAR_DUPLICATES, ImputationEvidence
from models.graph import InteractionGraphs
from models.imputers import PropagatedFeatures
from models.modality import ModalitySpec
from models.renamed import refuse_old_names
from models.vocabulary import Vocabulary
from models.words import tf_idf_of

FILE = "dgmrec.safetensors"
TABLES = (
    "user_residual",  # [U, d], see DGMRec.fold_in_tables; zero rows for users without training interactions
    "user_message",  # [U, d]
    "item_message",  # [n, d]
    "item_id",  # [n, d], the collaborative part
    "id_length",  # [1], the mean length of the collaborative parts of warm items
    "item_content_prediction",  # [n, d], see ColdStart.fit
    "item_degree",  # [n], number of training interactions
    "item_preference",  # [n, M, d]
    "mean_preference",  # [M, d], over warm items
    "user_factor",  # [U, q], see evidence.user_factors
    "item_factor",  # [n, q], see evidence.collaborative_factors
    "warm",  # uint8 [n], items with training interactions
    "observed",  # uint8 [n, M], the cells that training saw
    "confidence",  # [n, M], of the generated cells
    "fallback_weight",  # [n, M], see imputers.PropagatedFeatures
)
PREFERENCES = ("user_preference", "mean_user_preference")  # [U, M, d] and [M, d], with preference=free
MAPS = ("target_map", "message_map")  # [d, d], of the forms without embeddings of users, see DGMRec.fold_in_tables
BY_MODALITY = (
    "feature",  # [n, r_m], completed and projected
    "fallback",  # [n, r_m], see imputers.PropagatedFeatures
)
# Interactions at which a new item's own users weigh as much as what its content leads to expect. More than the
# pseudo-count of items that training knew: what is folded in lacks the layer of its own that keeps a single user's item
# modest.
FOLD_IN_PSEUDO_COUNT = 5.0


@torch.no_grad()
def serving_tables(
    model: DGMRec,
    interactions: InteractionGraphs,
    content: ItemContent,
    out: Embeddings,
    prediction: Tensor,
    user_factors: Tensor,
    fallback: PropagatedFeatures,
) -> dict[str, Array]:
    """The tables that serving needs beside the weights (`TABLES`, and `BY_MODALITY` of each modality).

    Args:
        out, prediction: of `DGMRec.final_embeddings`.
        user_factors: `[U, q]`, whose sums are the evidence's factors.
        fallback: features as the configured `fallback_imputer` has propagated them.
    """
    evidence, warm = content.evidence, interactions.item_degree > 0
    generated = {name: model.generate(name, evidence, out.preference) for name in model.names}
    tables = model.fold_in_tables(interactions)
    for name in ("user_residual", "user_message"):
        tables[name] = tables[name] * (interactions.user_degree > 0)[:, None]
    tables |= {
        "item_id": out.item_id,
        "id_length": out.item_id[warm].norm(dim=1).mean()[None] if warm.any() else torch.ones(1),
        "item_content_prediction": prediction,
        "item_degree": interactions.item_degree,
        "item_preference": out.preference.transpose(0, 1),
        "mean_preference": out.preference[:, warm].sum(dim=1) / warm.sum().clamp_min(1),
        "user_factor": user_factors,
        "item_factor": evidence.factors,
        "warm": warm.to(torch.uint8),
        "observed": evidence.observed.to(torch.uint8),
        "confidence": torch.stack([model.tower(name).confidence(generated[name]) for name in model.names], dim=1),
        "fallback_weight": fallback.weights,
    }
    if model.config.preference == "free":
        known = interactions.user_degree > 0
        tables["user_preference"] = model.preferences.transpose(0, 1) * known[:, None, None]
        tables["mean_user_preference"] = model.preferences[:, known].mean(dim=1)
    for name in model.names:
        tables[f"feature.{name}"], tables[f"fallback.{name}"] = content.features[name], fallback.tables[name]
    return {name: table.detach().cpu().contiguous().numpy() for name, table in tables.items()}


class DGMRecServing:
    """A trained DGMRec with its serving tables. The model must not change any more."""

    def __init__(self, model: DGMRec, tables: Mapping[str, Array], users: Vocabulary, items: Vocabulary) -> None:
        self.model = model.eval().requires_grad_(False)
        self.config = model.config
        self.names = model.names
        self._towers = {name: TowerWeights(model.tower(name)) for name in model.names}
        self._general = Linear([model.general])
        self._weight = numpy_of(model.weight.exp())  # of each modality (eq. 17)
        cold_start = model.cold_start
        self._cold = ColdMaps(*(numpy_of(getattr(cold_start.maps, field.name)) for field in fields(ColdMaps)))
        self._axis = self._cold.axis
        self._weights: dict[int, SourceWeights] = {}  # of predictions, by what is told of an item
        self.tables = dict(tables)
        self.users, self.items = users, items
        self.specs = {spec.name: spec for spec in model.specs}
        self.size = model.config.embedding_size
        self.neighbours, self.layers = model.config.neighbours, model.config.item_layers
        self.ranks = {name: int(model.tower(name).content_weights.shape[1]) for name in self.names}

    @classmethod
    def load(cls, bundle: Bundle) -> DGMRecServing:
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
            refuse_old_names(entry.config, OLD_NAMES)
            config = DGMRecConfig.model_validate(entry.config)
            model = DGMRec(config, specs, len(users), len(items))
            weights = {key: torch.from_numpy(array) for key, array in _below("model.", arrays).items()}
            model.load_state_dict(weights)
            own = [f"{table}.{name}" for table in BY_MODALITY for name in model.names]
            maps = () if config.collaborative == "lightgcn" else MAPS
            free = PREFERENCES if config.preference == "free" else ()
            tables = {name: arrays[f"table.{name}"] for name in (*TABLES, *maps, *free, *own)}
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
        return ModelEntry(config=self.config.model_dump(), metrics=dict(metrics), file=FILE, form=self.config.form)

    # --- features --------------------------------------------------------------------------------------------

    def project(self, name: str, raw: Array) -> Array:
        """Raw features `[b, dim_m]` to projected ones `[b, r_m]`."""
        projected: Array = self._towers[name].projection.project(raw)
        return projected

    def tells(self, name: str, raw: Array) -> bool:
        """Whether a raw feature `[dim_m]` tells anything of its item (see `ProjectionMaps.tells`)."""
        return bool(self._towers[name].projection.tells(raw[None])[0])

    def unproject(self, name: str, projected: Array) -> Array:
        """Projected features `[b, r_m]` to raw ones `[b, dim_m]`."""
        raw: Array = self._towers[name].projection.back(projected)
        return raw

    def centred_cosine(self, name: str, left: Array, right: Array) -> float:
        """Cosine of two raw features `[dim_m]` after subtracting the modality's mean."""
        mean = self._towers[name].projection.mean
        a, b = left - mean, right - mean
        return float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-12))

    def trained_row(self, item: str) -> int | None:
        """The row of an item that training saw interactions of, or None."""
        row = self.items.get(item)
        return row if row is not None and self.tables["warm"][row] else None

    def mean_feature(self, name: str) -> Array:
        """The projected feature `[r_m]` of a modality's mean."""
        mean: Array = self._towers[name].projection.project(numpy_of(self.model.tower(name).projection.mean)[None])[0]
        return mean

    def generator(self, name: str) -> str:
        """What makes a modality's features: `dgmrec`, `dgmrec-base` where nothing of the learned step is trusted, or
        the imputation that was chosen instead."""
        if self.config.imputation != "generate":
            return self.config.imputation
        return "dgmrec" if self._towers[name].trust > 0 else "dgmrec-base"

    def search_scale(self, name: str, *, warm: bool) -> float:
        """By what a cosine with a generated feature, of an item with users or without, is multiplied to stand beside
        those with observed ones."""
        return float(self._towers[name].search_scale[0 if warm else 1])

    def has_mean(self, name: str) -> bool:
        """Whether training saw anything of this modality, so that its mean means something."""
        return bool(self._towers[name].projection.mean.any())

    @property
    def fallback_imputer(self) -> str:
        """Name of the imputer over the co-interaction graph that `fallback_guess` is of."""
        return self.config.fallback_imputer

    def fallback_guess(self, name: str, rows: Sequence[int], counts: Sequence[int]) -> Array | None:
        """That imputer's guess `[r_m]` for an item (see `imputers.PropagatedFeatures`); None where there is nothing to
        guess from.

        Args:
            rows: other items of its users, as training knew them `[k]`.
            counts: how many of its users have each `[k]`.
        """
        known = np.asarray(rows, dtype=np.int64)
        weights = self.tables["fallback_weight"][known, self.names.index(name)] * np.asarray(counts, dtype=np.float32)
        guess = weights @ self.tables[f"fallback.{name}"][known] / np.maximum(weights.sum(), np.float32(1e-12))
        return np.asarray(guess, dtype=np.float32) if guess.any() else None

    # --- generation (eq. 12-15) ---------------------------------------------------------------------------------

    def generate(self, evidence: ImputationEvidence) -> dict[str, tuple[Array, Array]]:
        """The modalities that any of `b` items lacks, as DGMRec generates them for all: projected `[b, r_m]`, and the
        confidence `[b]`."""
        return {
            name: self._generated(name, evidence)
            for column, name in enumerate(self.names)
            if not evidence.observed[:, column].all()
        }

    def _generated(self, name: str, evidence: ImputationEvidence) -> tuple[Array, Array]:
        tower, learned = self._towers[name], None
        if tower.trust > 0:
            parts = inference.learned_parts(
                self.config, self._towers, self._general, evidence, evidence.preference, name
            )
            learned = tower.decode(np.concatenate(parts, axis=1))
        signals, facts = inference.generation(self.config, tower, evidence, name, learned)
        return signals, inference.confidence(tower, facts)

    def reads_neighbours(self, name: str, *, warm: bool) -> bool:
        """Whether a modality is generated from an item's neighbours by other modalities: their mean of it, or the
        preference that a cold item takes from them.

        Args:
            warm: whether the item has users.
        """
        tower = self._towers[name]
        if self.config.generator == "parts":
            return self.expects_by_regression and not warm
        follows = tower.near_duplicate_weights[0 if warm else 1] > 0
        return bool(tower.content_mask.all() or follows or (tower.trust > 0 and not warm))

    def neighbours_read(self, name: str) -> int:
        """How many of its neighbours by each other modality a modality is generated from: all that give the mean, the
        nearest that may be near duplicates, or, to know whether there are any, the first."""
        tower = self._towers[name]
        if self.config.generator == "parts":
            return 1
        if self.config.imputation != "generate" or tower.content_mask.all():
            return EVIDENCE_NEIGHBOURS
        return NEAR_DUPLICATES if tower.near_duplicate_weights.any() else 1

    def reads_preference(self, name: str) -> bool:
        """Whether a modality is generated from an item's preference."""
        return bool(self._towers[name].trust > 0)

    # --- embedding (eq. 1-6, 17-18) -----------------------------------------------------------------------------

    def encode(self, features: Mapping[str, Array], preference: Array) -> Array:
        """General and specific parts `[M, b, 2d]` of completed features `[b, r_m]` under preferences `[M, b, d]`."""
        parts: Array = inference.encode(self.config, self._towers, self._general, features, preference)
        return parts

    def fuse(self, propagated: Array) -> Array:
        """Modal part `[b, d]` from propagated parts `[M, b, 2d]`."""
        modal: Array = inference.fuse(propagated, self._weight)
        return modal

    def preference(self, user_id: Array) -> Array:
        """p_u^m `[M, b, d]` from collaborative parts `[b, d]`."""
        preference: Array = inference.user_preference(self._towers, user_id)
        return preference

    def user_preference(self, user: str, user_id: Array) -> Array:
        """p_u^m `[M, d]` of a user, from the collaborative part `[d]`; with `preference=free` what training learned,
        for a user that it did not know the mean."""
        if self.config.preference == "projected":
            return self.preference(user_id[None])[:, 0]
        row = self.users.get(user)
        if row is None or not self.knows_user(user):
            return self.tables["mean_user_preference"]
        return np.asarray(self.tables["user_preference"][row])

    @property
    def expects_by_regression(self) -> bool:
        """Whether cold items' preferences and vectors follow from their neighbours' (`cold_start`)."""
        return self.config.cold_start == "regression"

    @property
    def passes_to_generated(self) -> bool:
        """Whether an item has neighbours by a modality that it lacks (lambda of eq. 16)."""
        return self.config.refine_weight > 0 or self.config.imputation != "generate"

    def combine(self, collaborative: Array, modal: Array) -> Array:
        """What users and items are compared by `[..., d]` (eq. 18)."""
        total: Array = inference.combine(self.config, collaborative, modal)
        return total

    # --- cold start --------------------------------------------------------------------------------------------

    def words(self, text: str | None) -> Array:
        """What the words of a text lead to expect of its item `[1 + d]`, and 1 where they say anything, else zeros:
        `[2 + d]`."""
        columns, values = tf_idf_of(text, numpy_of(self.model.cold_start.word_frequency))
        if not len(columns):
            return np.zeros(2 + self.size, dtype=np.float32)
        slopes, intercept = (
            numpy_of(table) for table in (self.model.cold_start.word_slopes, self.model.cold_start.word_intercept)
        )
        prediction = intercept + values @ slopes[columns]
        return np.append(prediction, 1.0).astype(np.float32)

    def content_vectors(self, features: Mapping[str, Array], observed: Mask, words: Array, later: Mask) -> Array:
        """The vectors `[b, d]` that the content alone of items without interactions leads to expect: what the ridge
        regressions add to the mean (`models.dgmrec.expectation`).

        Args:
            features: by modality `[b, r_m]`. observed: bool `[b, M]`; the other features are not read.
            words: `[b, 2 + d]`, see `words`.
            later: bool `[b]`, items that came after training, all of which are new.
        """
        blocks = {name: features[name] for name in self.names}
        weights = self._source_weights(blocks, observed, words)
        trained = numpy_of(self.model.cold_start.offset)
        offset = np.where(later, np.float32(self.config.popularity_offset), trained)
        place = expectation.mean_place(self.config, self._cold, weights, offset)
        count, ridge = len(self.names), expectation.ridge_predictions(self._cold, blocks)
        own = np.concatenate([ridge, words[:, None, :-1]], axis=1)
        popularity, taste = (
            np.concatenate([table[:, :count], table[:, -1:]], axis=1) for table in (weights.popularity, weights.taste)
        )
        set_apart = expectation.apart(self.config, self._cold, own, popularity, taste)
        return np.asarray(place[:, None] * self._axis + set_apart, dtype=np.float32)

    def _source_weights(self, features: Mapping[str, Array], observed: Mask, words: Array) -> SourceWeights:
        told = observed & np.stack([features[name].any(axis=1) for name in self.names], axis=1)
        told = np.concatenate([told, words[:, -1:] > 0], axis=1)
        codes, first, which = np.unique(told @ (1 << np.arange(told.shape[1])), return_index=True, return_inverse=True)
        rows = []
        for code, place in zip(codes.tolist(), first.tolist(), strict=True):
            if code not in self._weights:  # these follow from what is told alone, and take longest
                self._weights[code] = expectation.source_weights(self._cold, told[place : place + 1])
            rows.append(self._weights[code])
        return SourceWeights(
            *(np.concatenate([getattr(row, field.name) for row in rows])[which] for field in fields(SourceWeights))
        )

    def expected_vectors(
        self,
        content: Array,
        features: Mapping[str, Array],
        observed: Mask,
        words: Array,
        vectors: Array,
        neighbours: tuple[Rows, Array, Array, Array],
    ) -> Array:
        """The vectors `[b, d]` to be expected of items without interactions: what content alone leads to expect
        `[b, d]`, and the kernel regressions on the nearest warm items.

        Args:
            features, observed, words: as for `content_vectors`.
            vectors: `[n, d]`, what items' users make of them.
            neighbours: the rows there of the nearest warm items by each modality, cosines, numbers of users, 0 for
                none, and these of the items that training knew, 0 for the others, whose popularity is not settled,
                `[b, M, k]` each.
        """
        count, weights = len(self.names), self._source_weights(features, observed, words)
        rows, cosines, degree, known = neighbours

        def mean(shares: Array) -> Array:
            # The vectors are too many to gather. It sums each row by itself, whatever the others.
            bags = torch.arange(0, rows.size, rows.shape[2])
            weights = torch.from_numpy(shares.ravel().astype(np.float32))
            places = torch.from_numpy(np.ascontiguousarray(rows).ravel())
            sums = embedding_bag(places, torch.from_numpy(vectors), bags, mode="sum", per_sample_weights=weights)
            return sums.numpy().reshape(len(rows), count, -1)

        kernel = expectation.kernel_predictions(self.config, self._cold, mean, cosines, degree, known)
        popularity, taste = weights.popularity[:, count:-1], weights.taste[:, count:-1]
        set_apart = expectation.apart(self.config, self._cold, kernel, popularity, taste)
        return np.asarray(content + set_apart, dtype=np.float32)

    def warm_vectors(self, rows: Rows, modal: Array) -> Array:
        """The final vectors `[b, d]` of items with training interactions, in these rows of the tables `[b]`, with their
        present modal parts `[b, d]`."""
        own = self.trained_vectors(rows, modal)
        prediction, degree = self.tables["item_content_prediction"][rows], self.tables["item_degree"][rows]
        vectors: Array = inference.shrink(own, prediction, degree, self._pseudo_count, self._axis)
        return vectors

    def trained_vectors(self, rows: Rows, modal: Array) -> Array:
        """What their users make of items with training interactions `[b, d]`: `warm_vectors` before shrinkage."""
        return self.combine(self.tables["item_id"][rows], modal)

    @property
    def _pseudo_count(self) -> Array:
        return numpy_of(self.model.cold_start.pseudo_count)

    # --- fold-in -----------------------------------------------------------------------------------------------

    def user_id(self, user: str | None, messages: Array, weights: Array | None = None) -> Array:
        """A user's collaborative part `[d]` from the messages `[k, d]` of the items of the history.

        Exactly that of training for a user of the training set with the training history. In LightGCN's form, the own
        layer of a user that training never saw is taken to be the mean of the propagated ones.
        """
        if weights is None:
            weights = np.ones(len(messages), dtype=np.float32)
        folded = weights @ messages / np.sqrt(max(float(weights.sum()), 1.0))
        row = None if user is None else self.users.get(user)
        if row is not None and self.tables["user_residual"][row].any():
            return np.asarray(self.tables["user_residual"][row] + folded, dtype=np.float32)
        return np.asarray(folded * self._own_layer_scale, dtype=np.float32)

    def knows_user(self, user: str) -> bool:
        """Whether training saw interactions of a user."""
        row = self.users.get(user)
        return row is not None and bool(self.tables["user_residual"][row].any())

    def user_message(self, user: str, user_id: Array, degree: int) -> Array:
        """What a user with `degree` items passes on to an item `[d]`."""
        row = self.users.get(user)
        if row is not None and self.tables["user_message"][row].any():
            return np.asarray(self.tables["user_message"][row], dtype=np.float32)
        if "target_map" in self.tables:
            return np.asarray(user_id @ self.tables["target_map"], dtype=np.float32)
        return np.asarray(user_id / self._own_layer_scale / np.sqrt(max(degree, 1)), dtype=np.float32)

    def folded(self, messages: Array) -> Array:
        """What the messages `[k, d]` of its users make of an item that came after training: a collaborative part
        `[d]`."""
        total = messages.sum(axis=0) / np.sqrt(max(len(messages), 1)) * self._own_layer_scale
        return np.asarray(total, dtype=np.float32)

    def final_vectors(self, expected: Array, own: Array, count: Array) -> Array:
        """The final vectors `[b, d]` of items that came after training: the expected ones `[b, d]`, giving way to what
        their users and content make `[b, d]` as the number of users `[b]` grows."""
        return _fold_in(expected, own, count)

    def item_messages(self, expected: Array, folded: Array, count: Array) -> Array:
        """What items that came after training pass on to a user `[b, d]`: by the expected vectors `[b, d]`, giving way
        to the collaborative parts that their users made `[b, d]` as the number of users `[b]` grows."""
        if not self.expects_by_regression:
            expected = np.zeros_like(folded)  # a modal part, which is none of the collaborative one
        collaborative = _fold_in(expected * self.tables["id_length"], folded, count)
        if "message_map" in self.tables:
            # Row by row: one product of all rows would round them otherwise among others.
            return np.asarray((collaborative[:, None] @ self.tables["message_map"])[:, 0], dtype=np.float32)
        scale = self._own_layer_scale * np.sqrt(np.maximum(count, 1))
        return np.asarray(collaborative / scale[:, None], dtype=np.float32)

    def user_factor(self, user: str) -> Array | None:
        """What a user adds to the collaborative factors of an item `[q]`; None for one that training did not see."""
        row = self.users.get(user)
        return None if row is None else self.tables["user_factor"][row]

    def item_factor(self, users: Sequence[Array]) -> Array:
        """An item's collaborative factors `[q]` from its users'; zero without any."""
        total = np.sum(users, axis=0, dtype=np.float32) if users else np.zeros(self.config.factors, np.float32)
        return np.asarray(total / max(float(np.linalg.norm(total)), 1e-12), dtype=np.float32)

    @property
    def _own_layer_scale(self) -> float:
        """By what the mean of the propagated layers grows where it stands in for the embedding's own layer as well; 1
        where there are none."""
        if self.config.collaborative != "lightgcn":
            return 1.0
        return (self.config.layers + 1) / self.config.layers


def _fold_in(expected: Array, own: Array, count: Array) -> Array:
    """The mean of what is expected, which counts as much as `FOLD_IN_PSEUDO_COUNT` users, and of what `count` users
    make: rows `[b, d]`, counts `[b]`."""
    share = (count / (FOLD_IN_PSEUDO_COUNT + count))[:, None]
    return np.asarray(expected + share * (own - expected), dtype=np.float32)


def _below(prefix: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}
