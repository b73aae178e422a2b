"""Raw content to feature vectors, checked against what the bundle declares."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from models.arrays import Array
from models.bundle import ModalityEntry
from models.encoders import ImageEncoder, ImageError, TextEncoder, decode_image, without_metadata
from service.domain import (
    TITLE_SOURCE,
    Content,
    FetchError,
    InvalidImageError,
    InvalidInputError,
    InvalidVectorError,
    LacunaError,
    MediaContent,
    Observed,
    Remark,
    TextContent,
    UnknownModalityError,
    UrlContent,
    VectorContent,
)
from service.pipeline.active import Active
from service.pipeline.engine import Engine, Limits
from service.ports import Media

TEXT = "text"
# Why what was given is no observation.
UNREAD = "The encoder knows no word of this text, so it counts as missing."
ZERO = "A feature of zeros says nothing of an item, so it counts as missing."
MEAN = "The mean of all features says nothing of an item, so it counts as missing."
Contents = Mapping[str, tuple[Content, str]]  # by modality, with what `Observed.source` will say
# Images are answered as what they were checked to be, whatever their sender called them.
_TYPES = {
    b"\xff\xd8": "image/jpeg",
    b"\x89PNG": "image/png",
    b"GIF8": "image/gif",
    b"RIFF": "image/webp",
    b"BM": "image/bmp",
}


@dataclass(frozen=True, slots=True)
class Encoded:
    """What became of one item's content: its features, the files to store, and what is to be said of it."""

    observed: dict[str, Observed]
    media: tuple[Media, ...] = ()
    remarks: Mapping[str, Remark] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Prepared:
    """By modality what goes into its encoder (text, picture) or is its feature already (array), and the remarks on
    what was given."""

    values: dict[str, Any] = field(default_factory=dict)
    remarks: dict[str, Remark] = field(default_factory=dict)


def with_title(title: str | None, modalities: Mapping[str, Content]) -> dict[str, tuple[Content, str]]:
    """Contents by modality with their sources; the title stands in for text that was left out."""
    contents = {name: (content, _source(content)) for name, content in modalities.items()}
    if TEXT not in contents and title is not None and title.strip():
        contents[TEXT] = (TextContent(title), TITLE_SOURCE)
    return contents


def _source(content: Content) -> str:
    if isinstance(content, TextContent):
        return "text"
    return "vector" if isinstance(content, VectorContent) else "media"


class PixelBudget:
    """The pixels that one request may still have decoded, whatever number of pictures they come in."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._left = limits.request_pixels

    def spend(self, pixels: int) -> None:
        """Take a picture's pixels. Raises ImageError where they are more than are left."""
        if pixels > self._left:
            raise ImageError(
                f"with this picture of {pixels:,} pixels, those of the request have more than the "
                f"{self.limits.request_pixels:,} that are accepted together"
            )
        self._left -= pixels


async def encode(
    engine: Engine, drafts: Sequence[Contents], budget: PixelBudget | None = None
) -> list[Encoded | LacunaError]:
    """Features of several items' contents, each row with its own outcome.

    `budget` is what is left to a request that has its rows encoded in several calls. Pictures are decoded and encoded
    one after the other, so that only one of them is in memory; other content goes through one call for each encoder.
    """
    budget = budget or PixelBudget(engine.limits)
    contents_of_all = [content for contents in drafts for content, _ in contents.values()]
    rows: Sequence[Contents | LacunaError] = drafts
    if any(isinstance(content, UrlContent) for content in contents_of_all):
        rows = await asyncio.gather(*(_fetched_row(engine, contents) for contents in drafts))
    if all(isinstance(content, VectorContent) for content in contents_of_all):
        return _encode_all(engine.active, rows, budget)  # which only checks vectors: another thread would cost more
    return await engine.runtime.compute(_encode_all, engine.active, rows, budget)


async def _fetched_row(engine: Engine, contents: Contents) -> Contents | LacunaError:
    try:
        return {name: (await fetched(engine, name, content), source) for name, (content, source) in contents.items()}
    except LacunaError as error:
        return error


async def fetched(engine: Engine, modality: str, content: Content) -> Content:
    """The content, with its picture where it was a URL.

    Raises:
        InvalidInputError: URLs are not fetched, or this one is of no use.
    """
    if not isinstance(content, UrlContent):
        return content
    pointer = f"/modalities/{modality}/url"
    if engine.fetcher is None:
        raise InvalidInputError("Fetching from a URL is off; send the file itself or its base64.", pointer)
    _require_kind(_declared(engine.active, modality), "image", "a picture")
    try:
        return MediaContent(await engine.fetcher.fetch(content.url))
    except FetchError as error:
        raise FetchError(str(error), pointer) from None


def _encode_all(
    active: Active, rows: Sequence[Contents | LacunaError], budget: PixelBudget
) -> list[Encoded | LacunaError]:
    prepared = [row if isinstance(row, LacunaError) else _prepare_row(active, row, budget) for row in rows]
    vectors = _vectors(active, [{} if isinstance(row, LacunaError) else row.values for row in prepared])
    return [
        row
        if isinstance(row, LacunaError)
        else _finished(active, cast("Contents", rows[place]), vectors[place], row.remarks)
        for place, row in enumerate(prepared)
    ]


def _vectors(active: Active, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Array]]:
    """Features of each row by modality: those that are given, and what the encoders make of everything else."""
    vectors = [dict(values) for values in rows]
    for name in active.dgmrec.names:
        raw = [place for place, values in enumerate(rows) if not isinstance(values.get(name), np.ndarray | None)]
        if raw:
            encoded = active.encoders[name].encode([rows[place][name] for place in raw])
            for place, vector in zip(raw, encoded, strict=True):
                vectors[place][name] = vector
    return vectors


def _declared(active: Active, modality: str) -> ModalityEntry:
    declared = active.modality(modality)
    if declared is None:
        known = ", ".join(entry.name for entry in active.manifest.modalities)
        raise UnknownModalityError(
            f"The active bundle has no modality {modality!r}; it has {known}.", f"/modalities/{modality}"
        )
    return declared


def _prepare_row(active: Active, contents: Contents, budget: PixelBudget) -> _Prepared | LacunaError:
    prepared = _Prepared()
    try:
        for name, (content, source) in contents.items():
            if source == TITLE_SOURCE and (name not in active.dgmrec.names or not active.title_as_text):
                continue  # the bundle has no text, or titles tell so little that texts are rather generated
            value = _prepare(active, _declared(active, name), content, source, budget)
            remark = unread(active, name, value, source) if isinstance(value, str) else None
            if remark is not None:
                prepared.remarks[name] = remark
            if value is not None and (remark is None or remark.detail is None):
                prepared.values[name] = value
    except LacunaError as error:
        return error
    return prepared


def _prepare(active: Active, modality: ModalityEntry, content: Content, source: str, budget: PixelBudget) -> Any:
    pointer = f"/modalities/{modality.name}" if source != TITLE_SOURCE else "/title"
    kind = modality.encoder.kind if modality.encoder else None
    if isinstance(content, VectorContent):
        return _vector(content, modality, f"{pointer}/vector")
    if isinstance(content, TextContent):
        if kind != "text" and source == TITLE_SOURCE:
            return None
        _require_kind(modality, "text", "text")
        if not content.text.strip():
            raise InvalidInputError("A text must hold something besides white space.", pointer)
        if len(content.text) > budget.limits.text_chars:
            raise InvalidInputError(f"A text has at most {budget.limits.text_chars} characters.", pointer)
        return content.text
    _require_kind(modality, "image", "a picture")
    encoder = cast("ImageEncoder", active.encoders[modality.name])
    data = cast("MediaContent", content).data
    try:
        picture = decode_image(data, max_pixels=budget.limits.image_pixels, spend=budget.spend)
    except ImageError as error:
        raise InvalidImageError(_sentence(str(error)), pointer) from None
    return encoder.encode([picture])[0]


def _require_kind(modality: ModalityEntry, given: str, what: str) -> None:
    """Raise InvalidInputError unless the modality's encoder takes this kind of content."""
    kind = modality.encoder.kind if modality.encoder else None
    if kind != given:
        detail = f"The modality {modality.name!r} takes {_wanted(kind)}, not {what}."
        raise InvalidInputError(detail, f"/modalities/{modality.name}")


def _wanted(kind: str | None) -> str:
    return {"text": "a text or a vector", "image": "a picture or a vector", None: "a vector"}[kind]


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _vector(content: VectorContent, modality: ModalityEntry, pointer: str) -> Array:
    vector = content.vector
    if vector.shape != (modality.dim,):
        raise InvalidVectorError(
            f"The modality {modality.name!r} has vectors of {modality.dim} numbers, this one has {vector.size}.",
            pointer,
        )
    # Squares of a vector must stay finite too, or similarities are not.
    if not np.isfinite(vector).all() or float(np.abs(vector).max()) > 1e6:
        raise InvalidVectorError("A vector holds finite numbers between -1e6 and 1e6 only.", pointer)
    return vector


def _finished(active: Active, contents: Contents, vectors: Mapping[str, Any], remarks: Mapping[str, Remark]) -> Encoded:
    observed: dict[str, Observed] = {}
    media: list[Media] = []
    remarks = dict(remarks)
    for name, vector in vectors.items():
        silent = silence(active, name, vector)
        if silent is not None:
            remarks[name] = silent
            continue
        content, source = contents[name]
        encoder = "" if isinstance(content, VectorContent) else active.encoder_identity(name)
        text = content.text if isinstance(content, TextContent) and source != TITLE_SOURCE else None
        sha256: str | None = None
        kind: str | None = None
        if isinstance(content, MediaContent):
            data = without_metadata(content.data)
            sha256, kind = hashlib.sha256(data).hexdigest(), media_type(data)
            media.append(Media(sha256, data, kind))
        observed[name] = Observed(np.asarray(vector, dtype=np.float32), source, encoder, text, sha256, kind)
    return Encoded(observed, tuple(media), remarks)


def unread(active: Active, modality: str, text: str, source: str) -> Remark | None:
    """What the encoder leaves unread of a text, if anything: all of it, or its end."""
    reading = cast("TextEncoder", active.encoders[modality]).reads(text)
    if not reading.known:
        return Remark(UNREAD, text=None if source == TITLE_SOURCE else text)
    return Remark(truncated=True) if reading.truncated else None


def silence(active: Active, modality: str, vector: Array) -> Remark | None:
    """Why a feature is no observation, where it is none."""
    if active.dgmrec.tells(modality, vector):
        return None
    return Remark(MEAN if vector.any() else ZERO)


def media_type(data: bytes) -> str:
    """The type that a picture's first bytes tell."""
    return next((kind for start, kind in _TYPES.items() if data.startswith(start)), "application/octet-stream")
