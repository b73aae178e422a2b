"""Deriving what is stored of items anew, also of such as were written under another model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from service.domain import StoredItem
from service.pipeline import dependents, vectors
from service.pipeline.catalogue import Catalogue, Derived, Entry
from service.pipeline.complete import complete, with_users
from service.pipeline.engine import Engine
from service.pipeline.renew import Renewed, encode_anew
from service.ports import GeneratedWrite


@dataclass(frozen=True, slots=True)
class Made:
    """An item as it is derived now, with what was made anew of its features, and its row of model state."""

    item: StoredItem
    renewed: Renewed
    derived: Derived


async def derive(engine: Engine, items: Sequence[StoredItem]) -> list[Made]:
    """What the model makes of items now, from their users and from what is in memory of their neighbours."""
    active, catalogue = engine.active, engine.memory.catalogue
    renewed = await encode_anew(engine, items)
    read = [one.item for one in renewed]
    contents = await with_users(
        engine, {item.id: item.observed for item in read}, {item.id: item.title for item in read}
    )
    computed = await engine.runtime.compute(complete, active, catalogue, contents)
    return [
        Made(
            replace(
                one.item,
                generated=result.generated,
                derived=result.derived.pack(catalogue.shape),
                model_version=active.version,
            ),
            one,
            result.derived,
        )
        for one, result in zip(renewed, computed, strict=True)
    ]


async def adopt(engine: Engine, items: Sequence[StoredItem], queued: Mapping[str, int] | None = None) -> None:
    """Derive items anew, and store and index what has changed of them. Their locks must be held, and the change log be
    followed to the positions that they are `queued` for, by id, if they are."""
    catalogue, runtime = engine.memory.catalogue, engine.runtime
    seen, queued = runtime.seen(), queued or {}
    made = await derive(engine, items)
    before = {item.id: item.derived for item in items}
    changed = [one for one in made if not before[one.item.id] or one.item.derived != before[one.item.id]]
    same = {one.item.id: queued[one.item.id] for one in made if one not in changed and one.item.id in queued}
    if same:
        await engine.store.dequeue(same, seen)
    if not changed:
        return
    saves = [
        GeneratedWrite(
            one.item.id,
            one.item.version,
            one.item.generated,
            one.item.model_version,
            one.item.derived,
            queued.get(one.item.id),
            seen,
            one.item.remarks,
            one.renewed.recoded,
            None if before[one.item.id] else _former(catalogue, one.item),
        )
        for one in changed
    ]
    saved = await engine.store.save_generated(saves)
    rows = [
        (Entry.of(one.item, catalogue.names), one.derived)
        for one, was_saved in zip(changed, saved.value, strict=True)
        if was_saved
    ]
    await runtime.compute(vectors.put, engine.active.dgmrec, catalogue, rows)
    runtime.applied(saved.positions)
    if any(save.before is not None for save in saves):
        runtime.changed |= dict.fromkeys(saved.positions)


def _former(catalogue: Catalogue, item: StoredItem) -> bytes:
    """The features that an item had in memory before another model wrote it, as `FeatureChange` has them; nothing for
    an item that is new."""
    key = catalogue.key(item.id)
    return item.former if key is None else dependents.packed(catalogue, key)
