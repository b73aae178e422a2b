"""A picture means what it shows over white, whatever it is made of, and costs no more than its kind must."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.encoders import ImageError, decode_image, decoding
from tests.security.drawn import MEGAPIXELS_20, SIDE, disc, file_of, plain, png

LIMIT = 20_000_000
GREY, COLOUR = (120,), (200, 40, 90)


def shown(data: bytes) -> np.ndarray:
    return np.asarray(decode_image(data, max_pixels=LIMIT)).astype(int)


def palette(*colours: tuple[int, int, int]) -> bytes:
    return bytes(value for colour in colours for value in colour)


def gif(**options: object) -> bytes:
    image = Image.fromarray(disc((1,), (0,))[..., 0].astype(np.uint8), "P")
    image.putpalette(palette((0, 0, 0), COLOUR))
    return file_of(image, "GIF", **options)


def of_frames(kind: str) -> bytes:
    frames = [Image.fromarray(disc((*colour, 255), (0, 0, 0, 0)).astype(np.uint8)) for colour in (COLOUR, (0, 0, 255))]
    return file_of(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)


CLEAR = Image.fromarray(disc((*COLOUR, 255), (0, 0, 0, 0)).astype(np.uint8))
GREYS = disc(GREY, (255,)).repeat(3, axis=2)
COLOURS = disc(COLOUR, (255, 255, 255))
TRANSPARENT = {
    "1-bit grey, white": (png(1, 0, disc((0,), (1,)), b"\0\1"), disc((0, 0, 0), (255, 255, 255))),
    "1-bit grey, black": (png(1, 0, disc((1,), (0,)), b"\0\0"), disc((255, 255, 255), (255, 255, 255))),
    "2-bit grey": (png(2, 0, disc((1,), (2,)), b"\0\2"), disc((85, 85, 85), (255, 255, 255))),
    "4-bit grey": (png(4, 0, disc((8,), (3,)), b"\0\3"), disc((136, 136, 136), (255, 255, 255))),
    "8-bit grey": (png(8, 0, disc(GREY, (0,)), b"\0\0"), GREYS),
    "16-bit grey": (png(16, 0, disc((120 * 257,), (0,)), b"\0\0"), GREYS),
    "16-bit grey, by its low bits": (png(16, 0, disc((120 * 257,), (120 * 257 + 1,)), b"\x78\x79"), GREYS),
    "8-bit RGB": (png(8, 2, disc(COLOUR, (1, 2, 3)), b"\0\1\0\2\0\3"), COLOURS),
    "palette": (png(8, 3, disc((1,), (0,)), b"\0", palette((9, 9, 9), COLOUR)), COLOURS),
    "palette of 1 bit": (png(1, 3, disc((1,), (0,)), b"\0", palette((9, 9, 9), COLOUR)), COLOURS),
    "grey with alpha": (png(8, 4, disc((*GREY, 255), (0, 0))), GREYS),
    "16-bit grey with alpha": (png(16, 4, disc((120 * 257, 65535), (0, 0))), GREYS),
    "RGBA": (png(8, 6, disc((*COLOUR, 255), (0, 0, 0, 0))), COLOURS),
    "16-bit RGBA": (png(16, 6, disc((*(257 * c for c in COLOUR), 65535), (0, 0, 0, 0))), COLOURS),
    "GIF": (gif(transparency=0), COLOURS),
    "WebP": (file_of(CLEAR, "WEBP", lossless=True), COLOURS),
    "animated WebP": (of_frames("WEBP"), COLOURS),
    "animated PNG": (of_frames("PNG"), COLOURS),
}
OPAQUE = {
    "1-bit grey": (png(1, 0, disc((0,), (1,))), disc((0, 0, 0), (255, 255, 255))),
    "16-bit grey": (png(16, 0, disc((120 * 257,), (65535,))), GREYS),
    "16-bit RGB": (png(16, 2, disc([257 * c for c in COLOUR], (65535,) * 3)), COLOURS),
    "GIF": (gif(), disc(COLOUR, (0, 0, 0))),
}


@pytest.mark.parametrize("name", TRANSPARENT)
def test_what_is_transparent_is_white(name: str) -> None:
    data, expected = TRANSPARENT[name]
    assert np.abs(shown(data) - expected).max() <= 1


@pytest.mark.parametrize("name", OPAQUE)
def test_what_is_not_transparent_is_as_it_is(name: str) -> None:
    data, expected = OPAQUE[name]
    assert np.abs(shown(data) - expected).max() <= 1


def test_a_gif_is_white_where_its_first_frame_is_not() -> None:
    whole = plain("GIF", "P", (SIDE, SIDE), 0)
    at = whole.index(b",", 13 + 3 * 2 ** ((whole[10] & 7) + 1))
    wider = whole[:6] + struct.pack("<HH", 2 * SIDE, 2 * SIDE) + whole[10:]
    moved = wider[: at + 1] + struct.pack("<HH", 10, 20) + wider[at + 5 :]
    expected = np.full((2 * SIDE, 2 * SIDE, 3), 255)
    expected[20 : 20 + SIDE, 10 : 10 + SIDE] = 0
    np.testing.assert_array_equal(shown(moved), expected)


@pytest.mark.parametrize("transform", [0, 2])
def test_a_jpeg_of_four_inks(transform: int) -> None:
    """With Adobe's mark: as CMYK (0), and as YCCK (2), both with inverted inks."""
    red = Image.merge("CMYK", [Image.new("L", (SIDE, SIDE), ink) for ink in (0, 255, 255, 0)])
    data = file_of(red, "JPEG", quality=100)
    at = data.index(b"Adobe")
    told = data[: at + 11] + bytes([transform]) + data[at + 12 :]
    if transform:  # the same three channels, now said to be luminance and differences of colour
        told_inks = np.asarray(Image.open(io.BytesIO(told)))[0, 0].astype(int)
        expected = np.clip((255 - told_inks[:3]) * (255 - told_inks[3]) / 255, 0, 255)
    else:
        expected = np.array((255, 0, 0))
    assert np.abs(shown(told)[0, 0] - expected).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(16, 8), (3000, 1500)], ids=["small", "reduced"])
def test_the_orientation_is_applied(orientation: int, size: tuple[int, int]) -> None:
    upright = Image.new("RGB", size, "white")
    upright.paste("red", (0, 0, size[0] // 2, size[1] // 2))
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's transpositions
    stored = upright.transpose(Image.Transpose(undo[orientation])) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    seen = Image.fromarray(shown(file_of(stored, "PNG", exif=exif.tobytes())).astype(np.uint8))
    wanted = upright.resize(seen.size, Image.Resampling.BOX)
    np.testing.assert_array_equal(np.asarray(seen), np.asarray(wanted))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (png(16, 2, disc((0, 0, 0), (9, 9, 9)), bytes(6)), "16-bit RGB PNG"),
        (file_of(Image.new("F", (4, 4)), "TIFF"), "neither JPEG, PNG, WEBP, GIF nor BMP"),
        (file_of(Image.new("I", (4, 4)), "TIFF"), "neither JPEG, PNG, WEBP, GIF nor BMP"),
    ],
    ids=["16-bit RGB with tRNS", "F", "I"],
)
def test_what_would_be_read_wrong_is_refused(data: bytes, says: str) -> None:
    with pytest.raises(ImageError, match=says):
        decode_image(data, max_pixels=LIMIT)


def test_a_jpeg_of_many_scans_is_refused_at_once() -> None:
    """Each scan of a few bytes goes through all of the picture once more: 271 KB took 14 s, and 6 MB hours."""
    whole = plain("JPEG", "RGB", progressive=True, quality=50, subsampling=0)
    last = whole[whole.rindex(b"\xff\xda") : -2]
    begun = time.perf_counter()
    with pytest.raises(ImageError, match="scans"):
        decode_image(whole[:-2] + 300 * last + whole[-2:], max_pixels=LIMIT)
    assert time.perf_counter() - begun < 1
    assert shown(whole[:-2] + 5 * last + whole[-2:]).max() == 0


# --- large ones -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("size", [(2600, 2100), (1100, 4001), (9000, 500)])
def test_a_large_picture_is_that_picture_reduced(mode: str, size: tuple[int, int]) -> None:
    small = np.random.default_rng(3).integers(0, 256, (5, 7, 4)).astype(np.uint8)
    smooth = Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(smooth.convert("L")).astype(np.uint16) * 257)
    else:
        image = smooth if mode == "RGBA" else smooth.convert("RGB").convert(mode)
    data = file_of(image, "PNG", compress_level=1)
    seen = decode_image(data, max_pixels=LIMIT)
    over_white = Image.new("RGBA", size, "white")
    over_white.alpha_composite(smooth if mode == "RGBA" else image_as_rgba(image))
    wanted = np.asarray(over_white.convert("RGB").resize((64, 64), Image.Resampling.BILINEAR)).astype(int)
    got = np.asarray(seen.resize((64, 64), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(got - wanted).max() <= 4
    assert min(seen.size) >= min(1024, *size)
    assert seen.width * seen.height < 4_600_000


def image_as_rgba(image: Image.Image) -> Image.Image:
    if image.mode == "I;16":
        return Image.fromarray((np.asarray(image) // 257).astype(np.uint8)).convert("RGBA")
    return image.convert("RGBA")


WHILE_DECODING = """
import os, sys
from models.encoders import decode_image
from tests.security.watching import forget_peak, memory_mib
data = sys.stdin.buffer.read()
before = forget_peak(os.getpid())
decode_image(data, max_pixels=20_000_000)
print(memory_mib(os.getpid(), "VmHWM") - before)
"""


@pytest.mark.parametrize(
    ("data", "most_mib"),
    [
        (plain("PNG", "1", colour=1), 50),
        (plain("PNG", "P", transparency=0), 50),
        (plain("PNG", "I;16"), 80),
        (plain("PNG", "RGBA", colour=(1, 2, 3, 4)), 120),
        (plain("GIF", "P"), 50),
        (plain("JPEG", "RGB", progressive=True, subsampling=0), 140),
        (plain("WEBP", "RGBA", lossless=True, method=0), 50),
    ],
    ids=["PNG of one bit", "PNG with palette", "PNG of 16 bits", "PNG of RGBA", "GIF", "JPEG", "WebP"],
)
def test_the_largest_picture_takes_little_more_than_its_pixels(data: bytes, most_mib: int) -> None:
    assert MEGAPIXELS_20[0] * MEGAPIXELS_20[1] == LIMIT
    done = subprocess.run(
        [sys.executable, "-c", WHILE_DECODING], input=data, stdout=subprocess.PIPE, check=True, timeout=120
    )
    assert float(done.stdout) < most_mib


APART = """
import os, runpy, sys
from tests.security.watching import forget_peak, memory_mib
import numpy, PIL.WebPImagePlugin
before = forget_peak(os.getpid())
try:
    runpy.run_path(sys.argv[1], run_name="__main__")
finally:
    print(memory_mib(os.getpid(), "VmHWM") - before, file=sys.stderr)
"""


def test_the_process_that_decodes_a_large_webp_takes_little_more_than_its_pixels() -> None:
    data = plain("WEBP", "RGBA", lossless=True, method=0)
    command = [sys.executable, "-c", APART, decoding.__file__]
    done = subprocess.run(command, input=data, capture_output=True, check=True, timeout=120)
    assert 200 < float(done.stderr) < 360


@pytest.mark.parametrize("size", [(1400, 1400), (1500, 1500), (3000, 2000)])
def test_a_large_webp_is_decoded_as_a_small_one(size: tuple[int, int]) -> None:
    small = np.random.default_rng(3).integers(0, 256, (5, 7, 4)).astype(np.uint8)
    image = Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6
    data = file_of(image, "WEBP", lossless=True, method=0, exact=True, exif=exif.tobytes())
    white = Image.new("RGBA", size, "white")
    white.alpha_composite(image)
    factor = max(1, min(size) // 1024) if size[0] * size[1] > 4_000_000 else 1
    expected = white.convert("RGB").reduce(factor).transpose(Image.Transpose.ROTATE_270)
    assert np.abs(shown(data) - np.asarray(expected).astype(int)).max() <= 1


def test_a_large_webp_that_is_broken_is_refused() -> None:
    noise = np.random.default_rng(3).integers(0, 256, (1500, 1500, 3)).astype(np.uint8)
    data = file_of(Image.fromarray(noise), "WEBP", lossless=True, method=0)
    with pytest.raises(ImageError, match="broken or cut off"):
        decode_image(data[: len(data) // 2], max_pixels=LIMIT)
    half = len(data) // 4 * 2  # and says that this is all
    told = b"RIFF" + struct.pack("<I", half - 8) + data[8:16] + struct.pack("<I", half - 20) + data[20:half]
    with pytest.raises(ImageError, match="broken or cut off"):
        decode_image(told, max_pixels=LIMIT)


def test_a_process_that_dies_or_hangs_is_no_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = plain("WEBP", "RGBA", (2000, 2000), lossless=True, method=0)
    monkeypatch.setattr(decoding, "__file__", "/nowhere")
    with pytest.raises(ImageError, match="cannot be decoded"):
        decode_image(data, max_pixels=LIMIT)
    (tmp_path / "hanging").write_text("import time\ntime.sleep(60)")
    monkeypatch.setattr(decoding, "__file__", str(tmp_path / "hanging"))
    monkeypatch.setattr(decoding, "APART_SECONDS", 0.01)
    with pytest.raises(ImageError, match="longer than"):
        decode_image(data, max_pixels=LIMIT)
