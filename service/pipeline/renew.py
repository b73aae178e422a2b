"""Another bundle may bring other encoders: of stored content that others have encoded, features are made anew."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from models.bundle import BundleError
from service.domain import Content, LacunaError, MediaContent, Observed, Remark, StoredItem, TextContent
from service.pipeline.active import Active
from service.pipeline.encode import Contents, Encoded, PixelBudget, encode
from service.pipeline.engine import Engine, Limits

log = logging.getLogger(__name__)

BATCH = 64
NOTHING = np.empty(0, dtype=np.float32)
UNBOUNDED = Limits(request_pixels=1 << 62)  # of a picture as ever, but of no request


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


async def encode_anew(engine: Engine, items: Sequence[StoredItem]) -> list[Renewed]:
    """The items with every feature made by the bundle's own encoders, in order. Where these cannot read a content, or
    it says nothing, the modality is missing, with a remark why."""
    stale = {row: contents for row, item in enumerate(items) if (contents := await _contents(engine, item))}
    renewed = [Renewed(item) for item in items]
    rows = list(stale)
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        encoded = await encode(engine, [stale[row] for row in batch], PixelBudget(UNBOUNDED))
        for row, its in zip(batch, encoded, strict=True):
            renewed[row] = _renewed(items[row], stale[row], its)
    return renewed


@dataclass(frozen=True, slots=True)
class Renewed:
    """An item, and what of its features was made anew, by modality, empty where nothing came of it; None where none
    had to be."""

    item: StoredItem
    recoded: Mapping[str, Observed] | None = None


async def _contents(engine: Engine, item: StoredItem) -> Contents:
    """What the bundle's encoders have yet to read of an item: content that others have encoded, and texts of which
    another model's could read nothing."""
    contents: dict[str, tuple[Content, str]] = {}
    for name, feature in item.observed.items():
        if feature.encoder and feature.encoder != engine.active.encoder_identity(name):
            contents[name] = (await _content(engine, item, name), feature.source)
    if not item.derived:
        unread = {name: remark.text for name, remark in item.remarks.items() if name not in item.observed}
        contents |= {name: (TextContent(text), "text") for name, text in unread.items() if text is not None}
    return contents


def _renewed(item: StoredItem, contents: Contents, encoded: Encoded | LacunaError) -> Renewed:
    if isinstance(encoded, LacunaError):
        log.warning("a content of the item %r counts as missing: %s", item.id, encoded)
        encoded = Encoded({}, remarks={name: Remark(str(encoded)) for name in contents})
    observed = {name: feature for name, feature in item.observed.items() if name not in contents}
    remarks = {name: remark for name, remark in item.remarks.items() if name not in contents}
    recoded = {name: encoded.observed.get(name, Observed(NOTHING, "text")) for name in contents}
    kept = {
        name: replace(feature, text=item.observed[name].text, media=item.observed[name].media)
        if name in item.observed
        else feature
        for name, feature in encoded.observed.items()
    }
    return Renewed(
        replace(item, observed={**observed, **kept}, remarks={**remarks, **encoded.remarks}),
        recoded,
    )


async def _content(engine: Engine, item: StoredItem, name: str) -> Content:
    feature = item.observed[name]
    if feature.media is not None:
        media = await engine.store.get_media(feature.media)
        return MediaContent(media.data if media else b"")
    return TextContent((item.title if feature.is_title else feature.text) or "")
