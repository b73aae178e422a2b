"""Pictures byte by byte, in the kinds that a library would not write."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

SIDE = 64
MEGAPIXELS_20 = (5000, 4000)
_COLOURS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # channels of a PNG by its colour type


def disc(inside: Sequence[int], outside: Sequence[int]) -> np.ndarray:
    """`[SIDE, SIDE, channels]`: a disc on a ground."""
    y, x = np.mgrid[:SIDE, :SIDE]
    is_inside = (x - 32) ** 2 + (y - 32) ** 2 < 200
    return np.where(is_inside[..., None], np.array(inside), np.array(outside))


def png(
    depth: int, colour: int, pixels: np.ndarray, transparent: bytes | None = None, palette: bytes | None = None
) -> bytes:
    """A PNG of any depth and colour type, with the chunks tRNS and PLTE where given."""
    height, width, channels = pixels.shape
    assert channels == _COLOURS[colour]
    rows = pixels.reshape(height, width * channels)
    if depth == 16:
        packed = rows.astype(">u2").view(np.uint8).reshape(height, -1)
    elif depth == 8:
        packed = rows.astype(np.uint8)
    else:
        bits = (rows[..., None] >> np.arange(depth - 1, -1, -1)) & 1
        packed = np.packbits(bits.reshape(height, -1).astype(np.uint8), axis=1)
    raw = np.concatenate([np.zeros((height, 1), np.uint8), packed], axis=1).tobytes()
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))]
    chunks += [(b"PLTE", palette)] if palette is not None else []
    chunks += [(b"tRNS", transparent)] if transparent is not None else []
    chunks += [(b"IDAT", zlib.compress(raw)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def file_of(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The picture as a file."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def plain(kind: str, mode: str, size: tuple[int, int] = MEGAPIXELS_20, colour: Any = 0, **options: Any) -> bytes:
    """A picture of one colour, whose file is small however large it is."""
    return file_of(Image.new(mode, size, colour), kind, **options)
