"""What operators ask: is it ready, what runs, how is it doing."""

from __future__ import annotations

import os
from typing import Any

from service.domain import TITLE_SOURCE, NotReadyError
from service.pipeline.engine import Engine


async def check_ready(engine: Engine) -> None:
    """Raise StoreUnavailableError unless the store answers, NotReadyError where another bundle has taken over the
    store; an engine that exists has its bundle and indexes."""
    await engine.store.ping()
    if engine.runtime.superseded:
        raise NotReadyError(f"{engine.runtime.superseded} Restart this worker with it.")


def models(engine: Engine) -> list[dict[str, Any]]:
    """The bundles that are known, the active one first."""
    manifest = engine.active.manifest
    return [
        {
            "version": manifest.version,
            "active": True,
            "created_at": manifest.created_at.isoformat(),
            "data": manifest.data.model_dump(),
            "modalities": [modality.model_dump() for modality in manifest.modalities],
            "models": {name: {"form": entry.form, "metrics": entry.metrics} for name, entry in manifest.models.items()},
        }
    ]


async def pending(engine: Engine) -> dict[str, Any]:
    """What is derived but not yet from the present state: items to regenerate, changes of features that have yet to
    reach others, for how many seconds the longest has waited, and vectors to compute in the worker that answers."""
    backlog = await engine.store.backlog()
    age = 0.0 if backlog.since is None else max(engine.runtime.clock() - backlog.since.timestamp(), 0.0)
    return {
        "items": backlog.items,
        "changes": backlog.changes,
        "oldest_seconds": round(age, 3),
        "vectors": len(engine.memory.catalogue.stale),
    }


async def stats(engine: Engine) -> dict[str, Any]:
    """Items by modality state and category, imputation error by modality, fallbacks, index sizes, how many items
    are pending regeneration, and how far the worker that answers has followed the log. `source` counts the observed
    ones that are the item's title."""
    catalogue = engine.memory.catalogue
    followed = engine.runtime.followed
    errors = await engine.store.imputation_errors()
    waiting = await pending(engine)
    sources = {name: {"source": {TITLE_SOURCE: count}} for name, count in catalogue.count_titles().items()}
    return {
        "model_version": engine.model_version,
        "synthetic": engine.active.manifest.data.synthetic,
        "items": len(catalogue),
        "available": int(catalogue.available.sum()),
        "modalities": {name: {**counts, **sources.get(name, {})} for name, counts in catalogue.count_states().items()},
        "categories": catalogue.count_categories(),
        "imputation_error": {
            name: {"pairs": count, "mean_confidence": confidence, "mean_centred_cosine": cosine}
            for name, (count, confidence, cosine) in errors.items()
        },
        "fallbacks": dict(engine.runtime.fallbacks),
        "indexes": {name: dict(index.stats()) for name, index in catalogue.indexes.items()},
        "awaiting_regeneration": waiting["items"] + waiting["changes"] + waiting["vectors"],
        "pending": waiting,
        "last_change": await engine.store.last_change(),
        "worker": {"pid": os.getpid(), "position": followed.position, "lag_seconds": round(followed.lag_s, 3)},
    }
