"""Decoding untrusted bytes as pictures.

Run as a program, this decodes one picture in a process of its own, or turns it upright: see `_apart`. So it imports no
package of this project.
"""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import BmpImagePlugin, GifImagePlugin, Image, ImageFile, JpegImagePlugin, PngImagePlugin, WebPImagePlugin


class ImageError(ValueError):
    """Bytes that cannot be used as a picture; the message is one sentence."""


_DECODED_SIDE = 512  # a JPEG larger than this in both directions is decoded at 1/2, 1/4 or 1/8 scale
_REDUCED_SIDE = 1024  # no side of any other picture is reduced below
_WHOLE_PIXELS = 4_000_000  # a picture with more is reduced before it becomes RGB
_BAND_PIXELS = 1_000_000  # and read in bands of so many pixels
_MAX_SCANS = 40  # of a progressive JPEG, which is gone through once for each; encoders write about ten
_APART_PIXELS = 2_000_000  # a WebP with more is decoded in a process of its own, any with more is turned in one,
APART_SECONDS = 60  # which may take so long,
_REFUSED = 3  # and ends with this where it says what is wrong
_UPRIGHT = "upright"  # what the program is told where it is to turn a picture
_QUALITY = 90  # of a WebP that is turned
_ORIENTATION = 0x0112  # EXIF tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "I;16"})
_GREY_STEPS = {"L;2": 85, "L;4": 17}  # by which Pillow scales the greys of such a PNG to 0..255


def decode_image(data: bytes, *, max_pixels: int, spend: Callable[[int], None] | None = None) -> Image.Image:
    """The picture in `data`, as RGB over white, upright, first frame only.

    JPEG, PNG, WEBP, GIF and BMP are read, nothing else. Large pictures come at a fraction of their size, since encoders
    look at far smaller ones: JPEGs at 1/2, 1/4 or 1/8 (both sides stay at least 512 pixels), as they decode several
    times faster so; any other of more than four megapixels as means of squares of pixels (at least 1,024). Beside the
    decoder's own pixels (at most 4 bytes each, 16 for WEBP) this takes a few megabytes, but for a long thin picture.

    Args:
        spend: is told the number of pixels before anything is decoded, and may refuse by raising.

    Raises:
        ImageError: no picture, a broken or truncated one, a kind that is not read, or more than `max_pixels` pixels
            (told from the header, before anything is decoded).
    """
    with _image_errors():
        image = _opened(data, max_pixels)
    _check_size(image.size, max_pixels)
    if spend is not None:
        spend(image.width * image.height)
    if isinstance(image, WebPImagePlugin.WebPImageFile) and image.width * image.height > _APART_PIXELS:
        return _decoded_apart(data)
    return _decoded(data, image)


def _decoded(data: bytes, image: ImageFile.ImageFile) -> Image.Image:
    with _image_errors():
        _check_kind(data, image)
        frame = image.tile[0].extents if isinstance(image, GifImagePlugin.GifImageFile) else None
        image.draft(None, (_DECODED_SIDE, _DECODED_SIDE))
        image.load()
        return _upright(_reduced(image, frame), image)


def _decoded_apart(data: bytes) -> Image.Image:
    """A WebP decoded by another process. Pillow decodes it in one go, for a second if it is large, and keeps Python's
    lock meanwhile, so that no other thread could do anything."""
    done = _apart(data)
    return Image.frombytes("RGB", struct.unpack_from("<II", done), done[8:])


def _apart(data: bytes, *arguments: str) -> bytes:
    """What this program writes of a picture."""
    command = [sys.executable, "-P", __file__, *arguments]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, input=data, env=environment, capture_output=True, timeout=APART_SECONDS)
    except subprocess.TimeoutExpired:
        raise ImageError(f"the picture takes longer than {APART_SECONDS} s to decode") from None
    if done.returncode:
        raise ImageError(
            done.stderr.decode().strip() if done.returncode == _REFUSED else "the picture cannot be decoded"
        )
    return done.stdout


def _main(arguments: list[str]) -> int:
    data = sys.stdin.buffer.read()
    try:
        with _image_errors():
            image = _opened(data, sys.maxsize)
            if arguments == [_UPRIGHT]:
                sys.stdout.buffer.write(_turned(data, image))
                return 0
        decoded = _decoded(data, image)
    except ImageError as error:
        sys.stderr.write(str(error))
        return _REFUSED
    sys.stdout.buffer.write(struct.pack("<II", *decoded.size) + decoded.tobytes())
    return 0


def upright(data: bytes) -> bytes:
    """A picture that was decoded already, turned as its orientation (EXIF, XMP) says; as it is where it says nothing.

    A picture that is turned is encoded anew, a JPEG with its own tables; of an animation the first frame is left.

    Raises:
        ImageError: it cannot be turned.
    """
    with _image_errors():
        image = _opened(data, sys.maxsize)
        if _turn(image) is None:
            return data
        large = image.width * image.height > _APART_PIXELS
        return _apart(data, _UPRIGHT) if large else _turned(data, image)


def _turned(data: bytes, image: ImageFile.ImageFile) -> bytes:
    options: dict[str, Any] = {"icc_profile": image.info.get("icc_profile")}
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        options |= {"qtables": image.quantization, "subsampling": JpegImagePlugin.get_sampling(image)}
    elif isinstance(image, WebPImagePlugin.WebPImageFile):
        options |= {"lossless": b"VP8L" in data, "method": 0, "quality": _QUALITY}
    made = io.BytesIO()
    _upright(image, image).save(made, image.format, **options)
    return made.getvalue()


@contextmanager
def _image_errors() -> Iterator[None]:
    try:
        yield
    except ImageError:
        raise
    except Exception as error:  # noqa: BLE001 - hostile bytes make Pillow raise nearly anything
        raise ImageError(f"the picture is broken or cut off: {error}") from None


def _opened(data: bytes, max_pixels: int) -> ImageFile.ImageFile:
    plugin = _plugin(data)
    if plugin is GifImagePlugin.GifImageFile:
        _check_size(_gif_canvas(data), max_pixels)  # Pillow may fill the canvas while it reads the header
    try:
        return plugin(io.BytesIO(data))
    except Image.DecompressionBombError:
        raise ImageError(f"the picture has more than the {max_pixels:,} pixels that are accepted") from None


def _plugin(data: bytes) -> type[ImageFile.ImageFile]:
    """The reader for these bytes. `Image.open` is avoided: it warns about large pictures through global state."""
    if data.startswith(b"\xff\xd8\xff"):
        return JpegImagePlugin.JpegImageFile
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return PngImagePlugin.PngImageFile
    if data.startswith((b"GIF87a", b"GIF89a")):
        return GifImagePlugin.GifImageFile
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return WebPImagePlugin.WebPImageFile
    if data.startswith(b"BM"):
        return BmpImagePlugin.BmpImageFile
    raise ImageError("the picture is neither JPEG, PNG, WEBP, GIF nor BMP")


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise ImageError(
            f"the picture has {width} x {height} pixels, which is more than the {max_pixels:,} that are accepted"
        )


def _check_kind(data: bytes, image: ImageFile.ImageFile) -> None:
    """Refuse what would be read wrong, or for minutes."""
    if image.mode not in _MODES:
        raise ImageError(f"the picture is a {image.format} of the kind {image.mode}, which is not read; use 8-bit RGB")
    if isinstance(image, JpegImagePlugin.JpegImageFile) and data.count(b"\xff\xda") > _MAX_SCANS:
        raise ImageError(f"the picture is a JPEG of more than the {_MAX_SCANS} scans that are read")
    if isinstance(image, PngImagePlugin.PngImageFile) and "transparency" in image.info:
        _mend_transparent(image)


def _mend_transparent(image: PngImagePlugin.PngImageFile) -> None:
    """Have a PNG's transparent colour in the scale of its pixels, as Pillow has only that of some kinds."""
    kind = image.tile[0].args
    if kind == "RGB;16B":
        raise ImageError(
            "the picture is a 16-bit RGB PNG with a transparent colour (tRNS), which is not read; "
            "give it an alpha channel or 8 bits"
        )
    if kind in _GREY_STEPS:
        image.info["transparency"] *= _GREY_STEPS[kind]


def _gif_canvas(data: bytes) -> tuple[int, int]:
    """The screen of a GIF, enlarged where its first frame reaches beyond."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at = 13 + (3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0)
    while data[at] != ord(","):  # the first frame
        if data[at] == ord("!"):  # an extension: its label, then blocks that begin with their length
            at += 2
            while data[at]:
                at += data[at] + 1
        at += 1
    left, top, frame_width, frame_height = struct.unpack_from("<4H", data, at + 1)
    return max(width, left + frame_width), max(height, top + frame_height)


def _reduced(image: Image.Image, frame: tuple[int, int, int, int] | None) -> Image.Image:
    """RGB over white, reduced if the picture is large; only `frame` of it is painted, the rest is white."""
    width, height = image.size
    is_whole = width * height <= _WHOLE_PIXELS
    factor = 1 if is_whole else max(1, min(width, height) // _REDUCED_SIDE)
    reduced = Image.new("RGB", (-(-width // factor), -(-height // factor)))
    rows = height if is_whole else max(1, _BAND_PIXELS // (width * factor)) * factor
    for top in range(0, height, rows):
        band = image.crop((0, top, width, min(top + rows, height)))
        reduced.paste(_framed(_over_white(band), frame, top).reduce(factor), (0, top // factor))
    return reduced


def _framed(band: Image.Image, frame: tuple[int, int, int, int] | None, top: int) -> Image.Image:
    """A band that begins at the row `top`, white outside of the frame."""
    if frame is None or frame == (0, 0, band.width, band.height):
        return band
    left, upper, right, lower = frame
    inside = (left, max(upper - top, 0), right, min(lower - top, band.height))
    white = Image.new("RGB", band.size, "white")
    if inside[1] < inside[3]:
        white.paste(band.crop(inside), inside)
    return white


def _over_white(image: Image.Image) -> Image.Image:
    if image.mode == "I;16":  # 16-bit grey, which `convert` would clip instead of scaling
        deep = np.asarray(image)
        grey = (deep // 257).astype(np.uint8)
        transparent = image.info.get("transparency")
        if transparent is not None:
            grey[deep == transparent] = 255
        return Image.fromarray(grey).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    white = Image.new("RGB", layer.size, "white")
    white.paste(layer, mask=layer.getchannel("A"))
    return white


def _upright(decoded: Image.Image, source: Image.Image) -> Image.Image:
    turn = _turn(source)
    return decoded if turn is None else decoded.transpose(turn)


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        return _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # noqa: BLE001 - broken EXIF says nothing about the pixels
        return None


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
