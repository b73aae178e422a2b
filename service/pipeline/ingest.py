"""From a request to a stored, indexed item: encode, impute, embed, commit, index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import orjson

from models.arrays import Array
from models.rows import MAX_METADATA_BYTES
from service.domain import (
    UNSET,
    ConflictError,
    Content,
    Draft,
    Generated,
    Imputation,
    InvalidInputError,
    ItemExistsError,
    ItemNotFoundError,
    ItemView,
    LacunaError,
    Observed,
    Patch,
    Remark,
    StoredItem,
    UnknownModalityError,
    Written,
)
from service.pipeline import documents, history, views
from service.pipeline.catalogue import Derived, Entry
from service.pipeline.embed import embed
from service.pipeline.encode import TEXT, TITLE_SOURCE, Contents, Encoded, PixelBudget, encode, fetched, with_title
from service.pipeline.engine import Engine
from service.pipeline.impute import Completed, Subject, Visitor
from service.pipeline.impute import impute as complete
from service.ports import GeneratedWrite, ItemWrite, Keep, Media, Stored

VISITORS = 200  # the newest users of an item that its generated parts are made from
ATTEMPTS = 3
EVERYTHING = 1_000_000_000
CHUNK = 64  # items computed at once, so that a large batch never holds the writer's thread for long


@dataclass(frozen=True, slots=True)
class Plan:
    """An item about to be computed and written: all but what the model makes of it."""

    id: str
    title: str | None
    categories: tuple[str, ...]
    metadata: Mapping[str, Any]
    available: bool
    encoded: Encoded
    previous: StoredItem | None = None
    visitors: Sequence[Visitor] = ()
    follows: int | None = None  # how far the change log was known before `previous` and `visitors` were read


Kept = Keep[ItemView]  # of a created item


@dataclass(frozen=True, slots=True)
class Made:
    """What the model made of a plan."""

    generated: Mapping[str, Generated]
    derived: Derived


# --- use cases -------------------------------------------------------------------------------------------------------


async def create_item(engine: Engine, draft: Draft, kept: Kept | None = None) -> Written:
    """Create an item. `kept` is how its answer is kept under an idempotency key.

    Raises:
        ItemExistsError: the id is taken. InvalidInputError: the content cannot be used.
    """
    (outcome,) = await create_batch(engine, [draft], kept)
    if isinstance(outcome, LacunaError):
        raise outcome
    return outcome


async def create_batch(
    engine: Engine, drafts: Sequence[Draft], kept: Kept | None = None
) -> list[Written | LacunaError]:
    """Create items, each row with the outcome it would have had alone; a bad row never takes the good ones down.
    `kept` is for a single item."""
    outcomes: list[Written | LacunaError | None] = [None] * len(drafts)
    first: dict[str, int] = {}
    taken = {draft.id for draft in drafts if draft.id in engine.catalogue}
    if taken:  # or was until a moment ago: another worker may have deleted it
        taken = await engine.store.known(taken)
    for row, draft in enumerate(drafts):
        if draft.id in taken or first.setdefault(draft.id, row) != row:
            outcomes[row] = _exists(draft.id)
    fresh = [row for row, outcome in enumerate(outcomes) if outcome is None]
    budget = PixelBudget(engine.limits)
    for start in range(0, len(fresh), CHUNK):
        rows = fresh[start : start + CHUNK]
        for row, outcome in zip(rows, await _create(engine, [drafts[row] for row in rows], budget, kept), strict=True):
            outcomes[row] = outcome
    # A row whose namesake failed before it deserves its own try.
    for row, draft in enumerate(drafts):
        if first.get(draft.id, row) != row and not isinstance(outcomes[first[draft.id]], Written):
            (outcomes[row],) = await _create(engine, [draft], budget)
            first[draft.id] = row
    return [outcome for outcome in outcomes if outcome is not None]


async def _create(
    engine: Engine, drafts: Sequence[Draft], budget: PixelBudget, kept: Kept | None = None
) -> list[Written | LacunaError]:
    timings: dict[str, float] = {}
    with engine.step("encode", timings):
        encoded = await encode(engine, [with_title(draft.title, draft.modalities) for draft in drafts], budget)
    plans = {row: _planned(drafts[row], got) for row, got in enumerate(encoded) if not isinstance(got, LacunaError)}
    outcomes: list[Written | LacunaError] = [
        got if isinstance(got, LacunaError) else _exists(drafts[row].id) for row, got in enumerate(encoded)
    ]
    async with engine.lock(*(plan.id for plan in plans.values())):
        written = await _write(engine, list(plans.values()), timings, mode_create=True, kept=kept)
    for row, item in zip(plans, written, strict=True):
        if item is not None:
            outcomes[row] = Written(views.item(engine, item, timings), created=True)
    return outcomes


async def put_item(engine: Engine, draft: Draft) -> Written:
    """Create or replace an item."""
    timings: dict[str, float] = {}
    with engine.step("encode", timings):
        (got,) = await encode(engine, [with_title(draft.title, draft.modalities)])
    if isinstance(got, LacunaError):
        raise got
    async with engine.lock(draft.id):
        for _ in range(ATTEMPTS):
            follows = engine.followed.position
            previous = await engine.store.get_item(draft.id)
            visitors = await visitors_of(engine, draft.id) if previous else ()
            plan = replace(_planned(draft, got), previous=previous, visitors=visitors, follows=follows)
            (item,) = await _write(engine, [plan], timings)
            if item is not None:
                return Written(views.item(engine, item, timings), created=previous is None)
    raise ConflictError(f"The item {draft.id!r} keeps being changed by somebody else.")


async def patch_item(engine: Engine, item_id: str, patch: Patch) -> ItemView:
    """Apply a JSON merge patch.

    Raises:
        ItemNotFoundError: there is no such item. InvalidInputError: the new content cannot be used.
    """
    timings: dict[str, float] = {}
    given = {
        name: None if content is None else await fetched(engine, name, content)
        for name, content in patch.modalities.items()
    }
    patch = replace(patch, modalities=given)  # fetched before the item is locked: a host may take its time
    async with engine.lock(item_id):
        for _ in range(ATTEMPTS):
            follows = engine.followed.position
            previous = await stored(engine, item_id)
            plan, same = await _patched(engine, previous, patch, timings)
            (item,) = await _write(engine, [replace(plan, follows=follows)], timings, unchanged=same)
            if item is not None:
                return views.item(engine, item, timings)
    raise ConflictError(f"The item {item_id!r} keeps being changed by somebody else.")


async def delete_item(engine: Engine, item_id: str) -> None:
    """Delete an item and everything that belongs to it.

    Raises:
        ItemNotFoundError: there is no such item.
    """
    async with engine.lock(item_id):
        touched = await engine.store.item_users(item_id, limit=EVERYTHING)
        with engine.step("commit"):
            done = await engine.store.delete_item(item_id)
        if not done.value:
            raise not_found(item_id)
        with engine.step("index"):
            await engine.compute(engine.catalogue.remove, item_id)
        history.forget(engine, touched)
        documents.erase(engine, item_id)
        engine.own(done.positions)


async def impute(engine: Engine, draft: Draft, *, neighbours: int = 5, hidden: bool = True) -> Imputation:
    """Generate what a draft lacks and answer it; nothing is stored. `hidden` items, which are not available, may be
    named as neighbours or not."""
    timings: dict[str, float] = {}
    with engine.step("encode", timings):
        (got,) = await encode(engine, [with_title(draft.title, draft.modalities)])
    if isinstance(got, LacunaError):
        raise got
    with engine.step("impute", timings):
        (completed,) = await engine.compute(_complete_one, engine, got.observed)
    details = {
        name: views.imputed(
            engine, completed, got.observed.get(name), got.remarks.get(name), name, neighbours, hidden=hidden
        )
        for name in engine.model.names
    }
    return Imputation(engine.model_version, details, timings)


def _complete_one(engine: Engine, observed: Mapping[str, Observed]) -> list[Completed]:
    return complete(engine, [Subject(projected(engine, observed))])


async def stored(engine: Engine, item_id: str) -> StoredItem:
    """An item from the store.

    Raises:
        ItemNotFoundError: there is no such item.
    """
    item = await engine.store.get_item(item_id)
    if item is None:
        raise not_found(item_id)
    return item


def not_found(item_id: str) -> ItemNotFoundError:
    """The error that says so."""
    return ItemNotFoundError(f"There is no item {item_id!r}.")


def _exists(item_id: str) -> ItemExistsError:
    return ItemExistsError(f"An item {item_id!r} exists already; PUT replaces it.")


# --- planning --------------------------------------------------------------------------------------------------------


def _planned(draft: Draft, encoded: Encoded) -> Plan:
    return Plan(draft.id, draft.title, draft.categories, draft.metadata, draft.available, encoded)


async def _patched(engine: Engine, previous: StoredItem, patch: Patch, timings: dict[str, float]) -> tuple[Plan, bool]:
    """The plan of a patched item, and whether its modalities stay as they are."""
    title = previous.title if patch.title is UNSET else patch.title
    for name, content in patch.modalities.items():
        if content is None and name not in engine.model.names:  # a slip, as setting it is
            raise UnknownModalityError(f"The active bundle has no modality {name!r}.", f"/modalities/{name}")
    observed, contents = _patched_contents(previous, patch, title)
    with engine.step("encode", timings):
        (got,) = await encode(engine, [contents])
    if isinstance(got, LacunaError):
        raise got
    same = not got.observed and observed.keys() == previous.observed.keys()
    plan = Plan(
        previous.id,
        title,
        previous.categories if patch.categories is UNSET else patch.categories,
        _patched_metadata(previous, patch),
        previous.available if patch.available is UNSET else patch.available,
        Encoded({**observed, **got.observed}, got.media, {**_kept_remarks(previous, patch, contents), **got.remarks}),
        previous,
        () if same else await visitors_of(engine, previous.id),
    )
    return plan, same


def _patched_contents(
    previous: StoredItem, patch: Patch, title: str | None
) -> tuple[dict[str, Observed], dict[str, tuple[Content, str]]]:
    """What stays of the modalities, and what is to be encoded. A new title replaces the text that the old one stood in
    for; where neither title nor text is patched, the title stands in for nothing new."""
    kept = {name: had for name, had in previous.observed.items() if name not in patch.modalities}
    text = kept.get(TEXT)
    if text is not None and text.source == TITLE_SOURCE and title != previous.title:
        del kept[TEXT]
    contents = with_title(title, {name: content for name, content in patch.modalities.items() if content is not None})
    has_text = TEXT in kept or _unread(previous) is not None
    if TEXT not in patch.modalities and (has_text or title == previous.title):
        contents.pop(TEXT, None)
    return kept, contents


def _unread(item: StoredItem) -> str | None:
    """An item's text of which the encoder could read nothing."""
    remark = item.remarks.get(TEXT)
    return remark.text if remark else None


def _kept_remarks(previous: StoredItem, patch: Patch, encoded: Contents) -> dict[str, Remark]:
    """Remarks on contents that a patch neither removes nor replaces."""
    changed = patch.modalities.keys() | encoded.keys()
    return {name: remark for name, remark in previous.remarks.items() if name not in changed}


def _patched_metadata(previous: StoredItem, patch: Patch) -> Mapping[str, Any]:
    if patch.metadata is UNSET:
        return previous.metadata
    metadata = merged(previous.metadata, patch.metadata)
    if len(orjson.dumps(metadata)) > MAX_METADATA_BYTES:
        raise InvalidInputError(f"metadata may take {MAX_METADATA_BYTES} bytes as JSON at most", "/metadata")
    return metadata


def merged(target: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """RFC 7396: None removes a key, objects merge, everything else replaces."""
    result = dict(target)
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, Mapping):
            below = result.get(key)
            result[key] = merged(below if isinstance(below, Mapping) else {}, value)
        else:
            result[key] = value
    return result


async def visitors_of(engine: Engine, item_id: str) -> list[Visitor]:
    """The newest users who showed interest in an item, as the model sees them without it."""
    visitors = []
    users = await engine.store.interested_users(item_id, limit=VISITORS, min_rating=engine.min_rating)
    for user in users:
        liked = (await history.history(engine, user)).liked
        if item_id not in liked:
            continue
        others = engine.catalogue.keys(other for other in liked if other != item_id)
        visitors.append(_visitor(engine, user, others, len(liked)))
    return visitors


def _visitor(engine: Engine, user: str, others: Any, degree: int) -> Visitor:
    user_id = history.profile(engine, user, others).id
    preference = engine.model.preference(user_id[None])[:, 0]
    return Visitor(preference, engine.model.user_message(user, user_id, degree), others, engine.model.user_factor(user))


# --- making and writing ----------------------------------------------------------------------------------------------


async def _write(
    engine: Engine,
    plans: Sequence[Plan],
    timings: dict[str, float],
    *,
    mode_create: bool = False,
    unchanged: bool = False,
    kept: Kept | None = None,
) -> list[StoredItem | None]:
    """Compute, commit and index; None for a row that somebody else was faster with."""
    if not plans:
        return []
    with engine.step("impute", timings):
        made = [_kept(engine, plans[0])] if unchanged else await engine.compute(make, engine, plans)
    now = datetime.fromtimestamp(engine.clock(), UTC)
    items = [_stored_item(engine, plan, one, now) for plan, one in zip(plans, made, strict=True)]
    writes = [
        ItemWrite(
            item,
            "create" if mode_create else "upsert",
            None if mode_create else (plan.previous.version if plan.previous else 0),
            plan.follows,
        )
        for plan, item in zip(plans, items, strict=True)
    ]
    # A kept answer is made before it is committed; whoever asks again meanwhile is to be told the very same.
    later = timings if kept is None else None
    with engine.step("commit", later):
        written = await engine.store.write_items(writes, _media(plans), _keep(engine, items[0], timings, kept))
    done = {
        row: replace(items[row], row=written.value.rows[items[row].id])
        for row, result in enumerate(written.value.results)
        if result in ("created", "replaced")
    }
    with engine.step("index", later):
        await engine.compute(
            engine.catalogue.put, [(entry_of(engine, item), made[row].derived) for row, item in done.items()]
        )
    engine.own(written.positions)
    engine.stale |= dict.fromkeys(written.value.outdated)
    for row in done:
        await _compare_with_generated(engine, plans[row])
    return [done.get(row) for row in range(len(plans))]


def _keep(engine: Engine, item: StoredItem, timings: Mapping[str, float], kept: Kept | None) -> Keep[Stored] | None:
    if kept is None:
        return None
    view = views.item(engine, item, timings)
    return Keep(kept.key, lambda stored: kept.answer(view) if stored.results == ["created"] else None)


def make(engine: Engine, plans: Sequence[Plan]) -> list[Made]:
    """Impute and embed."""
    subjects = [subject_of(engine, plan.id, plan.encoded.observed, plan.visitors) for plan in plans]
    completed = complete(engine, subjects)
    derived = embed(engine, [plan.id for plan in plans], subjects, completed)
    return [Made(one.generated, state) for one, state in zip(completed, derived, strict=True)]


def subject_of(
    engine: Engine, item_id: str, observed: Mapping[str, Observed], visitors: Sequence[Visitor] = ()
) -> Subject:
    """An item as imputation wants it."""
    row = engine.model.trained_row(item_id)
    tables = engine.model.tables
    taste, factor = (None, None) if row is None else (tables["item_preference"][row], tables["item_factor"][row])
    raw = {name: one.vector for name, one in observed.items()}
    return Subject(projected(engine, observed), visitors, engine.catalogue.key(item_id), taste, factor, raw)


def projected(engine: Engine, observed: Mapping[str, Observed]) -> dict[str, Array]:
    """Observed features by modality, projected `[r_m]`."""
    return {name: engine.model.project(name, one.vector[None])[0] for name, one in observed.items()}


def _kept(engine: Engine, plan: Plan) -> Made:
    """What the model made of an item whose modalities have not changed."""
    previous = plan.previous
    derived = None if previous is None else Derived.unpack(previous.derived, engine.catalogue.shape)
    if previous is None or derived is None or previous.model_version != engine.model_version:
        return make(engine, [plan])[0]
    return Made(previous.generated, derived)


def _stored_item(engine: Engine, plan: Plan, made: Made, now: datetime) -> StoredItem:
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
        generated=made.generated,
        model_version=engine.model_version,
        derived=made.derived.pack(),
        remarks=plan.encoded.remarks,
    )


def entry_of(engine: Engine, item: StoredItem) -> Entry:
    """What the catalogue keeps of a stored item."""
    states = {name: views.state_of(item, name) for name in engine.model.names}
    return Entry(
        item.row,
        item.id,
        item.title,
        item.categories,
        item.available,
        item.version,
        item.created_at.timestamp(),
        states,
        {name: one.confidence for name, one in item.generated.items()},
    )


def _media(plans: Sequence[Plan]) -> list[Media]:
    return list({file.sha256: file for plan in plans for file in plan.encoded.media}.values())


async def _compare_with_generated(engine: Engine, plan: Plan) -> None:
    """The online imputation error: how near the generated feature was to the real one that has now replaced it."""
    if plan.previous is None:
        return
    for name, generated in plan.previous.generated.items():
        real = plan.encoded.observed.get(name)
        if real is not None:
            cosine = engine.model.centred_cosine(name, generated.vector, real.vector)
            await engine.store.add_imputation_error(
                plan.id, name, generated.confidence, cosine, plan.previous.model_version
            )


# --- regeneration ----------------------------------------------------------------------------------------------------


def follows_feedback(engine: Engine, item_id: str) -> bool:
    """Whether what the model made of an item depends on its users: generated parts do, and a new item's collaborative
    part. True where the item is not known here yet."""
    entry = engine.catalogue.entry(item_id)
    return entry is None or bool(entry.confidence) or engine.model.trained_row(item_id) is None


async def regenerate(engine: Engine, item_id: str, mark: int) -> None:
    """Make an item's generated parts, and a new item's collaborative part, anew from what its users tell. The change
    log must have been followed to the item's mark, for it is users' histories in memory that tell it."""
    async with engine.lock(item_id):
        item = await engine.store.get_item(item_id)
        if item is None:
            return
        if not item.generated and engine.model.trained_row(item_id) is not None:
            await engine.store.dismiss({item_id: mark})
            return
        plan = Plan(
            item_id, item.title, item.categories, item.metadata, item.available, Encoded(dict(item.observed)), item,
            await visitors_of(engine, item_id),
        )  # fmt: skip
        (made,) = await engine.compute(make, engine, [plan])
        packed = made.derived.pack()
        save = GeneratedWrite(item_id, item.version, made.generated, engine.model_version, packed, follows=mark)
        saved = await engine.store.save_generated([save])
        if saved.value[0]:
            fresh = replace(item, generated=made.generated, derived=packed, model_version=engine.model_version)
            await engine.compute(engine.catalogue.put, [(entry_of(engine, fresh), made.derived)])
        engine.own(saved.positions)
