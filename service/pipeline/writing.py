"""How an item is written, whatever asks for it: compute what the model makes of it, commit it, index it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from service.domain import Draft, ItemView, Observed, StoredItem
from service.pipeline import dependents, recalibrate, vectors, views
from service.pipeline.active import Active
from service.pipeline.catalogue import Catalogue, Derived, Entry
from service.pipeline.complete import Computed, Content, complete, reads_users, with_users, words_of
from service.pipeline.encode import Encoded
from service.pipeline.engine import Engine
from service.ports import ImputationPair, ItemWrite, Keep, Media, Seen, Stored

ATTEMPTS = 3  # to write an item that somebody else keeps changing


@dataclass(frozen=True, slots=True)
class Plan:
    """An item about to be computed and written: all but what the model makes of it. `seen` is what of the change log
    had been followed before the item, and what its users say of it (`content`), were read."""

    id: str
    title: str | None
    categories: tuple[str, ...]
    metadata: Mapping[str, Any]
    available: bool
    encoded: Encoded
    seen: Seen
    previous: StoredItem | None = None
    content: Content = field(default_factory=lambda: Content("", {}))


def plan_of(engine: Engine, draft: Draft, encoded: Encoded) -> Plan:
    """The plan of a new item."""
    return Plan(
        draft.id, draft.title, draft.categories, draft.metadata, draft.available, encoded, engine.runtime.seen(),
        content=Content(draft.id, encoded.observed, title=draft.title),
    )  # fmt: skip


async def replacing(engine: Engine, plan: Plan, previous: StoredItem | None) -> Plan:
    """The plan of an item that takes the place of a stored one."""
    if previous is None:
        return plan
    (content,) = await with_users(engine, {plan.id: plan.encoded.observed}, {plan.id: plan.title})
    return replace(plan, previous=previous, content=content)


async def write(
    engine: Engine,
    plans: Sequence[Plan],
    timings: dict[str, float],
    *,
    create: bool = False,
    unchanged: bool = False,
    keep: Keep[ItemView] | None = None,
) -> list[StoredItem | None]:
    """Compute, commit and index; None for a row that somebody else was faster with.

    Args:
        create: the ids must be free. unchanged: the modalities of the one item are as they were.
        keep: how the answer of a single created item is kept under an idempotency key.
    """
    if not plans:
        return []
    active, catalogue, runtime = engine.active, engine.memory.catalogue, engine.runtime
    with runtime.step("impute", timings):
        computed = (
            [_unchanged(active, catalogue, plans[0])]
            if unchanged
            else await runtime.compute(complete, active, catalogue, [plan.content for plan in plans])
        )
    now = datetime.fromtimestamp(runtime.clock(), UTC)
    items = [
        _stored_item(plan, result, result.derived.pack(catalogue.shape), active.version, now)
        for plan, result in zip(plans, computed, strict=True)
    ]
    writes = [
        replace(_item_write(active, plan, item, create=create), pairs=_pairs(engine, plan))
        for plan, item in zip(plans, items, strict=True)
    ]
    # A kept answer is made before it is committed; who repeats the request meanwhile is answered the very same.
    later = timings if keep is None else None
    with runtime.step("commit", later):
        committed = await engine.store.write_items(writes, _media(plans), _keep(catalogue, items[0], timings, keep))
    written = {
        row: replace(items[row], row=committed.value.rows[items[row].id])
        for row, result in enumerate(committed.value.results)
        if result in ("created", "replaced")
    }
    with runtime.step("index", later):
        rows = [(Entry.of(item, catalogue.names), computed[row].derived) for row, item in written.items()]
        await runtime.compute(vectors.put, active.dgmrec, catalogue, rows)
    runtime.applied(committed.positions)
    runtime.pending |= dict.fromkeys(committed.value.outdated)
    runtime.changed |= dict.fromkeys(committed.positions)
    recalibrate.review_soon(engine, [writes[row] for row in written])
    return [written.get(row) for row in range(len(plans))]


def _item_write(active: Active, plan: Plan, item: StoredItem, *, create: bool) -> ItemWrite:
    model, observed, previous = active.dgmrec, item.observed, plan.previous
    former: Mapping[str, Observed] = previous.observed if previous else {}
    before = dependents.pack(model, former) if _differ(former, observed) else None
    seen = plan.seen if previous is not None or reads_users(model, item.id, observed) else None
    if create:
        return ItemWrite(item, "create", None, seen, before)
    return ItemWrite(item, "upsert", previous.version if previous else 0, seen, before)


def _differ(former: Mapping[str, Observed], present: Mapping[str, Observed]) -> bool:
    return former.keys() != present.keys() or any(
        not np.array_equal(former[name].vector, feature.vector) for name, feature in present.items()
    )


def _keep(
    catalogue: Catalogue, item: StoredItem, timings: Mapping[str, float], keep: Keep[ItemView] | None
) -> Keep[Stored] | None:
    if keep is None:
        return None
    view = views.item(item, catalogue, timings)
    return Keep(keep.key, lambda stored: keep.answer(view) if stored.results == ["created"] else None)


def _unchanged(active: Active, catalogue: Catalogue, plan: Plan) -> Computed:
    """What the model makes of an item whose modalities have not changed."""
    previous = plan.previous
    derived = None if previous is None else Derived.unpack(previous.derived, catalogue.shape)
    if previous is None or derived is None:
        return complete(active, catalogue, [plan.content])[0]
    return Computed(previous.generated, replace(derived, words=words_of(active.dgmrec, plan.content)))  # of its title


def _stored_item(plan: Plan, computed: Computed, derived: bytes, model_version: str, now: datetime) -> StoredItem:
    previous = plan.previous
    return StoredItem(
        id=plan.id,
        title=plan.title,
        categories=plan.categories,
        metadata=plan.metadata,
        available=plan.available,
        version=previous.version + 1 if previous else 1,
        created_at=previous.created_at if previous else now,
        updated_at=now,
        observed=plan.encoded.observed,
        generated=computed.generated,
        model_version=model_version,
        derived=derived,
        remarks=plan.encoded.remarks,
    )


def _media(plans: Sequence[Plan]) -> list[Media]:
    return list({file.sha256: file for plan in plans for file in plan.encoded.media}.values())


def _pairs(engine: Engine, plan: Plan) -> list[ImputationPair]:
    """How near generated features were to the real ones that replace them now."""
    active, previous = engine.active, plan.previous
    if previous is None:
        return []
    bundle = active.identity if previous.model_version == active.version else None
    confidence = engine.memory.catalogue.confidence
    return [
        ImputationPair(
            name,
            generated.confidence,
            confidence.serve(name, generated.confidence),
            active.dgmrec.centred_cosine(name, generated.vector, real.vector),
            previous.model_version,
            bundle,
        )
        for name, generated in previous.generated.items()
        if (real := plan.encoded.observed.get(name)) is not None
    ]
