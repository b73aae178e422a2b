"""From completed features to an item's vectors (step 5 of the design): parts, propagation over the item graph's
directed edges, the modal part, the final vector, learned, folded in, or expected from content, and what IRIS needs of
the item."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from models.arrays import Array
from models.dgmrec.inference import mean_of_gathered
from models.dgmrec.serving import DGMRecServing
from models.iris.serving import IRISServing
from service.domain import State
from service.pipeline.active import Active
from service.pipeline.catalogue import Catalogue, Derived
from service.pipeline.impute import Completed, ImputationInput, Neighbours, depth, neighbours_of


def embed(
    active: Active,
    catalogue: Catalogue,
    ids: Sequence[str],
    inputs: Sequence[ImputationInput],
    completed: Sequence[Completed],
) -> list[Derived]:
    """Model state of several items. The catalogue is read, not changed."""
    if not inputs:
        return []
    model = active.dgmrec
    features = {name: np.stack([item.features[name] for item in completed]) for name in model.names}
    preference = np.stack([item.preference for item in completed], axis=1)  # [M, b, d]
    neighbours = _neighbours(model, catalogue, inputs, completed, features)
    layers = _propagate(model, catalogue, neighbours, model.encode(features, preference))
    modal, expected = model.fuse(layers[-1]), _expected(model, catalogue, ids, neighbours, features)
    parts = np.stack(layers[:-1])  # [L, M, b, 2d]
    sides = _sides(model, active.iris, ids, inputs, completed) if active.iris else {}
    return [
        Derived(
            completed[row].features,
            parts[:, :, row],
            completed[row].preference,
            *_vectors(model, ids[row], item, expected[row], modal[row]),
            modal[row],
            {name: side[row] for name, side in sides.items()},
        )
        for row, item in enumerate(inputs)
    ]


def _neighbours(
    model: DGMRecServing,
    catalogue: Catalogue,
    inputs: Sequence[ImputationInput],
    completed: Sequence[Completed],
    features: Mapping[str, Array],
) -> list[Neighbours]:
    """By modality the neighbours, keys and cosines `[b, depth]`, of the feature, real or generated, among the items
    that have the modality."""
    neighbours = []
    for name in model.names:
        rows = [
            row
            for row, item in enumerate(completed)
            if item.states[name] is not State.ABSENT and name not in item.neighbours
        ]
        mask = catalogue.having(name)
        keys, cosines = neighbours_of(catalogue, inputs, name, features[name], rows, depth(model), mask)
        for row, item in enumerate(completed):
            if name in item.neighbours:
                keys[row], cosines[row] = item.neighbours[name]
        neighbours.append((keys, cosines))
    return neighbours


def _propagate(
    model: DGMRecServing, catalogue: Catalogue, neighbours: Sequence[Neighbours], parts: Array
) -> list[Array]:
    """Parts `[M, b, 2d]` before and after each layer: the mean over the neighbours (eq. 5 with the graph that
    refinement, eq. 16, converges to). Without neighbours, the item's own."""
    layers = [parts, *(parts.copy() for _ in range(model.layers))]
    for column, (all_keys, _) in enumerate(neighbours):
        keys = all_keys[:, : model.neighbours]
        for layer in range(model.layers):
            mean, valid = mean_of_gathered(catalogue.rows.get("parts", keys, layer, column), keys)
            layers[layer + 1][column, valid] = mean[valid]
    return layers


def _expected(
    model: DGMRecServing,
    catalogue: Catalogue,
    ids: Sequence[str],
    neighbours: Sequence[Neighbours],
    features: Mapping[str, Array],
) -> Array:
    """The vectors `[b, d]` to be expected of the items as long as they have no interactions."""
    count = model.model.config.cold_neighbours
    keys = np.concatenate([all_keys[:, :count] for all_keys, _ in neighbours], axis=1)
    cosines = np.concatenate([all_cosines[:, :count] for _, all_cosines in neighbours], axis=1)
    later = np.array([item_id not in model.items for item_id in ids], dtype=np.bool_)
    finals = catalogue.rows.get("final", keys)
    return model.cold_vectors(features, finals, cosines, catalogue.degree(keys), later)


def _vectors(
    model: DGMRecServing, item_id: str, item: ImputationInput, expected: Array, modal: Array
) -> tuple[Array, Array]:
    """An item's final vector, and what it passes on to its users."""
    row = model.trained_row(item_id)
    if row is not None:
        return model.warm_vector(row, modal), model.tables["item_message"][row]
    messages = np.array([user.message for user in item.users], dtype=np.float32)
    message = model.item_message(model.item_id(expected, messages), len(messages))
    return model.final(expected, messages, modal), message


def _sides(
    model: DGMRecServing,
    iris: IRISServing,
    ids: Sequence[str],
    inputs: Sequence[ImputationInput],
    completed: Sequence[Completed],
) -> Mapping[str, Array]:
    """What IRIS needs of the items, by field `[b, ...]`, from raw features: the observed ones, else the generated."""
    features = {
        name: np.stack([_raw(model.specs[name].dim, name, *pair) for pair in zip(inputs, completed, strict=True)])
        for name in iris.names
    }
    present = [[item.states[name] is not State.ABSENT for name in iris.names] for item in completed]
    sides = iris.sides(features, np.array(present, dtype=np.bool_), ids)
    return {name: getattr(sides, name) for name in iris.shapes}


def _raw(dim: int, name: str, item: ImputationInput, completed: Completed) -> Array:
    if name in item.raw:
        return item.raw[name]
    if name in completed.generated:
        return completed.generated[name].vector
    return np.zeros(dim, dtype=np.float32)
