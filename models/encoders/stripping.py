"""Pictures without what is none of the picture: EXIF and GPS, XMP, comments, thumbnails, whatever follows its end.

Files are taken apart into the pieces of their formats, and put together of those that a decoder needs for the pixels
and their colours; the pixels are not encoded anew, but for a picture whose orientation goes with its EXIF, which is
turned first.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from contextlib import suppress

from models.encoders.decoding import ImageError, upright

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_KEPT = frozenset(
    (
        b"IHDR",
        b"PLTE",
        b"IDAT",
        b"IEND",
        b"tRNS",
        b"cHRM",
        b"gAMA",
        b"iCCP",
        b"sBIT",
        b"sRGB",
        b"cICP",
        b"bKGD",
        b"pHYs",
    )
) | {b"acTL", b"fcTL", b"fdAT"}
_WEBP_KEPT = frozenset((b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF", b"ICCP"))
_WEBP_SAYS_METADATA = 0x08 | 0x04  # flags of VP8X: EXIF, XMP
_WEBP_FRAME = 16  # bytes of ANMF before the chunks of its frame
_GIF_LOOPS = (b"NETSCAPE2.0", b"ANIMEXTS1.0")
# Of a JPEG, tables, frames and scans; and of its applications' segments those that tell of colours, by how they begin.
_SCAN, _END = 0xDA, 0xD9
_JPEG_KEPT = frozenset((*range(0xC0, 0xD0), _SCAN, 0xDB, 0xDC, 0xDD, 0xDE, 0xDF))
_JPEG_APPLICATIONS = {0xE2: b"ICC_PROFILE\0", 0xEE: b"Adobe"}
_JFIF, _JFIF_BYTES = b"JFIF\0", 12  # before the size of its thumbnail
_MARKER = re.compile(rb"\xff+([^\x00\xff])")
_AFTER_SCAN = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]")


def without_metadata(data: bytes) -> bytes:
    """The picture in `data`, which `decode_image` has taken, upright and without what is none of it.

    The same bytes where there is nothing to take away. A picture that cannot be turned stays as it lies.
    """
    stripped = _stripped(data)
    if stripped == data:
        return data
    with suppress(ImageError):
        turned = upright(data)
        return stripped if turned is data else _stripped(turned)
    return stripped


def _stripped(data: bytes) -> bytes:
    """What the formats' own structure tells to be the picture; where that breaks off, the picture ends."""
    if data.startswith(b"\xff\xd8"):
        return b"".join(_jpeg(data))
    if data.startswith(_PNG):
        return b"".join(_png(data))
    if data.startswith(b"GIF8"):
        return b"".join(_gif(data))
    if data.startswith(b"RIFF"):
        chunks = b"".join(_webp(data, 12, min(len(data), 8 + struct.unpack_from("<I", data, 4)[0])))
        return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks
    return data  # BMP has no place for such


def _jpeg(data: bytes) -> Iterator[bytes]:
    """Segments: FF, a marker, a length that counts itself; after a scan's header, its data up to the next marker."""
    yield data[:2]
    at = 2
    while (found := _MARKER.search(data, at)) and (marker := found[1][0]) != _END:
        at = found.end()
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:  # these have no length
            continue
        end = at + int.from_bytes(data[at : at + 2], "big")
        body = data[at + 2 : end]
        if marker in _JPEG_KEPT or (marker in _JPEG_APPLICATIONS and body.startswith(_JPEG_APPLICATIONS[marker])):
            yield b"\xff" + found[1] + data[at:end]
        elif marker == 0xE0 and body.startswith(_JFIF):
            yield (
                b"\xff\xe0"
                + struct.pack(">H", _JFIF_BYTES + 4)
                + body[:_JFIF_BYTES].ljust(_JFIF_BYTES, b"\0")
                + b"\0\0"
            )
        at = max(end, at)
        if marker == _SCAN:
            next_marker = _AFTER_SCAN.search(data, at)
            end = next_marker.start() if next_marker else len(data)
            yield data[at:end]
            at = end
    yield b"\xff\xd9"


def _png(data: bytes) -> Iterator[bytes]:
    """Chunks: a length, a name, as many bytes, a checksum."""
    yield _PNG
    at, name = len(_PNG), b""
    while name != b"IEND" and at + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        if name in _PNG_KEPT:
            yield data[at : at + 12 + length]
        at += 12 + length


def _webp(data: bytes, at: int, end: int) -> Iterator[bytes]:
    """Chunks: a name, a length, as many bytes, filled up to an even number."""
    while at + 8 <= end:
        name, length = struct.unpack_from("<4sI", data, at)
        body = data[at + 8 : min(at + 8 + length, end)]
        if name == b"VP8X":
            body = bytes(flags & ~_WEBP_SAYS_METADATA for flags in body[:1]) + body[1:]
        elif name == b"ANMF":
            body = body[:_WEBP_FRAME] + b"".join(_webp(body, _WEBP_FRAME, len(body)))
        if name in _WEBP_KEPT:
            yield struct.pack("<4sI", name, len(body)) + body + b"\0" * (len(body) % 2)
        at += 8 + length + length % 2


def _gif(data: bytes) -> Iterator[bytes]:
    """The screen and its colours, then frames and extensions, each of blocks that begin with their length."""
    at = 13 + _colours(data, 10)
    yield data[:at]
    while at < len(data) and data[at] != 0x3B:
        start, kind = at, data[at]
        if kind == 0x2C:
            at = _after_blocks(data, at + 11 + _colours(data, at + 9))
            yield data[start:at]
        elif kind == 0x21:
            label = data[at + 1 : at + 2]
            at = _after_blocks(data, at + 2)
            if label == b"\xf9" or (label == b"\xff" and data[start + 3 : start + 14] in _GIF_LOOPS):
                yield data[start:at]
        else:
            at += 1
    yield b"\x3b"


def _colours(data: bytes, at: int) -> int:
    """The bytes of the colour table that a GIF's flags announce."""
    flags = data[at] if at < len(data) else 0
    return 3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0


def _after_blocks(data: bytes, at: int) -> int:
    while at < len(data) and data[at]:
        at += data[at] + 1
    return min(at + 1, len(data))
