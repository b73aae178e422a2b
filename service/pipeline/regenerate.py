"""Items whose users have changed: their generated parts, and a new item's collaborative part, are computed again.

The store has the queue of what is pending, each item once, with the position of the change log that it was enqueued
for; `Runtime.pending` is this worker's part of it.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Collection, Iterable
from dataclasses import replace

from models.dgmrec.serving import DGMRecServing
from service.domain import StoreUnavailableError
from service.pipeline.catalogue import Catalogue, Entry
from service.pipeline.encode import Encoded
from service.pipeline.engine import Engine
from service.pipeline.evidence import users_of
from service.pipeline.follow import catch_up
from service.pipeline.writing import Plan, compute
from service.ports import GeneratedWrite

log = logging.getLogger(__name__)

ADOPTED = 10_000  # of the items that other workers have left pending, taken over at once
QUEUE = "/parts"  # name of a lock, which no item's id can be


def depends_on_users(model: DGMRecServing, catalogue: Catalogue, item_id: str) -> bool:
    """Whether what the model makes of an item depends on its users: generated parts do, and a new item's collaborative
    part. True where the item is not in the catalogue yet."""
    entry = catalogue.entry(item_id)
    return entry is None or bool(entry.confidence) or model.trained_row(item_id) is None


def enqueue(engine: Engine, items: Iterable[str]) -> None:
    """Let items be regenerated in the background. An item that is pending already is pending once."""
    runtime = engine.runtime
    runtime.pending |= dict.fromkeys(items)
    if runtime.pending and not runtime.is_locked(QUEUE):
        runtime.background(_work_off(engine))


async def resume(engine: Engine) -> None:
    """Take up, at start, what anybody has left pending."""
    _adopt(engine, await engine.store.pending(limit=ADOPTED))


async def adopt_abandoned(engine: Engine, seen: dict[str, int]) -> dict[str, int]:
    """Take over what has been pending since the last look, `seen`: the worker that enqueued it is gone, or has too much
    to do. Answers what is pending now. What this worker could not do itself it tries again."""
    now = await engine.store.pending(limit=ADOPTED)
    _adopt(
        engine,
        [item for item, position in now.items() if seen.get(item) == position and item not in engine.runtime.pending],
    )
    return now


def _adopt(engine: Engine, items: Collection[str]) -> None:
    # In any order: several workers may do so at once, and are not to do the same items at the same time.
    enqueue(engine, random.sample(list(items), len(items)))


async def _work_off(engine: Engine) -> None:
    runtime = engine.runtime
    async with runtime.lock(QUEUE):
        while runtime.pending and not runtime.is_closing:
            item = next(iter(runtime.pending))
            del runtime.pending[item]
            try:
                queued_at = (await engine.store.pending([item])).get(item)
                if queued_at is None:  # deleted, or another worker was faster
                    continue
                if queued_at > runtime.followed.position:
                    await catch_up(engine)
                await regenerate(engine, item, queued_at)
            except StoreUnavailableError as error:
                runtime.pending[item] = None
                log.warning("items wait for their generated parts: %s", error.reason)
                return


async def regenerate(engine: Engine, item_id: str, queued_at: int) -> None:
    """Compute an item's generated parts, and a new item's collaborative part, from its users. The change log must have
    been followed to the position that the item was enqueued for, for users' histories are read from memory."""
    active, catalogue, runtime = engine.active, engine.memory.catalogue, engine.runtime
    async with runtime.lock(item_id):
        item = await engine.store.get_item(item_id)
        if item is None:
            return
        if not item.generated and active.dgmrec.trained_row(item_id) is not None:
            await engine.store.dequeue({item_id: queued_at})
            return
        plan = Plan(
            item_id, item.title, item.categories, item.metadata, item.available, Encoded(dict(item.observed)), item,
            await users_of(engine, item_id),
        )  # fmt: skip
        (computed,) = await runtime.compute(compute, active, catalogue, [plan])
        packed = computed.derived.pack()
        save = GeneratedWrite(item_id, item.version, computed.generated, active.version, packed, queued_at=queued_at)
        saved = await engine.store.save_generated([save])
        if saved.value[0]:
            renewed = replace(item, generated=computed.generated, derived=packed, model_version=active.version)
            entry = Entry.of(renewed, catalogue.names)
            await runtime.compute(catalogue.put, [(entry, computed.derived)])
        runtime.applied(saved.positions)
