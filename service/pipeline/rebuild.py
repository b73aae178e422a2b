"""At start: the catalogue from the store, and what the active bundle has not computed yet, computed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from service.domain import Generated, State, StoredItem
from service.pipeline.catalogue import Derived, Entry
from service.pipeline.embed import embed
from service.pipeline.engine import Engine
from service.pipeline.impute import DGMREC, Completed, Subject, Visitor, impute
from service.pipeline.ingest import entry_of, subject_of, visitors_of
from service.pipeline.renew import encode_anew, require_usable
from service.ports import SERVED, GeneratedWrite

log = logging.getLogger(__name__)

BATCH = 256


async def load_catalogue(engine: Engine) -> None:
    """Fill the catalogue from the store.

    Items that the active bundle has made before come as they were, bit for bit; the others (new to this bundle, or
    just seeded) are encoded, imputed and embedded, and the results stored.

    Raises:
        BundleError: the database holds what the bundle cannot use; nothing was changed.
    """
    engine.followed.position = await engine.store.last_change()  # before anything is read: what comes later is followed
    is_known = await is_prepared(engine)
    pending: list[StoredItem] = []
    async for items in engine.store.iter_items():
        ready: list[tuple[Entry, Derived]] = []
        for item in items:
            derived = Derived.unpack(item.derived, engine.catalogue.shape)
            if is_known and item.model_version == engine.model_version and derived is not None:
                ready.append((entry_of(engine, item), derived))
            else:
                pending.append(item)
        await engine.compute(engine.catalogue.put, ready)
    require_usable(engine, pending)
    if pending:
        log.info("embedding %d items under bundle %s", len(pending), engine.model_version)
        if not is_known:
            await engine.store.set_meta(SERVED, "")  # until all of it is done, it is nobody's
        await _embed_anew(engine, await encode_anew(engine, pending))
    if not is_known:
        await engine.store.set_meta(SERVED, engine.identity)
    await engine.compute(engine.catalogue.set_popularity, await engine.store.item_counts(min_rating=engine.min_rating))


async def is_prepared(engine: Engine) -> bool:
    """Whether the active bundle has computed all that is in the store."""
    return await engine.store.get_meta(SERVED) == engine.identity


async def _embed_anew(engine: Engine, items: Sequence[StoredItem]) -> None:
    """Observed features first, then generation, then propagation layer by layer: each step reads what the one before
    has put into the catalogue for all items."""
    await _each(engine, items, _observed_only)
    await engine.compute(engine.catalogue.set_popularity, await engine.store.item_counts(min_rating=engine.min_rating))
    trained = [item for item in items if _seen_in_training(engine, item)]
    await _each(engine, trained, _as_trained)
    others = [item for item in items if not _seen_in_training(engine, item)]
    visitors = {item.id: await visitors_of(engine, item.id) for item in others}

    def generate(engine: Engine, some: Sequence[StoredItem]) -> list[tuple[StoredItem, Completed, Derived]]:
        subjects = [_subject(engine, item, visitors[item.id]) for item in some]
        return _embedded(engine, some, subjects, impute(engine, subjects))

    await _each(engine, others, generate)
    for layer in range(1, engine.model.layers + 1):
        last = layer == engine.model.layers
        await _each(engine, trained, _as_trained, save=last)
        await _each(engine, others, generate, save=last)


Step = Callable[[Engine, Sequence[StoredItem]], list[tuple[StoredItem, Completed, Derived]]]


async def _each(engine: Engine, items: Sequence[StoredItem], step: Step, *, save: bool = False) -> None:
    for start in range(0, len(items), BATCH):
        made = await engine.compute(step, engine, items[start : start + BATCH])
        if save:
            await engine.store.save_generated(
                [
                    GeneratedWrite(item.id, item.version, completed.generated, engine.model_version, derived.pack())
                    for item, completed, derived in made
                ]
            )
        rows = [(_entry(engine, item, completed), derived) for item, completed, derived in made]
        await engine.compute(engine.catalogue.put, rows)


def _entry(engine: Engine, item: StoredItem, completed: Completed) -> Entry:
    sure = {name: one.confidence for name, one in completed.generated.items()}
    return replace(entry_of(engine, item), states=completed.states, confidence=sure)


def _observed_only(engine: Engine, items: Sequence[StoredItem]) -> list[tuple[StoredItem, Completed, Derived]]:
    """What can be searched and read before anything is generated; taste as training found it, else everyone's."""
    model, shape = engine.model, engine.catalogue.shape
    zero = np.zeros(shape.size, dtype=np.float32)
    made = []
    for item in items:
        subject = _subject(engine, item)
        features = {
            name: subject.features.get(name, np.zeros(rank, dtype=np.float32)) for name, rank in model.ranks.items()
        }
        states = {name: State.OBSERVED if name in subject.features else State.ABSENT for name in model.names}
        taste = model.tables["mean_preference"] if subject.taste is None else subject.taste
        own = model.encode({name: feature[None] for name, feature in features.items()}, taste[:, None])[:, 0]
        parts = np.repeat(own[None], shape.layers, axis=0)
        sides = {name: np.zeros(dims, dtype=np.float32) for name, dims in shape.sides.items()}
        derived = Derived(features, parts, taste, zero, zero, zero, sides)
        made.append((item, Completed(features, {}, states, taste), derived))
    return made


def _as_trained(engine: Engine, items: Sequence[StoredItem]) -> list[tuple[StoredItem, Completed, Derived]]:
    """Items whose observed cells are those of training: completed as they were at its end."""
    model = engine.model
    subjects = [_subject(engine, item) for item in items]
    completed = []
    for item, subject in zip(items, subjects, strict=True):
        row = model.items.row(item.id)
        features = {name: model.tables[f"feature.{name}"][row] for name in model.names}
        features |= subject.features
        generated = {
            name: _trained_cell(engine, item, name, row) for name in model.names if name not in subject.features
        }
        states = {name: State.GENERATED if name in generated else State.OBSERVED for name in model.names}
        completed.append(Completed(features, generated, states, model.tables["item_preference"][row]))
    return _embedded(engine, items, subjects, completed)


def _trained_cell(engine: Engine, item: StoredItem, name: str, row: int) -> Generated:
    model = engine.model
    sure = float(model.tables["confidence"][row, model.names.index(name)])
    feature = model.tables[f"feature.{name}"][row]
    basis = (*(other for other in model.names if other in item.observed), "users")
    return Generated(model.unproject(name, feature[None])[0], DGMREC, round(sure, 4), basis)


def _seen_in_training(engine: Engine, item: StoredItem) -> bool:
    model = engine.model
    row = model.trained_row(item.id)
    if row is None or model.model.config.imputation != "generate":
        return False
    seen: list[bool] = model.tables["observed"][row].astype(bool).tolist()
    return [name in item.observed for name in model.names] == seen


def _subject(engine: Engine, item: StoredItem, visitors: Sequence[Visitor] = ()) -> Subject:
    return subject_of(engine, item.id, item.observed, visitors)


def _embedded(
    engine: Engine, items: Sequence[StoredItem], subjects: Sequence[Subject], completed: Sequence[Completed]
) -> list[tuple[StoredItem, Completed, Derived]]:
    derived = embed(engine, [item.id for item in items], subjects, completed)
    return list(zip(items, completed, derived, strict=True))
