"""Another bundle may bring other encoders: stored features that they did not make are made anew from stored content."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from models.bundle import BundleError
from service.domain import Content, LacunaError, MediaContent, Observed, StoredItem, TextContent
from service.pipeline.encode import TITLE_SOURCE, Contents, Encoded, encode, encoder_identity
from service.pipeline.engine import Engine
from service.ports import ItemWrite

log = logging.getLogger(__name__)

BATCH = 64


def require_usable(engine: Engine, items: Sequence[StoredItem]) -> None:
    """Check that the active bundle can use every observed feature, or make it anew.

    Raises:
        BundleError: it cannot, and why.
    """
    for item in items:
        for name, one in item.observed.items():
            reason = _unusable(engine, name, one)
            if reason is not None:
                raise BundleError(
                    f"the bundle {engine.model_version} does not fit the database: the item {item.id!r} {reason}; "
                    "serve the bundle that it was made with, or name another database"
                )


def _unusable(engine: Engine, name: str, one: Observed) -> str | None:
    modality = next((entry for entry in engine.manifest.modalities if entry.name == name), None)
    if modality is None:
        return f"has the modality {name!r}, which the bundle has not"
    if not one.encoder:
        fits = len(one.vector) == modality.dim
        return None if fits else f"has {name!r} as {len(one.vector)} numbers, the bundle takes {modality.dim}"
    if modality.encoder is None or modality.encoder.kind != ("image" if one.source == "media" else "text"):
        return f"has {name!r} as a {one.source}, which the bundle has no encoder for"
    return None


async def encode_anew(engine: Engine, items: Sequence[StoredItem]) -> list[StoredItem]:
    """The items with every feature made by the bundle's own encoders. What had to be made anew is stored.

    Raises:
        BundleError: a stored content cannot be encoded under the present limits.
    """
    stale = [item for item in items if _foreign(engine, item)]
    if not stale:
        return list(items)
    log.info("encoding %d items with the encoders of bundle %s", len(stale), engine.model_version)
    renewed: dict[str, StoredItem] = {}
    for start in range(0, len(stale), BATCH):
        fresh = await _encoded(engine, stale[start : start + BATCH])
        await engine.store.write_items([ItemWrite(item, "upsert", item.version) for item in fresh])
        renewed |= {item.id: item for item in fresh}
    return [renewed.get(item.id, item) for item in items]


def _foreign(engine: Engine, item: StoredItem) -> list[str]:
    """Modalities whose features another encoder made."""
    return [
        name for name, one in item.observed.items() if one.encoder and one.encoder != encoder_identity(engine, name)
    ]


async def _encoded(engine: Engine, items: Sequence[StoredItem]) -> list[StoredItem]:
    contents = [
        {name: (await _content(engine, item, name), item.observed[name].source) for name in _foreign(engine, item)}
        for item in items
    ]
    fresh = []
    for item, contents_of, got in zip(items, contents, await encode(engine, contents), strict=True):
        if isinstance(got, LacunaError):
            raise BundleError(f"the item {item.id!r} cannot be encoded for the bundle {engine.model_version}: {got}")
        fresh.append(_with(item, contents_of, got))
    return fresh


def _with(item: StoredItem, encoded: Contents, got: Encoded) -> StoredItem:
    """The item with what has been made anew of it; of which the new encoder can say nothing, that is missing."""
    observed = {name: one for name, one in item.observed.items() if name not in encoded}
    remarks = {name: remark for name, remark in item.remarks.items() if name not in encoded}
    return replace(item, observed={**observed, **got.observed}, remarks={**remarks, **got.remarks})


async def _content(engine: Engine, item: StoredItem, name: str) -> Content:
    one = item.observed[name]
    if one.media is not None:
        media = await engine.store.get_media(one.media)
        return MediaContent(media.data if media else b"")
    return TextContent((item.title if one.source == TITLE_SOURCE else one.text) or "")
