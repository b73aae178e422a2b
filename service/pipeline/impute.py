"""Online imputation: from what is observed of an item to a feature in every modality (steps 2-4 and 6 of the design).

The ladder, for each missing modality: DGMRec's generator, where anything is known of the item (another modality, or
users); the bundle's imputer over the co-interaction graph, where the item has users whose other items training knew;
the mean of its neighbours (NN), where another modality is observed; the modality's mean; absent, where nothing can be
said at all, because nobody has the modality. A bundle trained without a generator (DGMRecConfig.imputation) begins at
the rung that it was trained with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from models.arrays import Array, Mask
from models.dgmrec.inference import mean_of_gathered
from models.evidence import (
    EVIDENCE_NEIGHBOURS,
    ImputationEvidence,
    MeanOf,
    near_duplicate_mean,
    similarity_weighted_mean,
)
from models.imputers import GRAPH_IMPUTERS
from service.domain import Generated, State
from service.pipeline.engine import Engine
from service.ports import Keys

Made = tuple[Array, Array]  # of one modality: what DGMRec generates for each item [b, r_m], and its confidence [b]

DGMREC, NN, MEAN = "dgmrec", "nn", "mean"  # as answers name them; the graph imputers by their own names


@dataclass(frozen=True, slots=True)
class Visitor:
    """One user who touched an item: preference p_u `[M, d]`, what the user passes on to the item `[d]`, the keys of the
    user's other items, and what the user adds to its collaborative factors `[q]`, if training saw the user."""

    preference: Array
    message: Array
    others: Keys
    factor: Array | None = None


@dataclass(frozen=True, slots=True)
class Subject:
    """An item to be completed: projected observed features by modality, its users, its own key, if it has one (it is
    no neighbour of itself), the taste `[M, d]` and collaborative factors `[q]` that training found, for as long as no
    users are given, and the observed features as they were before the projection, `[dim_m]`."""

    features: Mapping[str, Array]
    visitors: Sequence[Visitor] = ()
    key: int | None = None
    taste: Array | None = None
    factors: Array | None = None
    raw: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Completed:
    """What imputation found out about one item.

    `features` by modality `[r_m]`, projected; `generated` for those that were not observed (absent ones left out);
    `states` by modality; `taste` `[M, d]`; `around` by modality the nearest items, keys and cosines `[depth]`, as far
    as they were looked up.
    """

    features: dict[str, Array]
    generated: dict[str, Generated]
    states: dict[str, State]
    taste: Array
    around: Mapping[str, tuple[Keys, Array]] = field(default_factory=dict)


def impute(engine: Engine, subjects: Sequence[Subject]) -> list[Completed]:
    """Complete several items. The catalogue is read, not changed."""
    if not subjects:
        return []
    names = engine.model.names
    observed = np.array([[name in subject.features for name in names] for subject in subjects], dtype=np.bool_)
    features = _stacked(engine, subjects)
    around = _around(engine, subjects, features, observed)
    neighbour_mean, near_duplicates, neighbour_valid = _neighbour_evidence(engine, subjects, features, observed, around)
    neighbours = {name: keys[:, : engine.model.neighbours] for name, (keys, _) in around.items()}
    means, means_valid = _co_interaction_means(engine, subjects)
    known = ImputationEvidence(
        own=features,
        neighbour_mean=neighbour_mean,
        near_duplicates=near_duplicates,
        co_interaction_mean=means,
        cross_fitted_mean=means,
        factors=np.stack([_factors(engine, subject) for subject in subjects]),
        observed=observed,
        neighbour_valid=neighbour_valid,
        co_interaction_valid=means_valid,
        preference=_preference(engine, subjects, neighbours),
    )
    made = engine.model.generate(known)
    return [_complete(engine, known, around, made, row, subject) for row, subject in enumerate(subjects)]


def _stacked(engine: Engine, subjects: Sequence[Subject]) -> dict[str, Array]:
    """Observed features `[b, r_m]`, zero where there is none."""
    stacked = {}
    for name, rank in engine.model.ranks.items():
        zero = np.zeros(rank, dtype=np.float32)
        stacked[name] = np.stack([subject.features.get(name, zero) for subject in subjects])
    return stacked


def _complete(
    engine: Engine,
    known: ImputationEvidence,
    around: Mapping[str, tuple[Keys, Array]],
    made: Mapping[str, Made],
    row: int,
    subject: Subject,
) -> Completed:
    features: dict[str, Array] = {}
    generated: dict[str, Generated] = {}
    states: dict[str, State] = {}
    nearest_by: dict[str, tuple[Keys, Array]] = {}
    for column, name in enumerate(engine.model.names):
        if known.observed[row, column]:
            features[name], states[name] = known.own[name][row], State.OBSERVED
            nearest_by[name] = around[name][0][row], around[name][1][row]
            continue
        feature, generator, sure = _fallback_chain(engine, known, made[name], row, column, subject)
        features[name] = feature
        if generator is None:
            states[name] = State.ABSENT
            continue
        states[name] = State.GENERATED
        basis = _basis(engine, known, row, column, generator, touched=bool(subject.visitors))
        raw = engine.model.unproject(name, feature[None])[0]
        generated[name] = Generated(raw, generator, round(sure, 4), basis)
    return Completed(features, generated, states, known.preference[:, row], nearest_by)


def _fallback_chain(
    engine: Engine, known: ImputationEvidence, made: Made, row: int, column: int, subject: Subject
) -> tuple[Array, str | None, float]:
    """The highest rung of the ladder that holds for this cell: projected feature, generator's name, confidence."""
    model, name = engine.model, engine.model.names[column]
    top = model.model.config.imputation
    feature, confidence = made[0][row], made[1][row]
    if top == "generate" and (known.observed[row].any() or subject.visitors) and np.isfinite(feature).all():
        return feature, DGMREC, float(confidence)
    if top == "generate" or top in GRAPH_IMPUTERS:
        guess = _fallback_guess(engine, subject, name)
        if guess is not None:
            return guess, model.fallback_imputer, 0.0
    if top != MEAN and known.neighbour_valid[row, column]:
        return known.neighbour_mean[name][row], NN, 0.0
    nothing = np.zeros(model.ranks[name], dtype=np.float32)  # centred: the modality's mean
    return nothing, MEAN if model.has_mean(name) else None, 0.0


def _fallback_guess(engine: Engine, subject: Subject, name: str) -> Array | None:
    """The guess `[r_m]` of the bundle's imputer over the co-interaction graph, from the items that the item's users
    have besides it; those that training did not know tell nothing."""
    if not subject.visitors:
        return None
    keys, counts = np.unique(np.concatenate([visitor.others for visitor in subject.visitors]), return_counts=True)
    entries, items = engine.catalogue.entries, engine.model.items
    found = [
        (row, count)
        for key, count in zip(keys.tolist(), counts.tolist(), strict=True)
        if key in entries and (row := items.get(entries[key].id)) is not None
    ]
    return engine.model.fallback_guess(name, [row for row, _ in found], [count for _, count in found])


def _basis(
    engine: Engine, known: ImputationEvidence, row: int, column: int, generator: str, *, touched: bool
) -> tuple[str, ...]:
    """What the generator read."""
    others = [name for place, name in enumerate(engine.model.names) if known.observed[row, place]]
    read = generator == NN or engine.model.reads_neighbours(engine.model.names[column], warm=touched)
    neighbours = ["neighbours"] if read and known.neighbour_valid[row, column] else []
    users = ["users"] if touched else []
    if generator == MEAN:
        return ()
    if generator == NN:
        return (*others, *neighbours)
    return tuple(users) if generator in GRAPH_IMPUTERS else (*others, *neighbours, *users)


# --- neighbours ------------------------------------------------------------------------------------------------------


def nearest(engine: Engine, name: str, features: Array, k: int, allowed: Mask) -> tuple[Keys, Array]:
    """Keys and cosines `[b, k]` of the nearest items by one modality's projected features `[b, r_m]`; -1 and -inf where
    there are too few.

    A zero feature, which says nothing, has no neighbours.
    """
    length = np.linalg.norm(features, axis=1, keepdims=True)
    found, cosines = engine.catalogue.indexes[name].search(features / np.maximum(length, 1e-6), k, allowed)
    found[length[:, 0] <= 1e-6] = -1
    return found, cosines


def _alone(subject: Subject, mask: Mask) -> Mask:
    """The mask without the item itself."""
    key = subject.key
    if key is None or not mask[key]:
        return mask
    without = mask.copy()
    without[key] = False
    return without


def neighbour_keys(
    engine: Engine, subjects: Sequence[Subject], name: str, features: Array, rows: Sequence[int], k: int, mask: Mask
) -> tuple[Keys, Array]:
    """As `nearest` for some rows, no item its own neighbour; rows not asked for are -1 and -inf."""
    found = np.full((len(subjects), k), -1, dtype=np.int64)
    cosines = np.full((len(subjects), k), -np.inf, dtype=np.float32)
    if not len(rows) or not mask.any():
        return found, cosines
    fresh = [row for row in rows if subjects[row].key is None or not mask[subjects[row].key or 0]]
    if fresh:
        found[fresh], cosines[fresh] = nearest(engine, name, features[fresh], k, mask)
    for row in set(rows).difference(fresh):
        alone = nearest(engine, name, features[row : row + 1], k, _alone(subjects[row], mask))
        found[row], cosines[row] = alone[0][0], alone[1][0]
    return found, cosines


def _around(
    engine: Engine, subjects: Sequence[Subject], features: Mapping[str, Array], observed: Mask
) -> dict[str, tuple[Keys, Array]]:
    """By modality the neighbours, keys and cosines `[b, k]`, of the items that have it among all that do.

    The first are those of training's kin graph; there are so many that, as a rule, enough of them have another modality
    as well (see `_neighbour_evidence`).
    """
    found = {}
    for column, name in enumerate(engine.model.names):
        rows = np.flatnonzero(observed[:, column]).tolist()
        mask = engine.catalogue.having(name)
        found[name] = neighbour_keys(engine, subjects, name, features[name], rows, depth(engine), mask)
    return found


def depth(engine: Engine) -> int:
    """How many neighbours are looked up at once, for all that reads of them."""
    config = engine.model.model.config
    return max(config.neighbours, config.cold_neighbours, 2 * EVIDENCE_NEIGHBOURS)


def _neighbour_evidence(
    engine: Engine,
    subjects: Sequence[Subject],
    features: Mapping[str, Array],
    observed: Mask,
    around: Mapping[str, tuple[Keys, Array]],
) -> tuple[dict[str, Array], dict[str, Array], Mask]:
    """As `models.evidence.aggregate_neighbours` has them, over the indexes: `Evidence.neighbour_mean` and
    `Evidence.near_duplicates`, and where there are any."""
    names = engine.model.names
    neighbour_mean: dict[str, Array] = {}
    near_duplicates: dict[str, Array] = {}
    valid = np.zeros_like(observed)
    for target, name in enumerate(names):
        total = np.zeros((2, len(subjects), engine.model.ranks[name]), dtype=np.float32)
        count = np.zeros(len(subjects), dtype=np.float32)
        for source, other in enumerate(names):
            rows = np.flatnonzero(observed[:, source] & ~observed[:, target])
            if not (around[other][0][rows] >= 0).any():
                continue
            keys, cosines = _having_both(engine, subjects, (other, name), features[other], rows, around[other])
            mean_of = _mean_of(engine.catalogue.rows.get(f"feature.{name}", keys), keys)
            total[:, rows] += similarity_weighted_mean(mean_of, cosines), near_duplicate_mean(mean_of, cosines)
            count[rows] += (keys >= 0).any(axis=1)
        neighbour_mean[name], near_duplicates[name] = total / np.maximum(count, 1)[:, None]
        valid[:, target] = count > 0
    return neighbour_mean, near_duplicates, valid


def _mean_of(gathered: Array, keys: Keys) -> MeanOf:
    """The mean of gathered features `[r, k, r_m]` of keys `[r, k]` by the weights of the first of them."""

    def mean_of(weights: Array) -> Array:
        count = weights.shape[1]
        return mean_of_gathered(gathered[:, :count], keys[:, :count], weights)[0]

    return mean_of


def _having_both(
    engine: Engine,
    subjects: Sequence[Subject],
    names: tuple[str, str],
    features: Array,
    rows: Keys,
    around: tuple[Keys, Array],
) -> tuple[Keys, Array]:
    """Keys and cosines `[r, k]` of the nearest items by the first modality that have the second as well, for some rows
    `[r]`: out of those around, and by another search where these are too few; -1 and -inf where there are no more."""
    keys, cosines = around[0][rows], around[1][rows]
    both = (keys >= 0) & engine.catalogue.observed[keys, engine.model.names.index(names[1])]
    first = np.argsort(~both, axis=1, kind="stable")[:, :EVIDENCE_NEIGHBOURS]
    found = np.take_along_axis(np.where(both, keys, -1), first, axis=1)
    near = np.take_along_axis(np.where(both, cosines, -np.inf), first, axis=1)
    short = np.flatnonzero((keys[:, -1] >= 0) & (found[:, -1] < 0))
    if len(short):
        mask = engine.catalogue.having(*names)
        again = rows[short].tolist()
        deeper = neighbour_keys(engine, subjects, names[0], features, again, EVIDENCE_NEIGHBOURS, mask)
        found[short], near[short] = deeper[0][again], deeper[1][again]
    return found, near


# --- users -----------------------------------------------------------------------------------------------------------


def _co_interaction_means(engine: Engine, subjects: Sequence[Subject]) -> tuple[dict[str, Array], Mask]:
    """Co-interaction means, as `models.evidence.co_interaction_means`, from the visitors' other items."""
    names, catalogue = engine.model.names, engine.catalogue
    blocks = {name: np.zeros((len(subjects), rank), dtype=np.float32) for name, rank in engine.model.ranks.items()}
    valid = np.zeros((len(subjects), len(names)), dtype=np.bool_)
    for row, subject in enumerate(subjects):
        for column, name in enumerate(names):
            means = [
                catalogue.rows.get(f"feature.{name}", having).mean(axis=0)
                for visitor in subject.visitors
                if len(having := visitor.others[catalogue.observed[visitor.others, column]])
            ]
            if means:
                blocks[name][row] = np.mean(means, axis=0)
                valid[row, column] = True
    return blocks, valid


def _factors(engine: Engine, subject: Subject) -> Array:
    """The item's collaborative factors `[q]`."""
    if subject.factors is not None and not subject.visitors:
        return subject.factors
    return engine.model.item_factor([visitor.factor for visitor in subject.visitors if visitor.factor is not None])


def _preference(engine: Engine, subjects: Sequence[Subject], neighbours: Mapping[str, Keys]) -> Array:
    """p_i `[M, b, d]`: the mean preference of the item's users; the neighbours' preference where the item has no users
    yet; everyone's where it has no neighbours either."""
    # As in training's neighbour graph, each modality's neighbours weigh the same.
    preferences = engine.catalogue.rows
    means = [
        mean_of_gathered(preferences.get("taste", keys), keys) for keys in neighbours.values() if (keys >= 0).any()
    ]
    total = sum((mean * valid[:, None, None] for mean, valid in means), np.zeros((), dtype=np.float32))
    count = sum((valid.astype(np.float32) for _, valid in means), np.zeros(len(subjects), dtype=np.float32))
    everyone = engine.model.tables["mean_preference"]
    rows = []
    for row, subject in enumerate(subjects):
        if subject.visitors:
            rows.append(np.mean([visitor.preference for visitor in subject.visitors], axis=0))
        elif subject.taste is not None:
            rows.append(subject.taste)
        elif count[row]:
            rows.append(total[row] / count[row])
        else:
            rows.append(everyone)
    return np.stack(rows, axis=1).astype(np.float32)
