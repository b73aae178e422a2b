"""Changing parts of an item: a JSON merge patch (RFC 7396)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import orjson

from models.rows import MAX_METADATA_BYTES
from service.domain import (
    UNSET,
    ConflictError,
    Content,
    InvalidInputError,
    ItemView,
    LacunaError,
    Observed,
    Patch,
    Remark,
    StoredItem,
    UnknownModalityError,
)
from service.pipeline import views
from service.pipeline.browse import stored
from service.pipeline.encode import TEXT, Contents, Encoded, encode, fetched, with_title
from service.pipeline.engine import Engine
from service.pipeline.regenerate import enqueue
from service.pipeline.writing import ATTEMPTS, Plan, replacing, write
from service.ports import Seen


async def patch_item(engine: Engine, item_id: str, patch: Patch) -> ItemView:
    """Apply a JSON merge patch.

    Raises:
        ItemNotFoundError: there is no such item. InvalidInputError: the new content cannot be used.
    """
    timings: dict[str, float] = {}
    contents = {
        name: None if content is None else await fetched(engine, name, content)
        for name, content in patch.modalities.items()
    }
    patch = replace(patch, modalities=contents)  # fetched before the item is locked: a host may take its time
    async with engine.runtime.lock(item_id):
        for _ in range(ATTEMPTS):
            seen = engine.runtime.seen()
            previous = await stored(engine, item_id, locked=True)
            plan, same = await _patched(engine, previous, patch, seen, timings)
            (item,) = await write(engine, [plan], timings, unchanged=same)
            if item is not None:
                enqueue(engine)
                return views.item(item, engine.memory.catalogue, timings)
    raise ConflictError(f"The item {item_id!r} keeps being changed by somebody else.")


async def _patched(
    engine: Engine, previous: StoredItem, patch: Patch, seen: Seen, timings: dict[str, float]
) -> tuple[Plan, bool]:
    """The plan of a patched item, and whether its modalities stay as they are."""
    title = previous.title if patch.title is UNSET else patch.title
    for name, content in patch.modalities.items():
        if content is None and name not in engine.active.dgmrec.names:  # a slip, as setting it is
            raise UnknownModalityError(f"The active bundle has no modality {name!r}.", f"/modalities/{name}")
    observed, contents = _patched_contents(previous, patch, title)
    with engine.runtime.step("encode", timings):
        (encoded,) = await encode(engine, [contents])
    if isinstance(encoded, LacunaError):
        raise encoded
    same = not encoded.observed and observed.keys() == previous.observed.keys()
    remarks = {**_remaining_remarks(previous, patch, contents), **encoded.remarks}
    plan = Plan(
        previous.id,
        title,
        previous.categories if patch.categories is UNSET else patch.categories,
        _patched_metadata(previous, patch),
        previous.available if patch.available is UNSET else patch.available,
        Encoded({**observed, **encoded.observed}, encoded.media, remarks),
        seen,
    )
    return await replacing(engine, plan, previous), same


def _patched_contents(
    previous: StoredItem, patch: Patch, title: str | None
) -> tuple[dict[str, Observed], dict[str, tuple[Content, str]]]:
    """What stays of the modalities, and what is to be encoded. A new title replaces the text that the old one stood in
    for; where neither title nor text is patched, the title stands in for nothing new."""
    remaining = {name: feature for name, feature in previous.observed.items() if name not in patch.modalities}
    text = remaining.get(TEXT)
    if text is not None and text.is_title and title != previous.title:
        del remaining[TEXT]
    contents = with_title(title, {name: content for name, content in patch.modalities.items() if content is not None})
    has_text = TEXT in remaining or _unread_text(previous) is not None
    if TEXT not in patch.modalities and (has_text or title == previous.title):
        contents.pop(TEXT, None)
    return remaining, contents


def _unread_text(item: StoredItem) -> str | None:
    """An item's text of which the encoder could read nothing."""
    remark = item.remarks.get(TEXT)
    return remark.text if remark else None


def _remaining_remarks(previous: StoredItem, patch: Patch, encoded: Contents) -> dict[str, Remark]:
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
