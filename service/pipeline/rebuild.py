"""Before a bundle serves: the catalogue from the store, what the bundle has not computed yet computed, and all
vectors."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from models.arrays import Array
from service.domain import ChangesLostError, StoredItem
from service.pipeline import follow, recalibrate, vectors
from service.pipeline.active import Active
from service.pipeline.catalogue import Catalogue, Derived, Entry
from service.pipeline.complete import Computed, Content, complete, with_users, words_of
from service.pipeline.engine import Engine
from service.pipeline.evidence import projected
from service.pipeline.renew import Renewed, encode_anew, require_usable
from service.ports import UNKNOWN, GeneratedWrite

log = logging.getLogger(__name__)

BATCH = 256
GENTLE = 32  # items at once while another bundle serves
Report = Callable[[str, int, int], None]


async def load_catalogue(engine: Engine, report: Report = lambda *_: None) -> None:
    """Fill the catalogue from the store.

    What the model has stored of items before comes as it was, bit for bit; the others (new to it, just seeded, or
    written under another one) are encoded and completed, and the results stored, so that an interrupted start goes on
    where it was. Then all vectors are computed. `report` is told of each step, with how many items of how many.

    Raises:
        BundleError: the database holds what the bundle cannot use; nothing was changed.
    """
    active, catalogue, runtime = engine.active, engine.memory.catalogue, engine.runtime
    runtime.followed.position = await engine.store.last_change()  # before anything is read: later changes are followed
    await _absorb(engine, runtime.followed.position)
    await recalibrate.load(engine)
    todo: list[StoredItem] = []
    read, count = 0, await engine.store.count_items()
    async for items in engine.store.iter_items():
        ready: list[tuple[Entry, Derived]] = []
        for item in items:
            derived = Derived.unpack(item.derived, catalogue.shape)
            if derived is not None:
                ready.append((Entry.of(item, catalogue.names), derived))
            else:
                todo.append(item)
        await runtime.compute(catalogue.put, ready)
        read += len(items)
        report("read", read, count)
    require_usable(active, todo)
    if todo:
        log.info("embedding %d items under bundle %s", len(todo), active.version)
        await _complete(engine, await _encode(engine, todo, report), report)
    counts = await engine.store.item_counts(min_rating=engine.active.min_rating)
    await runtime.compute(catalogue.set_popularity, counts)
    await _derive(engine, report=report)


async def _absorb(engine: Engine, until: int) -> None:
    """Enqueue what others have written under other models since the model last followed them; everything, where the log
    does not have that any more."""
    rows = {row.id: row for row in await engine.store.served_models()}
    if engine.store.model not in rows:
        return
    position = rows[engine.store.model].position
    try:
        while position < until:
            entries = await engine.store.changes(position, limit=follow.ENTRIES)
            if not entries:
                break
            await follow.absorb(engine, entries)
            position = entries[-1].position
    except ChangesLostError:
        log.info("the change log does not go back to when bundle %s was last served", engine.model_version)
        await engine.store.enqueue_all()
    await engine.store.start_over(until)


async def _encode(engine: Engine, items: Sequence[StoredItem], report: Report) -> list[Renewed]:
    """Items with every feature made by the bundle's own encoders."""
    renewed: list[Renewed] = []
    for start in range(0, len(items), BATCH):
        renewed += await encode_anew(engine, items[start : start + BATCH])
        report("encoded", len(renewed), len(items))
    return renewed


async def _complete(engine: Engine, items: Sequence[Renewed], report: Report) -> None:
    """Complete items and store what comes of it. First all are in the catalogue with what is observed of them, for
    nothing else is read of others."""
    active, catalogue, runtime = engine.active, engine.memory.catalogue, engine.runtime
    for start in range(0, len(items), BATCH):
        await runtime.compute(_put_observed, active, catalogue, [one.item for one in items[start : start + BATCH]])
    await _derive(engine, [vectors.CONTENT])
    size = BATCH if runtime.share == 1 else GENTLE
    for start in range(0, len(items), size):
        batch = items[start : start + size]
        read = [one.item for one in batch]
        contents = await with_users(
            engine, {item.id: item.observed for item in read}, {item.id: item.title for item in read}
        )
        computed = await runtime.compute(complete, active, catalogue, contents)
        saves = [_save(engine, *pair) for pair in zip(batch, computed, strict=True)]
        saved = await engine.store.save_generated(saves)
        runtime.followed.applied.update(saved.positions)
        if any(save.before is not None for save in saves):
            runtime.changed |= dict.fromkeys(saved.positions)
        rows = [(_entry(active, *pair), pair[1].derived) for pair in zip(read, computed, strict=True)]
        await runtime.compute(catalogue.put, rows)
        report("completed", start + len(batch), len(items))


def _save(engine: Engine, renewed: Renewed, made: Computed) -> GeneratedWrite:
    """Of an item that was written under another model while this one was being prepared, others may have read the
    former features."""
    item, catalogue = renewed.item, engine.memory.catalogue
    return GeneratedWrite(
        item.id,
        item.version,
        made.generated,
        engine.model_version,
        made.derived.pack(catalogue.shape),
        remarks=item.remarks,
        recoded=renewed.recoded,
        before=_former(item) if item.is_pending else None,
    )


def _former(item: StoredItem) -> bytes:
    """The features that others may have read of an item that another model has written since it was first read for this
    one: those of before are not known where nothing had come of it yet."""
    return item.former or (UNKNOWN if item.version > 1 else b"")


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


async def _derive(engine: Engine, layers: Sequence[str] = (), report: Report = lambda *_: None) -> None:
    """Compute all vectors, or some layers of them."""
    steps = vectors.derive(engine.active.dgmrec, engine.memory.catalogue, layers)
    count = len(engine.memory.catalogue)
    while (done := await engine.runtime.compute(next, steps, None)) is not None:
        report("vectors", round(done * count), count)
