"""From a request to a stored, indexed item: create, replace, delete; and what would be generated of an item."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from service.domain import (
    ConflictError,
    Draft,
    Imputation,
    ItemExistsError,
    ItemView,
    LacunaError,
    Observed,
    Written,
)
from service.pipeline import browse, dependents, views
from service.pipeline import impute as imputation
from service.pipeline.browse import current, not_found
from service.pipeline.encode import PixelBudget, encode, with_title
from service.pipeline.engine import Engine
from service.pipeline.evidence import projected
from service.pipeline.impute import Completed, ImputationInput
from service.pipeline.regenerate import enqueue, look_up
from service.pipeline.writing import ATTEMPTS, plan_of, replacing, write
from service.ports import Keep

ALL_USERS = 1_000_000_000
CHUNK = 64  # items computed at once, so that a large batch never holds the writer's thread for long

Outcome = Written | LacunaError


async def create_item(engine: Engine, draft: Draft, keep: Keep[ItemView] | None = None) -> Written:
    """Create an item. `keep` is how its answer is kept under an idempotency key.

    Raises:
        ItemExistsError: the id is taken. InvalidInputError: the content cannot be used.
    """
    (outcome,) = await create_batch(engine, [draft], keep)
    if isinstance(outcome, LacunaError):
        raise outcome
    return outcome


async def create_batch(engine: Engine, drafts: Sequence[Draft], keep: Keep[ItemView] | None = None) -> list[Outcome]:
    """Create items, each row with the outcome it would have had alone; a bad row never takes the good ones down.
    `keep` is for a single item."""
    outcomes: list[Outcome | None] = [None] * len(drafts)
    first: dict[str, int] = {}
    taken = {draft.id for draft in drafts if draft.id in engine.memory.catalogue}
    if taken:  # or was until a moment ago: another worker may have deleted it
        taken = await engine.store.existing(taken)
    for row, draft in enumerate(drafts):
        if draft.id in taken or first.setdefault(draft.id, row) != row:
            outcomes[row] = _exists(draft.id)
    new = [row for row, outcome in enumerate(outcomes) if outcome is None]
    budget = PixelBudget(engine.limits)
    for start in range(0, len(new), CHUNK):
        rows = new[start : start + CHUNK]
        for row, outcome in zip(rows, await _create(engine, [drafts[row] for row in rows], budget, keep), strict=True):
            outcomes[row] = outcome
    # A row whose namesake failed before it deserves its own try.
    for row, draft in enumerate(drafts):
        if first.get(draft.id, row) != row and not isinstance(outcomes[first[draft.id]], Written):
            (outcomes[row],) = await _create(engine, [draft], budget)
            first[draft.id] = row
    return [outcome for outcome in outcomes if outcome is not None]


async def _create(
    engine: Engine, drafts: Sequence[Draft], budget: PixelBudget, keep: Keep[ItemView] | None = None
) -> list[Outcome]:
    timings: dict[str, float] = {}
    with engine.runtime.step("encode", timings):
        encoded = await encode(engine, [with_title(draft.title, draft.modalities) for draft in drafts], budget)
    plans = {
        row: plan_of(engine, drafts[row], result)
        for row, result in enumerate(encoded)
        if not isinstance(result, LacunaError)
    }
    outcomes: list[Outcome] = [
        result if isinstance(result, LacunaError) else _exists(drafts[row].id) for row, result in enumerate(encoded)
    ]
    async with engine.runtime.lock(*(plan.id for plan in plans.values())):
        written = await write(engine, list(plans.values()), timings, create=True, keep=keep)
    enqueue(engine)
    for row, item in zip(plans, written, strict=True):
        if item is not None:
            outcomes[row] = Written(views.item(item, engine.memory.catalogue, timings), created=True)
    return outcomes


async def put_item(engine: Engine, draft: Draft) -> Written:
    """Create or replace an item."""
    timings: dict[str, float] = {}
    with engine.runtime.step("encode", timings):
        (encoded,) = await encode(engine, [with_title(draft.title, draft.modalities)])
    if isinstance(encoded, LacunaError):
        raise encoded
    async with engine.runtime.lock(draft.id):
        for _ in range(ATTEMPTS):
            plan = plan_of(engine, draft, encoded)
            found = await engine.store.get_items([draft.id])
            previous = next(iter(await current(engine, list(found.values()), locked=True)), None)
            plan = await replacing(engine, plan, previous)
            (item,) = await write(engine, [plan], timings)
            if item is not None:
                enqueue(engine)
                return Written(views.item(item, engine.memory.catalogue, timings), created=previous is None)
    raise ConflictError(f"The item {draft.id!r} keeps being changed by somebody else.")


async def delete_item(engine: Engine, item_id: str) -> None:
    """Delete an item and everything that belongs to it.

    Raises:
        ItemNotFoundError: there is no such item.
    """
    runtime, memory = engine.runtime, engine.memory
    async with runtime.lock(item_id):
        users = await engine.store.item_users(item_id, limit=ALL_USERS)
        stored = await browse.stored(engine, item_id, locked=True)
        with runtime.step("commit"):
            deleted = await engine.store.delete_item(item_id, dependents.pack(engine.active.dgmrec, stored.observed))
        if not deleted.value:
            raise not_found(item_id)
        with runtime.step("index"):
            await runtime.compute(memory.catalogue.remove, item_id)
        memory.forget_users(users)
        memory.erase_item(item_id)
        runtime.applied(deleted.positions)
        runtime.changed |= dict.fromkeys(deleted.positions)
    look_up(engine)


async def impute(engine: Engine, draft: Draft, *, neighbours: int = 5, hidden: bool = True) -> Imputation:
    """Generate what a draft lacks and answer it; nothing is stored. `hidden` items, which are not available, may be
    named as neighbours or not."""
    timings: dict[str, float] = {}
    with engine.runtime.step("encode", timings):
        (encoded,) = await encode(engine, [with_title(draft.title, draft.modalities)])
    if isinstance(encoded, LacunaError):
        raise encoded
    with engine.runtime.step("impute", timings):
        (completed,) = await engine.runtime.compute(_completed, engine, encoded.observed)
    details = {
        name: views.imputed(
            engine.memory.catalogue,
            completed,
            encoded.observed.get(name),
            encoded.remarks.get(name),
            name,
            neighbours,
            hidden=hidden,
        )
        for name in engine.active.dgmrec.names
    }
    return Imputation(engine.model_version, details, timings)


def _completed(engine: Engine, observed: Mapping[str, Observed]) -> list[Completed]:
    model = engine.active.dgmrec
    return imputation.impute(model, engine.memory.catalogue, [ImputationInput(projected(model, observed))])


def _exists(item_id: str) -> ItemExistsError:
    return ItemExistsError(f"An item {item_id!r} exists already; PUT replaces it.")
