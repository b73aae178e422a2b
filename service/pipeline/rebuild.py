"""At start: the catalogue from the store, and what the active bundle has not computed yet, computed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from models.dgmrec.serving import DGMRecServing
from service.domain import Generated, State, StoredItem
from service.pipeline.active import Active
from service.pipeline.catalogue import Catalogue, Derived, Entry, Shape
from service.pipeline.embed import embed
from service.pipeline.engine import Engine
from service.pipeline.evidence import input_of, users_of
from service.pipeline.impute import DGMREC, Completed, ImputationInput, UserEvidence, impute
from service.pipeline.renew import encode_anew, require_usable
from service.ports import SERVED, GeneratedWrite

log = logging.getLogger(__name__)

BATCH = 256

Embedded = tuple[StoredItem, Completed, Derived]
Step = Callable[[Active, Catalogue, Sequence[StoredItem]], list[Embedded]]


async def load_catalogue(engine: Engine) -> None:
    """Fill the catalogue from the store.

    Items that the active bundle has computed before come as they were, bit for bit; the others (new to this bundle, or
    just seeded) are encoded, imputed and embedded, and the results stored.

    Raises:
        BundleError: the database holds what the bundle cannot use; nothing was changed.
    """
    active, catalogue, runtime = engine.active, engine.memory.catalogue, engine.runtime
    runtime.followed.position = await engine.store.last_change()  # before anything is read: later changes are followed
    prepared = await is_prepared(engine)
    todo: list[StoredItem] = []
    async for items in engine.store.iter_items():
        ready: list[tuple[Entry, Derived]] = []
        for item in items:
            derived = Derived.unpack(item.derived, catalogue.shape)
            if prepared and item.model_version == active.version and derived is not None:
                ready.append((Entry.of(item, catalogue.names), derived))
            else:
                todo.append(item)
        await runtime.compute(catalogue.put, ready)
    require_usable(active, todo)
    if todo:
        log.info("embedding %d items under bundle %s", len(todo), active.version)
        if not prepared:
            await engine.store.set_meta(SERVED, "")  # until all of it is done, no bundle has prepared it
        await _embed_anew(engine, await encode_anew(engine, todo))
    if not prepared:
        await engine.store.set_meta(SERVED, active.identity)
    await _count(engine)


async def is_prepared(engine: Engine) -> bool:
    """Whether the active bundle has computed all that is in the store."""
    return await engine.store.get_meta(SERVED) == engine.active.identity


async def _count(engine: Engine) -> None:
    counts = await engine.store.item_counts(min_rating=engine.active.min_rating)
    await engine.runtime.compute(engine.memory.catalogue.set_popularity, counts)


async def _embed_anew(engine: Engine, items: Sequence[StoredItem]) -> None:
    """Observed features first, then generation, then propagation layer by layer: each step reads what the one before
    has put into the catalogue for all items."""
    model = engine.active.dgmrec
    await _each(engine, items, _observed_only)
    await _count(engine)
    trained = [item for item in items if _as_in_training(model, item)]
    await _each(engine, trained, _trained)
    others = [item for item in items if not _as_in_training(model, item)]
    users = {item.id: await users_of(engine, item.id) for item in others}

    def generate(active: Active, catalogue: Catalogue, batch: Sequence[StoredItem]) -> list[Embedded]:
        inputs = _inputs(active, catalogue, batch, users)
        return _embedded(active, catalogue, batch, inputs, impute(active.dgmrec, catalogue, inputs))

    await _each(engine, others, generate)
    for layer in range(1, model.layers + 1):
        last = layer == model.layers
        await _each(engine, trained, _trained, save=last)
        await _each(engine, others, generate, save=last)


async def _each(engine: Engine, items: Sequence[StoredItem], step: Step, *, save: bool = False) -> None:
    active, catalogue, runtime = engine.active, engine.memory.catalogue, engine.runtime
    for start in range(0, len(items), BATCH):
        embedded = await runtime.compute(step, active, catalogue, items[start : start + BATCH])
        if save:
            await engine.store.save_generated(
                [
                    GeneratedWrite(item.id, item.version, completed.generated, active.version, derived.pack())
                    for item, completed, derived in embedded
                ]
            )
        rows = [(_entry(item, completed, catalogue.names), derived) for item, completed, derived in embedded]
        await runtime.compute(catalogue.put, rows)


def _entry(item: StoredItem, completed: Completed, names: Sequence[str]) -> Entry:
    confidence = {name: generated.confidence for name, generated in completed.generated.items()}
    return replace(Entry.of(item, names), states=completed.states, confidence=confidence)


def _observed_only(active: Active, catalogue: Catalogue, items: Sequence[StoredItem]) -> list[Embedded]:
    """What can be searched and read before anything is generated; the preference that training found, else the mean."""
    return [
        (item, *_observed_parts(active.dgmrec, catalogue.shape, imputation_input))
        for item, imputation_input in zip(items, _inputs(active, catalogue, items), strict=True)
    ]


def _observed_parts(model: DGMRecServing, shape: Shape, item: ImputationInput) -> tuple[Completed, Derived]:
    zero = np.zeros(shape.size, dtype=np.float32)
    features = {name: item.features.get(name, np.zeros(rank, dtype=np.float32)) for name, rank in model.ranks.items()}
    states = {name: State.OBSERVED if name in item.features else State.ABSENT for name in model.names}
    preference = model.tables["mean_preference"] if item.preference is None else item.preference
    own = model.encode({name: feature[None] for name, feature in features.items()}, preference[:, None])[:, 0]
    parts = np.repeat(own[None], shape.layers, axis=0)
    sides = {name: np.zeros(dims, dtype=np.float32) for name, dims in shape.sides.items()}
    derived = Derived(features, parts, preference, zero, zero, zero, sides)
    return Completed(features, {}, states, preference), derived


def _trained(active: Active, catalogue: Catalogue, items: Sequence[StoredItem]) -> list[Embedded]:
    """Items whose observed cells are those of training: completed as they were at its end."""
    model = active.dgmrec
    inputs = _inputs(active, catalogue, items)
    completed = []
    for item, imputation_input in zip(items, inputs, strict=True):
        row = model.items.row(item.id)
        features = {name: model.tables[f"feature.{name}"][row] for name in model.names}
        features |= imputation_input.features
        generated = {
            name: _trained_cell(model, item, name, row) for name in model.names if name not in imputation_input.features
        }
        states = {name: State.GENERATED if name in generated else State.OBSERVED for name in model.names}
        completed.append(Completed(features, generated, states, model.tables["item_preference"][row]))
    return _embedded(active, catalogue, items, inputs, completed)


def _trained_cell(model: DGMRecServing, item: StoredItem, name: str, row: int) -> Generated:
    confidence = float(model.tables["confidence"][row, model.names.index(name)])
    feature = model.tables[f"feature.{name}"][row]
    basis = (*(other for other in model.names if other in item.observed), "users")
    return Generated(model.unproject(name, feature[None])[0], DGMREC, round(confidence, 4), basis)


def _as_in_training(model: DGMRecServing, item: StoredItem) -> bool:
    """Whether training generated what this item lacks, from what is observed of it now."""
    row = model.trained_row(item.id)
    if row is None or model.model.config.imputation != "generate":
        return False
    observed: list[bool] = model.tables["observed"][row].astype(bool).tolist()
    return [name in item.observed for name in model.names] == observed


def _inputs(
    active: Active,
    catalogue: Catalogue,
    items: Sequence[StoredItem],
    users: Mapping[str, Sequence[UserEvidence]] | None = None,
) -> list[ImputationInput]:
    of_item = users or {}
    return [input_of(active.dgmrec, catalogue, item.id, item.observed, of_item.get(item.id, ())) for item in items]


def _embedded(
    active: Active,
    catalogue: Catalogue,
    items: Sequence[StoredItem],
    inputs: Sequence[ImputationInput],
    completed: Sequence[Completed],
) -> list[Embedded]:
    derived = embed(active, catalogue, [item.id for item in items], inputs, completed)
    return list(zip(items, completed, derived, strict=True))
