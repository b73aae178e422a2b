"""Features of a dataset: every observed cell as a vector, whatever it came as.

Texts and pictures go through their encoders, ready vectors stay as they are. Encoding is the slow part, so what
encoders made is kept by the contents (`VectorCache`); a mask only chooses among the cells afterwards. Pictures are read
one at a time and never all held in memory.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from models.arrays import Array, Mask
from models.bundle import EncoderRef
from models.encoders import Encoder, ImageEncoder, ImageError, TextEncoder, decode_image
from models.modality import ModalBatch
from training.catalogue_encoder import Picture
from training.datasets.base import Contents, Dataset
from training.vector_cache import VectorCache, digest_of

log = logging.getLogger(__name__)

MAX_PIXELS = 20_000_000
Progress = Callable[[str, int, int], None]
Kind = Literal["text", "image"]

_CHUNK = 64
_KEPT_AT_ONCE = 4096  # cells whose vectors are put into the cache together; an interrupted encoding loses no more
_NAMED = 10  # of what cannot be used, listed by id in a warning
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
        cache_dir: where what encoders made is kept between runs.

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
        cells.vectors[~real] = 0
        features[name] = torch.from_numpy(cells.vectors)
        columns.append(torch.from_numpy(real))
        encoders[name] = None if kind is None or encoder is None else reference(kind, encoder)
    return ModalBatch(features, torch.stack(columns, dim=1)), encoders


@dataclass(frozen=True)
class CataloguePictures:
    """What the catalogue's own image encoder learns from: the observed pictures, with their items' observed texts.

    Attributes:
        digests: `[n, 64]` names each picture and its text by their bytes; the text's half is zero where there is none.
    """

    dataset: Dataset
    cells: tuple[tuple[str, int], ...]
    digests: NDArray[np.uint8]
    texts: Mapping[int, Array]

    def __len__(self) -> int:
        return len(self.cells)

    @property
    def pairs(self) -> int:
        """How many come with a text."""
        return sum(row in self.texts for _, row in self.cells)

    def draw(self, most: int, seed: int) -> CataloguePictures:
        """At most so many of them at random, with a text before those without."""
        if len(self) <= most:
            return self
        order = np.random.default_rng(seed).permutation(len(self))
        silent = np.array([self.cells[place][1] not in self.texts for place in order.tolist()])
        places = np.sort(order[np.argsort(silent, kind="stable")][:most])
        cells = tuple(self.cells[place] for place in places.tolist())
        return CataloguePictures(self.dataset, cells, self.digests[places], self.texts)

    def __iter__(self) -> Iterator[Picture]:
        """The pictures, decoded one after the other; broken ones are left out."""
        contents = {name: self.dataset.content(name) for name, _ in self.cells}
        for name, row in self.cells:
            image = _picture(contents[name][row], self.dataset, row)
            if image is not None:
                yield Picture(image, self.texts.get(row))


def catalogue_pictures(
    dataset: Dataset,
    observed: Mask,
    text_encoder: TextEncoder,
    *,
    progress: Progress | None = None,
    cache_dir: Path | None = None,
) -> CataloguePictures:
    """What the catalogue's own image encoder learns from.

    Args: as for `encode_dataset`.
    """
    texts: dict[int, Array] = {}
    told: dict[int, bytes] = {}
    pictures: list[tuple[str, int]] = []
    for column, name in enumerate(dataset.modalities):
        contents = dataset.content(name)
        kind = _kind(name, contents)
        rows = np.flatnonzero(observed[:, column]).tolist()
        if kind == "image":
            pictures += [(name, row) for row in rows if contents.form(row) is bytes]
        elif kind == "text":
            cells = _encoded(dataset, name, contents, text_encoder, progress, cache_dir)
            for row in rows:
                if cells.valid[row] and row not in texts and contents.form(row) is str:
                    texts[row], told[row] = cells.vectors[row], digest_of(contents[row])
    seen = b"".join(digest_of(dataset.content(name)[row]) + told.get(row, bytes(32)) for name, row in pictures)
    digests = np.frombuffer(seen, np.uint8).reshape(len(pictures), 64)
    return CataloguePictures(dataset, tuple(pictures), digests, texts)


def _kind(name: str, contents: Contents) -> Kind | None:
    """What has to be encoded in a modality; None where all of it comes as vectors."""
    forms = {contents.form(row) for row in range(len(contents))}
    if str in forms and bytes in forms:
        raise FeatureError(f"the modality {name!r} holds both texts and pictures; give them two names")
    if str in forms:
        return "text"
    return "image" if bytes in forms else None


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


def reference(kind: Kind, encoder: TextEncoder | ImageEncoder) -> EncoderRef:
    """An encoder as a bundle's manifest names it."""
    return EncoderRef(kind=kind, id=encoder.id, dim=encoder.dim, weights_sha256=encoder.weights_sha256)


def _encoded(
    dataset: Dataset,
    name: str,
    contents: Contents,
    encoder: TextEncoder | ImageEncoder | None,
    progress: Progress | None,
    cache_dir: Path | None,
) -> _Cells:
    dim = _dim(name, contents, encoder)
    cells = _Cells(np.zeros((len(contents), dim), np.float32), np.zeros(len(contents), np.bool_))
    raw: list[int] = []
    for row in range(len(contents)):
        form = contents.form(row)
        if form is np.ndarray:
            cells.vectors[row] = contents[row]
            cells.valid[row] = cells.vectors[row].any()
        elif form is not None:
            raw.append(row)
    if raw and encoder is not None:
        any_encoder: Encoder[str | Image.Image] = encoder  # type: ignore[assignment]  # `_kind` chose it to fit
        _encode(dataset, name, contents, raw, any_encoder, cells, progress, VectorCache(cache_dir, any_encoder))
    _count_unusable(dataset, name, contents, cells)
    return cells


def _count_unusable(dataset: Dataset, name: str, contents: Contents, cells: _Cells) -> None:
    """Say in one line for each reason what counts as missing although something is given."""
    left = [(row, form) for row in np.flatnonzero(~cells.valid).tolist() if (form := contents.form(row)) is not None]
    for kind, reason in _UNUSABLE.items():
        rows = [row for row, form in left if form is kind]
        if rows:
            named = ", ".join(dataset.items.id(row) for row in rows[:_NAMED])
            more = f" and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""
            log.warning("%s: %d %s and count as missing: %s%s", name, len(rows), reason, named, more)


def _encode(
    dataset: Dataset,
    name: str,
    contents: Contents,
    raw: Sequence[int],
    encoder: Encoder[str | Image.Image],
    cells: _Cells,
    progress: Progress | None,
    cache: VectorCache,
) -> None:
    """Fill the rows `raw` of the cells: from the cache, or by the encoder."""
    digests = [digest_of(contents[row]) for row in raw]
    vectors, valid, known = cache.find(digests)
    rows = np.array(raw)
    cells.vectors[rows], cells.valid[rows] = vectors, valid
    del vectors
    first_with = {digest: place for place, digest in reversed(list(enumerate(digests)))}
    missing = [place for place in np.flatnonzero(~known).tolist() if first_with[digests[place]] == place]
    for first in range(0, len(missing), _KEPT_AT_ONCE):
        places = missing[first : first + _KEPT_AT_ONCE]
        for start in range(0, len(places), _CHUNK):
            usable = list(_usable(dataset, contents, [raw[place] for place in places[start : start + _CHUNK]], encoder))
            here = [row for row, _ in usable]
            if here:
                cells.vectors[here] = encoder.encode([content for _, content in usable])
                cells.valid[here] = True
            if progress is not None:
                progress(name, min(first + start + _CHUNK, first + len(places)), len(missing))
        fresh = rows[places]
        cache.add([digests[place] for place in places], cells.vectors[fresh], cells.valid[fresh])
    same = np.array([first_with[digest] for digest in digests])  # what is given several times is encoded once
    cells.vectors[rows], cells.valid[rows] = cells.vectors[rows[same]], cells.valid[rows[same]]


def _dim(name: str, contents: Contents, encoder: TextEncoder | ImageEncoder | None) -> int:
    dims = {len(contents[row]) for row in range(len(contents)) if contents.form(row) is np.ndarray}
    if encoder is not None:
        dims.add(encoder.dim)
    if len(dims) != 1:
        raise FeatureError(f"the vectors of modality {name!r} have different lengths: {sorted(dims)}")
    return dims.pop()


def _usable(
    dataset: Dataset, contents: Contents, rows: Sequence[int], encoder: Encoder[str | Image.Image]
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
