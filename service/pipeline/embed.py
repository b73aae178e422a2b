"""From completed features to an item's vectors (step 5 of the design): parts, propagation over the item graph's
directed edges, the modal part, the final vector, learned, folded in, or expected from content, and what IRIS needs of
the item."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from models.arrays import Array
from models.dgmrec.inference import mean_of_gathered
from models.iris.serving import IRISServing
from service.domain import State
from service.pipeline.catalogue import Derived
from service.pipeline.engine import Engine
from service.pipeline.impute import Completed, Subject, depth, neighbour_keys
from service.ports import Keys


def embed(
    engine: Engine, ids: Sequence[str], subjects: Sequence[Subject], completed: Sequence[Completed]
) -> list[Derived]:
    """Model state of several items. The catalogue is read, not changed."""
    if not subjects:
        return []
    model = engine.model
    features = {name: np.stack([one.features[name] for one in completed]) for name in model.names}
    preference = np.stack([one.taste for one in completed], axis=1)  # [M, b, d]
    around = _around(engine, subjects, completed, features)
    layers = _propagate(engine, around, model.encode(features, preference))
    modal, expected = model.fuse(layers[-1]), _expected(engine, ids, around, features)
    parts = np.stack(layers[:-1])  # [L, M, b, 2d]
    sides = _sides(engine, engine.reranker, ids, subjects, completed) if engine.reranker else {}
    return [
        Derived(
            completed[row].features,
            parts[:, :, row],
            completed[row].taste,
            *_vectors(engine, ids[row], subject, expected[row], modal[row]),
            modal[row],
            {name: side[row] for name, side in sides.items()},
        )
        for row, subject in enumerate(subjects)
    ]


def _around(
    engine: Engine, subjects: Sequence[Subject], completed: Sequence[Completed], features: Mapping[str, Array]
) -> list[tuple[Keys, Array]]:
    """By modality the neighbours, keys and cosines `[b, depth]`, of the feature, real or generated, among the items
    that have the modality."""
    catalogue, found = engine.catalogue, []
    for name in engine.model.names:
        rows = [
            row for row, one in enumerate(completed) if one.states[name] is not State.ABSENT and name not in one.around
        ]
        mask = catalogue.having(name)
        keys, cosines = neighbour_keys(engine, subjects, name, features[name], rows, depth(engine), mask)
        for row, one in enumerate(completed):
            if name in one.around:
                keys[row], cosines[row] = one.around[name]
        found.append((keys, cosines))
    return found


def _propagate(engine: Engine, around: Sequence[tuple[Keys, Array]], parts: Array) -> list[Array]:
    """Parts `[M, b, 2d]` before and after each layer: the mean over the neighbours (eq. 5 with the graph that
    refinement, eq. 16, converges to). Without neighbours, the item's own."""
    model = engine.model
    layers = [parts, *(parts.copy() for _ in range(model.layers))]
    for column, (found, _) in enumerate(around):
        keys = found[:, : model.neighbours]
        for layer in range(model.layers):
            mean, valid = mean_of_gathered(engine.catalogue.rows.get("parts", keys, layer, column), keys)
            layers[layer + 1][column, valid] = mean[valid]
    return layers


def _expected(
    engine: Engine, ids: Sequence[str], around: Sequence[tuple[Keys, Array]], features: Mapping[str, Array]
) -> Array:
    """The vectors `[b, d]` to be expected of the items as long as nobody has touched them."""
    catalogue, count = engine.catalogue, engine.model.model.config.cold_neighbours
    keys = np.concatenate([found[:, :count] for found, _ in around], axis=1)
    cosines = np.concatenate([near[:, :count] for _, near in around], axis=1)
    later = np.array([item_id not in engine.model.items for item_id in ids], dtype=np.bool_)
    neighbours = catalogue.rows.get("final", keys)
    return engine.model.cold_vectors(features, neighbours, cosines, catalogue.degree(keys), later)


def _vectors(engine: Engine, item_id: str, subject: Subject, expected: Array, modal: Array) -> tuple[Array, Array]:
    """An item's final vector, and what it passes on to its users."""
    model = engine.model
    row = model.trained_row(item_id)
    if row is not None:
        return model.warm_vector(row, modal), model.tables["item_message"][row]
    messages = np.array([visitor.message for visitor in subject.visitors], dtype=np.float32)
    told = model.item_message(model.item_id(expected, messages), len(messages))
    return model.final(expected, messages, modal), told


def _sides(
    engine: Engine,
    reranker: IRISServing,
    ids: Sequence[str],
    subjects: Sequence[Subject],
    completed: Sequence[Completed],
) -> Mapping[str, Array]:
    """What IRIS needs of the items, by field `[b, ...]`, from raw features: the observed ones, else the generated."""
    features = {
        name: np.stack([_raw(engine, name, *pair) for pair in zip(subjects, completed, strict=True)])
        for name in reranker.names
    }
    present = [[one.states[name] is not State.ABSENT for name in reranker.names] for one in completed]
    sides = reranker.sides(features, np.array(present, dtype=np.bool_), ids)
    return {name: getattr(sides, name) for name in reranker.shapes}


def _raw(engine: Engine, name: str, subject: Subject, one: Completed) -> Array:
    if name in subject.raw:
        return subject.raw[name]
    if name in one.generated:
        return one.generated[name].vector
    return np.zeros(engine.model.specs[name].dim, dtype=np.float32)
