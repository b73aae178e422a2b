"""At start: the catalogue from the store, what the active bundle has not computed yet computed, and all vectors."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from models.arrays import Array
from service.domain import StoredItem
from service.pipeline import recalibrate, vectors
from service.pipeline.active import Active
from service.pipeline.catalogue import Catalogue, Derived, Entry
from service.pipeline.complete import Computed, Content, complete, with_users, words_of
from service.pipeline.engine import Engine
from service.pipeline.evidence import projected
from service.pipeline.renew import encode_anew, require_usable
from service.ports import SERVED, GeneratedWrite

log = logging.getLogger(__name__)

BATCH = 256
BEGUN = "begun "  # before a bundle's identity, in the setting SERVED, while its start has not ended
REPORT_S = 10.0


async def load_catalogue(engine: Engine) -> None:
    """Fill the catalogue from the store.

    What the active bundle has stored of items before comes as it was, bit for bit; the others (new to this bundle, or
    just seeded) are encoded and completed, and the results stored, so that an interrupted start goes on where it was.
    Then all vectors are computed.

    Raises:
        BundleError: the database holds what the bundle cannot use; nothing was changed.
    """
    active, catalogue, runtime = engine.active, engine.memory.catalogue, engine.runtime
    runtime.followed.position = await engine.store.last_change()  # before anything is read: later changes are followed
    await recalibrate.load(engine)
    served = await engine.store.get_meta(SERVED)
    prepared, begun = served == active.identity, f"{BEGUN}{active.identity}"
    todo: list[StoredItem] = []
    async for items in engine.store.iter_items():
        ready: list[tuple[Entry, Derived]] = []
        for item in items:
            derived = Derived.unpack(item.derived, catalogue.shape)
            if served in (active.identity, begun) and item.model_version == active.version and derived is not None:
                ready.append((Entry.of(item, catalogue.names), derived))
            else:
                todo.append(item)
        await runtime.compute(catalogue.put, ready)
    require_usable(active, todo)
    if todo:
        log.info("embedding %d items under bundle %s", len(todo), active.version)
        if not prepared:
            await engine.store.set_meta(SERVED, begun)  # until all of it is done, no bundle has prepared it
        await _complete(engine, await encode_anew(engine, todo))
    if not prepared:
        await engine.store.set_meta(SERVED, active.identity)
    counts = await engine.store.item_counts(min_rating=engine.active.min_rating)
    await runtime.compute(catalogue.set_popularity, counts)
    await _derive(engine)


async def is_prepared(engine: Engine) -> bool:
    """Whether the active bundle has computed all that is in the store."""
    return await engine.store.get_meta(SERVED) == engine.active.identity


async def _complete(engine: Engine, items: Sequence[StoredItem]) -> None:
    """Complete items and store what comes of it. First all are in the catalogue with what is observed of them, for
    nothing else is read of others."""
    active, catalogue, runtime = engine.active, engine.memory.catalogue, engine.runtime
    for start in range(0, len(items), BATCH):
        await runtime.compute(_put_observed, active, catalogue, items[start : start + BATCH])
    await _derive(engine, [vectors.CONTENT])
    reported = time.monotonic()
    for start in range(0, len(items), BATCH):
        batch = items[start : start + BATCH]
        contents = await with_users(
            engine, {item.id: item.observed for item in batch}, {item.id: item.title for item in batch}
        )
        computed = await runtime.compute(complete, active, catalogue, contents)
        saves = [
            GeneratedWrite(item.id, item.version, made.generated, active.version, made.derived.pack(catalogue.shape))
            for item, made in zip(batch, computed, strict=True)
        ]
        runtime.followed.applied.update((await engine.store.save_generated(saves)).positions)
        rows = [(_entry(active, *pair), pair[1].derived) for pair in zip(batch, computed, strict=True)]
        await runtime.compute(catalogue.put, rows)
        if time.monotonic() - reported > REPORT_S:
            reported = time.monotonic()
            log.info("embedded %d of %d items", start + len(batch), len(items))


def _put_observed(active: Active, catalogue: Catalogue, items: Sequence[StoredItem]) -> None:
    rows = []
    for item in items:
        known = projected(active.dgmrec, item.observed)
        features = {name: known.get(name, _zeros(rank)) for name, rank in active.dgmrec.ranks.items()}
        sides = {name: np.zeros(dims, dtype=np.float32) for name, dims in catalogue.shape.sides.items()}
        reach = np.full(len(catalogue.names), np.inf, dtype=np.float32)
        words = words_of(active.dgmrec, Content(item.id, item.observed, title=item.title))
        derived = Derived(features, _zeros(catalogue.shape.size), 0.0, reach, sides, words)
        rows.append((Entry.of(replace(item, generated={}), catalogue.names), derived))
    catalogue.put(rows)


def _zeros(size: int) -> Array:
    return np.zeros(size, dtype=np.float32)


def _entry(active: Active, item: StoredItem, computed: Computed) -> Entry:
    return Entry.of(replace(item, generated=computed.generated), active.dgmrec.names)


async def _derive(engine: Engine, layers: Sequence[str] = ()) -> None:
    """Compute all vectors, or some layers of them."""
    steps = vectors.derive(engine.active.dgmrec, engine.memory.catalogue, layers)
    reported = time.monotonic()
    while (done := await engine.runtime.compute(next, steps, None)) is not None:
        if time.monotonic() - reported > REPORT_S:
            reported = time.monotonic()
            log.info("computed %.0f %% of the vectors", 100 * done)
