"""Online imputation: from what is observed of an item to a feature in every modality (steps 2-4 and 6 of the design).

The fallback chain, for each missing modality: DGMRec's generator, where anything is known of the item (another
modality, or users); the bundle's imputer over the co-interaction graph, where the item has users whose other items
training knew; the mean of its neighbours (NN), where another modality is observed; the modality's mean; absent, where
nothing can be said at all, because nobody has the modality. A bundle trained without a generator
(DGMRecConfig.imputation) begins at the imputer that it was trained with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from models.arrays import Array, Mask
from models.dgmrec.inference import mean_of_gathered
from models.dgmrec.serving import DGMRecServing
from models.evidence import (
    EVIDENCE_NEIGHBOURS,
    ImputationEvidence,
    MeanOf,
    near_duplicate_mean,
    similarity_weighted_mean,
)
from models.imputers import GRAPH_IMPUTERS
from service.domain import Generated, State
from service.pipeline.catalogue import Catalogue
from service.pipeline.vectors import expected_preference, neighbours_of
from service.ports import Keys

Output = tuple[Array, Array]  # of the generator for one modality: features [b, r_m], and their confidence [b]
Neighbours = tuple[Keys, Array]  # keys and cosines, [b, k] or of one item [k]; -1 and -inf where there are too few

NN, MEAN = "nn", "mean"  # as answers name them; the graph imputers by their own names


@dataclass(frozen=True, slots=True)
class UserEvidence:
    """One user who interacted with an item: preference p_u `[M, d]`, what the user passes on to the item `[d]`, the
    keys of the user's other items, and what the user adds to its collaborative factors `[q]`, if training saw the
    user."""

    preference: Array
    message: Array
    others: Keys
    factor: Array | None = None


@dataclass(frozen=True, slots=True)
class ImputationInput:
    """An item to be completed: projected observed features by modality, its users, its own key, if it has one (it is
    no neighbour of itself), the preference `[M, d]` and collaborative factors `[q]` that training found, for as long as
    no users are given, and the observed features as they were before the projection, `[dim_m]`."""

    features: Mapping[str, Array]
    users: Sequence[UserEvidence] = ()
    key: int | None = None
    preference: Array | None = None
    factors: Array | None = None
    raw: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Completed:
    """One item with a feature in every modality.

    `features` by modality `[r_m]`, projected; `generated` for those that were not observed (absent ones left out);
    `states` by modality; `reach` `[M]`, see `Derived.reach`.
    """

    features: dict[str, Array]
    generated: dict[str, Generated]
    states: dict[str, State]
    reach: Array


def impute(model: DGMRecServing, catalogue: Catalogue, inputs: Sequence[ImputationInput]) -> list[Completed]:
    """Complete several items. The catalogue is read, not changed."""
    completed = {row: _whole(model, item) for row, item in enumerate(inputs) if len(item.features) == len(model.names)}
    lacking = [row for row in range(len(inputs)) if row not in completed]
    generated = _generate(model, catalogue, [inputs[row] for row in lacking])
    completed.update(zip(lacking, generated, strict=True))
    return [completed[row] for row in range(len(inputs))]


def _whole(model: DGMRecServing, item: ImputationInput) -> Completed:
    """An item that lacks nothing."""
    states = dict.fromkeys(model.names, State.OBSERVED)
    features = {name: item.features[name] for name in model.names}
    return Completed(features, {}, states, np.full(len(states), np.inf, dtype=np.float32))


def _generate(model: DGMRecServing, catalogue: Catalogue, inputs: Sequence[ImputationInput]) -> list[Completed]:
    if not inputs:
        return []
    observed = np.array([[name in item.features for name in model.names] for item in inputs], dtype=np.bool_)
    features = _stacked(model, inputs)
    neighbours = _observed_neighbours(model, catalogue, inputs, features, observed)
    evidence, reach = _evidence(model, catalogue, inputs, features, observed, neighbours)
    outputs = model.generate(evidence)
    return [_complete(model, catalogue, evidence, outputs, row, item, reach[row]) for row, item in enumerate(inputs)]


def _evidence(
    model: DGMRecServing,
    catalogue: Catalogue,
    inputs: Sequence[ImputationInput],
    features: Mapping[str, Array],
    observed: Mask,
    neighbours: Mapping[str, Neighbours],
) -> tuple[ImputationEvidence, Array]:
    neighbour_mean, near_duplicates, neighbour_valid, reach = _neighbour_evidence(
        model, catalogue, inputs, features, observed, neighbours
    )
    means, means_valid = _co_interaction_means(model, catalogue, inputs)
    evidence = ImputationEvidence(
        own=features,
        neighbour_mean=neighbour_mean,
        near_duplicates=near_duplicates,
        co_interaction_mean=means,
        cross_fitted_mean=means,
        factors=np.stack([_factors(model, item) for item in inputs]),
        observed=observed,
        neighbour_valid=neighbour_valid,
        co_interaction_valid=means_valid,
        preference=_preference(model, catalogue, inputs, observed, neighbours),
    )
    return evidence, reach


def _stacked(model: DGMRecServing, inputs: Sequence[ImputationInput]) -> dict[str, Array]:
    """Observed features `[b, r_m]`, zero where there is none."""
    stacked = {}
    for name, rank in model.ranks.items():
        zero = np.zeros(rank, dtype=np.float32)
        stacked[name] = np.stack([item.features.get(name, zero) for item in inputs])
    return stacked


def _complete(
    model: DGMRecServing,
    catalogue: Catalogue,
    evidence: ImputationEvidence,
    outputs: Mapping[str, Output],
    row: int,
    item: ImputationInput,
    reach: Array,
) -> Completed:
    features: dict[str, Array] = {}
    generated: dict[str, Generated] = {}
    states: dict[str, State] = {}
    for column, name in enumerate(model.names):
        if evidence.observed[row, column]:
            features[name], states[name] = evidence.own[name][row], State.OBSERVED
            continue
        feature, generator, confidence = _fallback_chain(model, catalogue, evidence, outputs[name], row, column, item)
        features[name] = feature
        if generator is None:
            states[name] = State.ABSENT
            continue
        states[name] = State.GENERATED
        basis = _basis(model, evidence, row, column, generator, touched=bool(item.users))
        raw = model.unproject(name, feature[None])[0]
        generated[name] = Generated(raw, generator, round(confidence, 4), basis)
    return Completed(features, generated, states, reach)


def _fallback_chain(
    model: DGMRecServing,
    catalogue: Catalogue,
    evidence: ImputationEvidence,
    output: Output,
    row: int,
    column: int,
    item: ImputationInput,
) -> tuple[Array, str | None, float]:
    """The first of the fallback chain that holds for this cell: projected feature, generator's name, confidence."""
    name, imputation = model.names[column], model.model.config.imputation
    feature, confidence = output[0][row], output[1][row]
    learned = model.has_mean(name)  # else training saw nothing that such features could be made of
    told = evidence.observed[row].any() or item.users
    if learned and imputation == "generate" and told and np.isfinite(feature).all():
        return feature, model.generator(name), float(confidence)
    if learned and (imputation == "generate" or imputation in GRAPH_IMPUTERS):
        guess = _fallback_guess(model, catalogue, item, name)
        if guess is not None:
            return guess, model.fallback_imputer, 0.0
    if imputation != MEAN and evidence.neighbour_valid[row, column]:
        return evidence.neighbour_mean[name][row], NN, 0.0
    zero = model.mean_feature(name)
    return zero, MEAN if model.has_mean(name) else None, 0.0


def _fallback_guess(model: DGMRecServing, catalogue: Catalogue, item: ImputationInput, name: str) -> Array | None:
    """The guess `[r_m]` of the bundle's imputer over the co-interaction graph, from the items that the item's users
    have besides it; those that training did not see are left out."""
    if not item.users:
        return None
    keys, counts = np.unique(np.concatenate([user.others for user in item.users]), return_counts=True)
    trained = [
        (row, count)
        for key, count in zip(keys.tolist(), counts.tolist(), strict=True)
        if key in catalogue.entries and (row := model.items.get(catalogue.entries[key].id)) is not None
    ]
    return model.fallback_guess(name, [row for row, _ in trained], [count for _, count in trained])


def _basis(
    model: DGMRecServing, evidence: ImputationEvidence, row: int, column: int, generator: str, *, touched: bool
) -> tuple[str, ...]:
    """What the generator read."""
    others = [name for place, name in enumerate(model.names) if evidence.observed[row, place]]
    reads = generator == NN or model.reads_neighbours(model.names[column], warm=touched)
    neighbours = ["neighbours"] if reads and evidence.neighbour_valid[row, column] else []
    users = ["users"] if touched else []
    if generator == MEAN:
        return ()
    if generator == NN:
        return (*others, *neighbours)
    return tuple(users) if generator in GRAPH_IMPUTERS else (*others, *neighbours, *users)


# --- neighbours ------------------------------------------------------------------------------------------------------


def _observed_neighbours(
    model: DGMRecServing,
    catalogue: Catalogue,
    inputs: Sequence[ImputationInput],
    features: Mapping[str, Array],
    observed: Mask,
) -> dict[str, Neighbours]:
    """By modality the neighbours, keys and cosines `[b, depth]`, of the items that have it among all that do.

    The first are those of training's neighbour graph; there are so many that, as a rule, enough of them have another
    modality as well (see `_neighbour_evidence`).
    """
    keys = np.array([-1 if item.key is None else item.key for item in inputs], dtype=np.int64)
    depth = max(model.config.neighbours, 2 * EVIDENCE_NEIGHBOURS)
    return {
        name: neighbours_of(catalogue.observed_indexes[name], features[name] * observed[:, [column]], keys, depth)
        for column, name in enumerate(model.names)
    }


def _neighbour_evidence(
    model: DGMRecServing,
    catalogue: Catalogue,
    inputs: Sequence[ImputationInput],
    features: Mapping[str, Array],
    observed: Mask,
    neighbours: Mapping[str, Neighbours],
) -> tuple[dict[str, Array], dict[str, Array], Mask, Array]:
    """As `models.evidence.aggregate_neighbours` has them, over the indexes: `ImputationEvidence.neighbour_mean` and
    `near_duplicates`, where there are any, and the `reach` `[b, M]` (see `Derived.reach`)."""
    neighbour_mean: dict[str, Array] = {}
    near_duplicates: dict[str, Array] = {}
    valid = np.zeros_like(observed)
    reach = np.full(observed.shape, np.inf, dtype=np.float32)
    for target, name in enumerate(model.names):
        total = np.zeros((2, len(inputs), model.ranks[name]), dtype=np.float32)
        count = np.zeros(len(inputs), dtype=np.float32)
        for source, other in enumerate(model.names):
            rows = np.flatnonzero(observed[:, source] & ~observed[:, target])
            if not len(rows):
                continue
            keys, cosines = _having_both(catalogue, inputs, (other, name), features[other], rows, neighbours[other])
            depth = model.neighbours_read(name)
            reach[rows, source] = np.minimum(reach[rows, source], cosines[:, depth - 1])
            mean_of = _mean_of(catalogue.rows.get(f"feature.{name}", keys), keys)
            total[:, rows] += similarity_weighted_mean(mean_of, cosines), near_duplicate_mean(mean_of, cosines)
            count[rows] += (keys >= 0).any(axis=1)
        neighbour_mean[name], near_duplicates[name] = total / np.maximum(count, 1)[:, None]
        valid[:, target] = count > 0
    return neighbour_mean, near_duplicates, valid, reach


def _mean_of(gathered: Array, keys: Keys) -> MeanOf:
    """The mean of gathered features `[r, k, r_m]` of keys `[r, k]` by the weights of the first of them."""

    def mean_of(weights: Array) -> Array:
        count = weights.shape[1]
        return mean_of_gathered(gathered[:, :count], keys[:, :count], weights)[0]

    return mean_of


def _having_both(
    catalogue: Catalogue,
    inputs: Sequence[ImputationInput],
    names: tuple[str, str],
    features: Array,
    rows: Keys,
    neighbours: Neighbours,
) -> Neighbours:
    """Keys and cosines `[r, k]` of the nearest items by the first modality that have the second as well, for some rows
    `[r]`: out of the neighbours, and by another search where these are too few; -1 and -inf where there are no more."""
    keys, cosines = neighbours[0][rows], neighbours[1][rows]
    both = (keys >= 0) & catalogue.observed[keys, catalogue.names.index(names[1])]
    first = np.argsort(~both, axis=1, kind="stable")[:, :EVIDENCE_NEIGHBOURS]
    both_keys = np.take_along_axis(np.where(both, keys, -1), first, axis=1)
    both_cosines = np.take_along_axis(np.where(both, cosines, -np.inf), first, axis=1)
    short = np.flatnonzero((keys[:, -1] >= 0) & (both_keys[:, -1] < 0))
    if len(short):
        again = rows[short]
        own = np.array([-1 if inputs[row].key is None else inputs[row].key for row in again.tolist()], dtype=np.int64)
        both_keys[short], both_cosines[short] = neighbours_of(
            catalogue.observed_indexes[names[0]], features[again], own, EVIDENCE_NEIGHBOURS, catalogue.having(*names)
        )
    return both_keys, both_cosines


# --- users -----------------------------------------------------------------------------------------------------------


def _co_interaction_means(
    model: DGMRecServing, catalogue: Catalogue, inputs: Sequence[ImputationInput]
) -> tuple[dict[str, Array], Mask]:
    """Co-interaction means, as `models.evidence.co_interaction_means`, from the users' other items."""
    blocks = {name: np.zeros((len(inputs), rank), dtype=np.float32) for name, rank in model.ranks.items()}
    valid = np.zeros((len(inputs), len(model.names)), dtype=np.bool_)
    for row, item in enumerate(inputs):
        for column, name in enumerate(model.names):
            means = [
                catalogue.rows.get(f"feature.{name}", having).mean(axis=0)
                for user in item.users
                if len(having := user.others[catalogue.observed[user.others, column]])
            ]
            if means:
                blocks[name][row] = np.mean(means, axis=0)
                valid[row, column] = True
    return blocks, valid


def _factors(model: DGMRecServing, item: ImputationInput) -> Array:
    """The item's collaborative factors `[q]`."""
    if item.factors is not None and not item.users:
        return item.factors
    return model.item_factor([user.factor for user in item.users if user.factor is not None])


def _preference(
    model: DGMRecServing,
    catalogue: Catalogue,
    inputs: Sequence[ImputationInput],
    observed: Mask,
    neighbours: Mapping[str, Neighbours],
) -> Array:
    """p_i `[M, b, d]`: the mean preference of the item's users; what training found; without either, what its
    neighbours' lead to expect."""
    near = np.stack([keys[:, : model.neighbours] for keys, _ in neighbours.values()], axis=1)
    rows = expected_preference(model, catalogue, near, observed)
    for row, item in enumerate(inputs):
        if item.users:
            rows[row] = np.mean([user.preference for user in item.users], axis=0)
        elif item.preference is not None:
            rows[row] = item.preference
    return rows.swapaxes(0, 1)
