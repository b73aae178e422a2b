"""Another bundle may bring other encoders: stored features that they did not make are made anew from stored content."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from models.bundle import BundleError
from service.domain import Content, LacunaError, MediaContent, Observed, StoredItem, TextContent
from service.pipeline.active import Active
from service.pipeline.encode import Contents, Encoded, encode
from service.pipeline.engine import Engine
from service.ports import ItemWrite

log = logging.getLogger(__name__)

BATCH = 64


def require_usable(active: Active, items: Sequence[StoredItem]) -> None:
    """Check that the active bundle can use every observed feature, or make it anew.

    Raises:
        BundleError: it cannot, and why.
    """
    for item in items:
        for name, feature in item.observed.items():
            reason = _unusable(active, name, feature)
            if reason is not None:
                raise BundleError(
                    f"the bundle {active.version} does not fit the database: the item {item.id!r} {reason}; "
                    "serve the bundle that it was made with, or name another database"
                )


def _unusable(active: Active, name: str, feature: Observed) -> str | None:
    modality = active.modality(name)
    if modality is None:
        return f"has the modality {name!r}, which the bundle has not"
    if not feature.encoder:
        fits = len(feature.vector) == modality.dim
        return None if fits else f"has {name!r} as {len(feature.vector)} numbers, the bundle takes {modality.dim}"
    if modality.encoder is None or modality.encoder.kind != ("image" if feature.source == "media" else "text"):
        return f"has {name!r} as a {feature.source}, which the bundle has no encoder for"
    return None


async def encode_anew(engine: Engine, items: Sequence[StoredItem]) -> list[StoredItem]:
    """The items with every feature made by the bundle's own encoders. What had to be made anew is stored.

    Raises:
        BundleError: a stored content cannot be encoded under the present limits.
    """
    stale = [item for item in items if _foreign(engine.active, item)]
    if not stale:
        return list(items)
    log.info("encoding %d items with the encoders of bundle %s", len(stale), engine.model_version)
    renewed: dict[str, StoredItem] = {}
    for start in range(0, len(stale), BATCH):
        encoded = await _encoded(engine, stale[start : start + BATCH])
        await engine.store.write_items([ItemWrite(item, "upsert", item.version) for item in encoded])
        renewed |= {item.id: item for item in encoded}
    return [renewed.get(item.id, item) for item in items]


def _foreign(active: Active, item: StoredItem) -> list[str]:
    """Modalities whose features another encoder made."""
    return [
        name
        for name, feature in item.observed.items()
        if feature.encoder and feature.encoder != active.encoder_identity(name)
    ]


async def _encoded(engine: Engine, items: Sequence[StoredItem]) -> list[StoredItem]:
    contents = [
        {
            name: (await _content(engine, item, name), item.observed[name].source)
            for name in _foreign(engine.active, item)
        }
        for item in items
    ]
    renewed = []
    for item, its_contents, encoded in zip(items, contents, await encode(engine, contents), strict=True):
        if isinstance(encoded, LacunaError):
            raise BundleError(
                f"the item {item.id!r} cannot be encoded for the bundle {engine.model_version}: {encoded}"
            )
        renewed.append(_with(item, its_contents, encoded))
    return renewed


def _with(item: StoredItem, contents: Contents, encoded: Encoded) -> StoredItem:
    """The item with the contents that were encoded again; where the new encoder reads nothing, the modality is
    missing."""
    observed = {name: feature for name, feature in item.observed.items() if name not in contents}
    remarks = {name: remark for name, remark in item.remarks.items() if name not in contents}
    return replace(item, observed={**observed, **encoded.observed}, remarks={**remarks, **encoded.remarks})


async def _content(engine: Engine, item: StoredItem, name: str) -> Content:
    feature = item.observed[name]
    if feature.media is not None:
        media = await engine.store.get_media(feature.media)
        return MediaContent(media.data if media else b"")
    return TextContent((item.title if feature.is_title else feature.text) or "")
