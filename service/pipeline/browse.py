"""Reading items."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

from service.domain import (
    Hit,
    ItemNotFoundError,
    ItemView,
    ModalityDetail,
    Page,
    StoredItem,
    UnknownModalityError,
)
from service.pipeline import follow, views
from service.pipeline.active import Active
from service.pipeline.adopt import adopt
from service.pipeline.engine import Engine
from service.ports import Media


async def get_item(engine: Engine, item_id: str) -> ItemView:
    """One item.

    Raises:
        ItemNotFoundError: there is no such item.
    """
    return views.item(await stored(engine, item_id), engine.memory.catalogue)


async def list_items(
    engine: Engine,
    *,
    limit: int,
    cursor: str | None,
    categories: Sequence[str],
    missing: str | None,
    generated: bool | None = None,
    q: str | None,
) -> Page[ItemView]:
    """A page of items in order of id, of those in all of the categories. `missing` names a modality that is not
    observed; `generated` whether that one, or without it any, is generated.

    Raises:
        InvalidInputError: the cursor is none of ours. UnknownModalityError: `missing` is no modality of the bundle.
    """
    if missing is not None:
        require_modality(engine.active, missing)
    page = await engine.store.list_items(
        limit=limit, cursor=cursor, categories=categories, missing=missing, generated=generated, q=q
    )
    items = await current(engine, page.items)
    return Page([views.item(item, engine.memory.catalogue) for item in items], page.next_cursor)


async def get_modality(
    engine: Engine, item_id: str, modality: str, *, neighbours: int = 5, vector: bool = False, hidden: bool = True
) -> ModalityDetail:
    """One modality of one item: state, provenance, and the items whose observed feature is nearest; `hidden` ones are
    those that are not available.

    Raises:
        ItemNotFoundError: there is no such item. UnknownModalityError: the bundle has no such modality.
    """
    require_modality(engine.active, modality)
    catalogue = engine.memory.catalogue
    item = await stored(engine, item_id)
    if item_id not in catalogue:
        await follow.refresh(engine, [item_id])  # another worker has it
    observed, generated = item.observed.get(modality), item.generated.get(modality)
    key = catalogue.key(item_id)
    source = observed or generated
    near: tuple[Hit, ...] = ()
    if source is not None and key is not None:
        feature = catalogue.rows.get(f"feature.{modality}", key)
        near = views.neighbours(catalogue, modality, feature, neighbours, key, hidden=hidden)
    return ModalityDetail(
        item=item_id,
        modality=modality,
        report=views.report_of(catalogue.confidence, item, modality),
        source=observed.source if observed else None,
        text=views.text_of(observed, item.remarks.get(modality)),
        media=observed.media if observed else None,
        neighbours=near,
        vector=source.vector if vector and source is not None else None,
    )


async def get_media(engine: Engine, item_id: str, modality: str) -> Media:
    """The stored file of a modality.

    Raises:
        ItemNotFoundError: there is no such item, or it has no file in this modality.
    """
    observed = (await stored(engine, item_id)).observed.get(modality)
    media = await engine.store.get_media(observed.media) if observed and observed.media else None
    if media is None:
        raise ItemNotFoundError(f"The item {item_id!r} has no stored file for {modality!r}.")
    return media


async def stored(engine: Engine, item_id: str, *, locked: bool = False) -> StoredItem:
    """An item from the store. `locked`: the caller holds its lock.

    Raises:
        ItemNotFoundError: there is no such item.
    """
    item = await engine.store.get_item(item_id)
    if item is not None and not item.derived:
        (item,) = await current(engine, [item], locked=locked) or (None,)
    if item is None:
        raise not_found(item_id)
    return item


async def current(engine: Engine, items: Sequence[StoredItem], *, locked: bool = False) -> list[StoredItem]:
    """Items as this model has them, those of them derived that another model has just written; in order, without those
    that are deleted meanwhile."""
    foreign = [item.id for item in items if not item.derived]
    if not foreign:
        return list(items)
    async with nullcontext() if locked else engine.runtime.lock(*foreign):
        left = await engine.store.get_items(foreign)
        await adopt(engine, [item for item in left.values() if not item.derived])
        left = await engine.store.get_items(foreign)
    return [left.get(item.id, item) for item in items if item.derived or item.id in left]


def not_found(item_id: str) -> ItemNotFoundError:
    """The error that says so."""
    return ItemNotFoundError(f"There is no item {item_id!r}.")


def require_modality(active: Active, modality: str) -> None:
    """Raise UnknownModalityError unless the active bundle has this modality."""
    if modality not in active.dgmrec.names:
        known = ", ".join(active.dgmrec.names)
        raise UnknownModalityError(f"The active bundle has no modality {modality!r}; it has {known}.")
