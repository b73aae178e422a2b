"""What operators ask: is it ready, what runs, how is it doing."""

from __future__ import annotations

import os
from typing import Any

from service.domain import TITLE_SOURCE, NotReadyError
from service.pipeline import recalibrate
from service.pipeline.engine import Engine
from service.ports import Backlog


async def check_ready(engine: Engine) -> None:
    """Raise StoreUnavailableError unless the store answers, NotReadyError where another bundle has taken over the
    store; an engine that exists has its bundle and indexes."""
    await engine.store.ping()
    if engine.runtime.superseded:
        raise NotReadyError(f"{engine.runtime.superseded} Restart this worker with it.")


async def look(engine: Engine) -> Backlog:
    """What is pending, by which `Runtime.progress` knows how far what is derived follows the change log."""
    progress, position = engine.runtime.progress, engine.runtime.followed.position
    backlog = await engine.store.backlog()
    for _ in range(2):  # what has been waited for, and then all up to now: often nothing waits
        progress.begin(position)
        progress.see(backlog)
        if not await settle(engine):
            break
    return backlog


async def settle(engine: Engine) -> bool:
    """Whether the position that `Runtime.progress` has waited for has taken effect in this worker's memory by now."""
    runtime, stale = engine.runtime, engine.memory.catalogue.stale
    needed = runtime.progress.needed
    if needed is None or not runtime.followed.has(needed) or len(stale):
        return False
    if await runtime.compute(len, stale):  # on the writer's thread, so that none is being computed meanwhile
        return False
    runtime.progress.finish(needed)
    return True


async def pending(engine: Engine) -> dict[str, Any]:
    """What is derived but not yet from the present state: items to regenerate, changes of features that have yet to
    reach others, for how many seconds the longest has waited, vectors to compute in the worker that answers, and up to
    which position of the change log everything has been computed there."""
    backlog = await look(engine)
    age = 0.0 if backlog.since is None else max(engine.runtime.clock() - backlog.since.timestamp(), 0.0)
    return {
        "items": backlog.items,
        "changes": backlog.changes,
        "oldest_seconds": round(age, 3),
        "vectors": len(engine.memory.catalogue.stale),
        "through": engine.runtime.progress.through,
    }


async def stats(engine: Engine) -> dict[str, Any]:
    """Items by modality state and category (`source` counts the observed ones that are the item's title), imputation
    error by modality, how many generated features are left out, fallbacks, index sizes, how many items are pending
    regeneration, and how far the worker that answers has followed the log."""
    catalogue = engine.memory.catalogue
    followed = engine.runtime.followed
    errors = await engine.store.imputation_errors()
    calibrations = await engine.store.calibrations(engine.active.identity)
    waiting = await pending(engine)
    sources = {name: {"source": {TITLE_SOURCE: count}} for name, count in catalogue.count_titles().items()}
    return {
        "model_version": engine.model_version,
        "synthetic": engine.active.manifest.data.synthetic,
        "items": len(catalogue),
        "available": int(catalogue.available.sum()),
        "modalities": {name: {**counts, **sources.get(name, {})} for name, counts in catalogue.count_states().items()},
        "categories": catalogue.count_categories(),
        "imputation_error": recalibrate.describe(errors, calibrations, engine.calibrating.warn_at),
        "min_confidence": dict(engine.calibrating.least),
        "unused": catalogue.count_unused(),
        "fallbacks": dict(engine.runtime.fallbacks),
        "indexes": {name: dict(index.stats()) for name, index in catalogue.indexes.items()},
        "awaiting_regeneration": waiting["items"] + waiting["changes"] + waiting["vectors"],
        "pending": waiting,
        "last_change": await engine.store.last_change(),
        "worker": {"pid": os.getpid(), "position": followed.position, "lag_seconds": round(followed.lag_s, 3)},
    }
