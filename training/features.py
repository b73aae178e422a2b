"""Features of a dataset: every observed cell as a vector, whatever it came as.

Texts and pictures go through their encoders, ready vectors stay as they are. Encoding is the slow part, so what fixed
encoders made is kept on disk, for all cells; a mask only chooses among them afterwards.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from models.arrays import Array, Mask
from models.bundle import EncoderRef
from models.encoders import CATALOGUE, Encoder, ImageEncoder, ImageError, TextEncoder, decode_image
from models.files import replacing
from models.modality import ModalBatch
from training.catalogue_encoder import Picture
from training.datasets.base import Content, Dataset

log = logging.getLogger(__name__)

MAX_PIXELS = 20_000_000
Progress = Callable[[str, int, int], None]
Kind = Literal["text", "image"]

_CHUNK = 64
_NAMED = 10  # of what cannot be used, listed by id in a warning
_READING = 2  # to be raised when what is read of a content changes, so that kept features are made anew
_UNUSABLE: Mapping[type, str] = {
    bytes: "pictures cannot be read",
    str: "texts hold no word that the encoder knows",
    np.ndarray: "vectors are zero",
}


class FeatureError(ValueError):
    """Content that cannot be made into features; the message is one sentence."""


@dataclass(frozen=True, slots=True)
class _Cells:
    """One modality: vectors `[n, dim]` and which rows are real `[n]`; the others are zeros."""

    vectors: Array
    valid: Mask


def encode_dataset(
    dataset: Dataset,
    observed: Mask,
    *,
    text_encoder: TextEncoder | None = None,
    image_encoder: ImageEncoder | None = None,
    progress: Progress | None = None,
    cache_dir: Path | None = None,
) -> tuple[ModalBatch, dict[str, EncoderRef | None]]:
    """The features of all items, and by modality the encoder that made them (None: they came as vectors).

    Args:
        observed: bool `[n_items, M]`, columns in the order of `dataset.modalities`; the other cells come out as
            zeros that are marked unobserved, and so do cells without content and those that say nothing: broken
            pictures, texts of which the encoder reads nothing, and vectors of zeros, as which many publish what is
            missing.
        progress: called with modality, cells encoded so far and in all.
        cache_dir: where features of fixed encoders are kept between runs.

    Raises:
        FeatureError: content without an encoder for it, or vectors that do not fit it.
        ValueError: `observed` has another shape than the dataset.
    """
    shape = (len(dataset.items), len(dataset.modalities))
    if observed.shape != shape:
        raise ValueError(f"the observed mask has shape {observed.shape}, the dataset {shape}")
    features, columns, encoders = {}, [], {}
    for column, name in enumerate(dataset.modalities):
        contents = dataset.content(name)
        kind = _kind(name, contents)
        encoder = _encoder_for(name, kind, text_encoder, image_encoder)
        cells = _encoded(dataset, name, contents, encoder, progress, cache_dir)
        real = observed[:, column] & cells.valid
        features[name] = torch.from_numpy(np.where(real[:, None], cells.vectors, np.float32(0)))
        columns.append(torch.from_numpy(real))
        encoders[name] = None if kind is None or encoder is None else _reference(kind, encoder)
    return ModalBatch(features, torch.stack(columns, dim=1)), encoders


def catalogue_pictures(
    dataset: Dataset,
    observed: Mask,
    text_encoder: TextEncoder,
    *,
    progress: Progress | None = None,
    cache_dir: Path | None = None,
) -> list[Picture]:
    """What the catalogue's own image encoder learns from: the observed pictures, with their items' observed texts.

    Args: as for `encode_dataset`. Broken pictures are left out.
    """
    texts: list[Array | None] = [None] * len(dataset.items)
    pictures: list[tuple[int, bytes]] = []
    for column, name in enumerate(dataset.modalities):
        contents = dataset.content(name)
        kind = _kind(name, contents)
        rows = np.flatnonzero(observed[:, column]).tolist()
        if kind == "image":
            pictures += [(row, data) for row in rows if isinstance(data := contents[row], bytes)]
        elif kind == "text":
            cells = _encoded(dataset, name, contents, text_encoder, progress, cache_dir)
            for row in rows:
                if cells.valid[row] and texts[row] is None:
                    texts[row] = cells.vectors[row]
    return [Picture(image, texts[row]) for row, data in pictures if (image := _picture(data, dataset, row)) is not None]


def _kind(name: str, contents: Sequence[Content | None]) -> Kind | None:
    """What has to be encoded in a modality; None where all of it comes as vectors."""
    texts = any(isinstance(content, str) for content in contents)
    files = any(isinstance(content, bytes) for content in contents)
    if texts and files:
        raise FeatureError(f"the modality {name!r} holds both texts and pictures; give them two names")
    if texts:
        return "text"
    return "image" if files else None


def _encoder_for(
    name: str, kind: Kind | None, text_encoder: TextEncoder | None, image_encoder: ImageEncoder | None
) -> TextEncoder | ImageEncoder | None:
    if kind is None:
        return None
    encoder = text_encoder if kind == "text" else image_encoder
    if encoder is None:
        what = "texts" if kind == "text" else "pictures"
        raise FeatureError(f"the modality {name!r} holds {what}, and there is no {kind} encoder")
    return encoder


def _reference(kind: Kind, encoder: TextEncoder | ImageEncoder) -> EncoderRef:
    return EncoderRef(kind=kind, id=encoder.id, dim=encoder.dim, weights_sha256=encoder.weights_sha256)


def _encoded(
    dataset: Dataset,
    name: str,
    contents: Sequence[Content | None],
    encoder: TextEncoder | ImageEncoder | None,
    progress: Progress | None,
    cache_dir: Path | None,
) -> _Cells:
    file = None if cache_dir is None or encoder is None else _cache_file(cache_dir, dataset, name, encoder)
    cells = None if file is None or encoder is None else _cached(file, (len(contents), encoder.dim))
    if cells is None:
        cells = _encode(dataset, name, contents, encoder, progress)
        if file is not None:
            _store(file, cells)
    _count_unusable(dataset, name, contents, cells)
    return cells


def _count_unusable(dataset: Dataset, name: str, contents: Sequence[Content | None], cells: _Cells) -> None:
    """Say in one line for each reason what counts as missing although something is given."""
    left = [(row, contents[row]) for row in np.flatnonzero(~cells.valid).tolist() if contents[row] is not None]
    for kind, reason in _UNUSABLE.items():
        rows = [row for row, content in left if isinstance(content, kind)]
        if rows:
            named = ", ".join(dataset.items.id(row) for row in rows[:_NAMED])
            more = f" and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""
            log.warning("%s: %d %s and count as missing: %s%s", name, len(rows), reason, named, more)


def _encode(
    dataset: Dataset,
    name: str,
    contents: Sequence[Content | None],
    encoder: TextEncoder | ImageEncoder | None,
    progress: Progress | None,
) -> _Cells:
    dim = _dim(name, contents, encoder)
    vectors, valid = np.zeros((len(contents), dim), np.float32), np.zeros(len(contents), np.bool_)
    raw: list[int] = []
    for row, content in enumerate(contents):
        if isinstance(content, np.ndarray):
            vectors[row], valid[row] = content, content.any()
        elif content is not None:
            raw.append(row)
    for start in range(0, len(raw), _CHUNK):
        any_encoder: Encoder[str | Image.Image] = encoder  # type: ignore[assignment]  # `_kind` chose it to fit
        usable = list(_usable(dataset, contents, raw[start : start + _CHUNK], any_encoder))
        rows = [row for row, _ in usable]
        if rows:
            vectors[rows] = any_encoder.encode([content for _, content in usable])
            valid[rows] = True
        if progress is not None:
            progress(name, min(start + _CHUNK, len(raw)), len(raw))
    return _Cells(vectors, valid)


def _dim(name: str, contents: Sequence[Content | None], encoder: TextEncoder | ImageEncoder | None) -> int:
    dims = {len(content) for content in contents if isinstance(content, np.ndarray)}
    if encoder is not None:
        dims.add(encoder.dim)
    if len(dims) != 1:
        raise FeatureError(f"the vectors of modality {name!r} have different lengths: {sorted(dims)}")
    return dims.pop()


def _usable(
    dataset: Dataset, contents: Sequence[Content | None], rows: Sequence[int], encoder: Encoder[str | Image.Image]
) -> Iterator[tuple[int, str | Image.Image]]:
    for row in rows:
        content = contents[row]
        if isinstance(content, str):
            if encoder.reads(content).known:
                yield row, content
        elif isinstance(content, bytes):
            image = _picture(content, dataset, row)
            if image is not None:
                yield row, image


def _picture(data: bytes, dataset: Dataset, row: int) -> Image.Image | None:
    try:
        return decode_image(data, max_pixels=MAX_PIXELS)
    except ImageError as error:
        log.info("the item %s: %s", dataset.items.id(row), error)
        return None


# --- the cache ---------------------------------------------------------------------------------------------------


def _cache_file(cache_dir: Path, dataset: Dataset, name: str, encoder: TextEncoder | ImageEncoder) -> Path | None:
    """Where the features are kept; nowhere for an encoder that the next training makes anew."""
    if encoder.id == CATALOGUE:
        return None
    named = (dataset.fingerprint, name, encoder.id, encoder.weights_sha256, str(_READING))
    key = sha256("\0".join(named).encode()).hexdigest()
    return cache_dir / f"features-{re.sub(r'[^A-Za-z0-9]+', '-', name)}-{key[:32]}.safetensors"


def _cached(file: Path, shape: tuple[int, int]) -> _Cells | None:
    if not file.is_file():
        return None
    try:
        arrays = load_file(file)
        vectors, valid = arrays["vectors"], arrays["valid"]
    except (OSError, KeyError, SafetensorError) as error:
        log.warning("the cached features %s cannot be used and are made again (%s)", file, error)
        return None
    return _Cells(vectors, valid) if vectors.shape == shape and valid.shape == shape[:1] else None


def _store(file: Path, cells: _Cells) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary:
        save_file({"vectors": cells.vectors, "valid": cells.valid}, temporary)
