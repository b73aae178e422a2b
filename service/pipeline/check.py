"""Whether what is derived is what it would be, were it derived from nothing; and deriving all of it anew.

Every layer is computed again from the layers before it as they are: where each follows from those before, all of it is
what a derivation from nothing gives. Items that are pending, or are being written meanwhile, are no differences.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from models.arrays import Array
from service.domain import StoredItem
from service.pipeline import follow, operate, regenerate, vectors
from service.pipeline.active import Active
from service.pipeline.catalogue import FINAL, Catalogue, Derived
from service.pipeline.complete import Computed, Content, complete, with_users
from service.pipeline.engine import Engine

log = logging.getLogger(__name__)

CHUNK = 64
SWEPT = 16  # items that a sweep looks at at once
TOLERANCE = 1e-4  # largest difference, in shares of the largest number of a field
NAMED = 100  # differing items that an answer names
ATTEMPTS, PAUSE_S = 3, 0.5  # at an item that differs, for it may just have been written


@dataclass(frozen=True, slots=True)
class Difference:
    """What of an item is not as it would be derived: names of fields, and the largest difference among them in shares
    of the field's largest number (1 where something is missing)."""

    id: str
    fields: tuple[str, ...]
    largest: float


@dataclass
class Report:
    """What a check has found: items looked at of so many, what was pending after it, how many differ, and the first of
    these."""

    checked: int
    of: int
    differing: int
    pending: Mapping[str, Any]
    differences: list[Difference] = field(default_factory=list)


async def check(engine: Engine, sample: int | None = None) -> Report:
    """Compare what this worker holds, and what is stored, of `sample` items drawn at random, or all, with what they are
    derived to now."""
    await follow.catch_up(engine)
    ids = [entry.id for entry in list(engine.memory.catalogue.entries.values())]
    chosen = ids if sample is None or sample >= len(ids) else random.sample(ids, sample)
    differences: list[Difference] = []
    for start in range(0, len(chosen), CHUNK):
        differences += await _differences(engine, chosen[start : start + CHUNK])
    if len(ids) != (stored := await engine.store.count_items()) and sample is None:
        differences += await _uncatalogued(engine, set(ids))
        stored = await engine.store.count_items()
    return Report(
        len(chosen), max(len(ids), stored), len(differences), await operate.pending(engine), differences[:NAMED]
    )


async def rebuild(engine: Engine) -> int:
    """Derive everything anew, in every worker, while requests are answered; how many items will be. `operate.pending`
    tells when it is done."""
    count = await engine.store.enqueue_all()
    await follow.catch_up(engine)
    regenerate.look_up(engine)
    return count


async def sweep(engine: Engine, after: int) -> int:
    """Check the next few items, by key, and have those that differ derived anew; the last key, or -1 after the last
    item. A safety net: nothing is known to make an item differ."""
    catalogue = engine.memory.catalogue
    keys = sorted(key for key in list(catalogue.entries) if key > after)[:SWEPT]
    differing = await _differences(engine, catalogue.ids(keys))
    if differing:
        ids = [difference.id for difference in differing]
        log.warning("%d items were not as they are derived and are derived anew: %s", len(ids), ", ".join(ids))
        await engine.store.finish_changes((), ids)
        await engine.runtime.compute(vectors.distrust, engine.active.dgmrec, catalogue, catalogue.keys(ids).tolist())
        regenerate.enqueue(engine, ids)
    return keys[-1] if len(keys) == SWEPT else -1


async def _differences(engine: Engine, ids: Sequence[str]) -> list[Difference]:
    """Those of some items that differ, each time they are looked at."""
    differing: list[Difference] = []
    for attempt in range(ATTEMPTS):
        if attempt:
            await asyncio.sleep(PAUSE_S * attempt)
        await follow.catch_up(engine)
        await regenerate.renew_all(engine)
        async with engine.runtime.lock(*ids):
            differing = await _compared(engine, ids)
        ids = [difference.id for difference in differing]
        if not ids:
            break
    return differing


async def _compared(engine: Engine, ids: Collection[str]) -> list[Difference]:
    catalogue, runtime = engine.memory.catalogue, engine.runtime
    stored = await engine.store.get_items(list(ids))
    gone = [Difference(item_id, ("item",), 1.0) for item_id in ids if item_id not in stored and item_id in catalogue]
    items = [item for item in stored.values() if item.derived and not item.is_pending]
    contents = await with_users(
        engine, {item.id: item.observed for item in items}, {item.id: item.title for item in items}
    )
    counts = await engine.store.item_counts([item.id for item in items], min_rating=engine.active.min_rating)
    compared = await runtime.compute(_compare, engine.active, catalogue, items, contents, counts)
    return [*gone, *compared]


def _compare(
    active: Active,
    catalogue: Catalogue,
    items: Sequence[StoredItem],
    contents: Sequence[Content],
    counts: Mapping[str, int],
) -> list[Difference]:
    computed = complete(active, catalogue, contents)
    differences = []
    layers = _layers(active, catalogue, [item.id for item in items])
    for item, anew in zip(items, computed, strict=True):
        fields = _stored_fields(catalogue, item, anew, counts.get(item.id, 0)) | layers.get(item.id, {})
        wrong = {name: size for name, size in fields.items() if not size <= TOLERANCE}
        if wrong:
            differences.append(Difference(item.id, tuple(wrong), round(max(wrong.values()), 6)))
    return differences


def _stored_fields(catalogue: Catalogue, item: StoredItem, anew: Computed, count: int) -> dict[str, float]:
    """The size of the difference in each field that is stored, in SQL and in memory."""
    entry, stored = catalogue.entry(item.id), Derived.unpack(item.derived, catalogue.shape)
    if entry is None or stored is None:
        return {"item": 1.0}
    sizes = {
        "version": float(entry.version != item.version),
        "popularity": float(catalogue.popularity[entry.key] != count),
        "final.index": float(entry.key not in catalogue.indexes[FINAL]),
        "confidence": _differing_confidence(catalogue, entry.key, item),
    }
    of_store = stored.fields()
    for name, value in anew.derived.fields().items():
        held = catalogue.rows.get(name, entry.key)
        sizes[name] = max(_difference(np.asarray(of_store[name]), value), _difference(held, value))
    for name in item.generated.keys() | anew.generated.keys():
        old, new = item.generated.get(name), anew.generated.get(name)
        sizes[f"generated.{name}"] = 1.0 if old is None or new is None else _difference(old.vector, new.vector)
    return sizes


def _differing_confidence(catalogue: Catalogue, key: int, item: StoredItem) -> float:
    """1 where the confidence in a generated feature, or whether that is used, is not what is stored says."""
    for column, name in enumerate(catalogue.names):
        generated = item.generated.get(name)
        raw = np.asarray(np.nan if generated is None else generated.confidence, dtype=np.float64)
        held = catalogue.raw_confidence[key, column]
        used = bool(catalogue.confidence.used(name, raw))
        if not np.isclose(held, raw, atol=1e-6, equal_nan=True) or catalogue.used[key, column] != used:
            return 1.0
    return 0.0


def _layers(active: Active, catalogue: Catalogue, ids: Sequence[str]) -> dict[str, dict[str, float]]:
    """The size of the difference in each field of the vectors in memory, by item."""
    keys = catalogue.keys(ids)
    sizes: dict[str, dict[str, float]] = {catalogue.entries[key].id: {} for key in keys.tolist()}
    for layer in vectors.layers(active.dgmrec):
        chosen = keys[catalogue.trained[keys] < 0] if layer == vectors.KERNEL else keys
        if not len(chosen):
            continue
        for name, values in vectors.compute(layer, active.dgmrec, catalogue, chosen).items():
            for key, held, value in zip(chosen.tolist(), catalogue.read_layer(chosen, name), values, strict=True):
                sizes[catalogue.entries[key].id][name] = _difference(held, value)
    return sizes


def _difference(held: Array, value: Any) -> float:
    """The largest difference, in shares of the largest number; infinite numbers must be the same."""
    held, value = np.asarray(held, dtype=np.float64), np.asarray(value, dtype=np.float64)
    finite = np.isfinite(value)
    if (held[~finite] != value[~finite]).any() or not np.isfinite(held[finite]).all():
        return 1.0
    if not finite.any():
        return 0.0
    scale = max(float(np.abs(value[finite]).max()), 1e-6)
    return float(np.abs(held[finite] - value[finite]).max()) / scale


async def _uncatalogued(engine: Engine, known: Collection[str]) -> list[Difference]:
    """Items that are stored and not in this worker's memory."""
    await follow.catch_up(engine)
    catalogue = engine.memory.catalogue
    return [
        Difference(item.id, ("item",), 1.0)
        async for items in engine.store.iter_items()
        for item in items
        if item.id not in known and item.id not in catalogue
    ]
