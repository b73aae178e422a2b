"""What a picture tells beside itself, such as the place where it was taken, is not stored with it."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from models.encoders import decode_image, without_metadata
from tests.security.drawn import file_of, png
from tests.service.running import Running, base64_of, fresh_id

SECRET = b"52 degrees north"
ORIENTATIONS = range(1, 9)
SIZE = (96, 64)
GPS = 0x8825


def drawn(mode: str = "RGB", size: tuple[int, int] = SIZE) -> Image.Image:
    """A picture of which every corner is another: bright top left, dark bottom right."""
    y, x = np.mgrid[: size[1], : size[0]]
    shades = np.stack([255 - 200 * x / size[0], 255 - 200 * y / size[1], 128 + 0 * x], -1).astype(np.uint8)
    return Image.fromarray(shades).convert(mode)


def exif(orientation: int = 1) -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = orientation
    found[0x010E] = SECRET.decode()
    found.get_ifd(GPS)[2] = (52.0, 30.0, 0.0)
    found.get_ifd(GPS)[29] = SECRET.decode()
    return found


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/>%s</x:xmpmeta>' % SECRET


def jpeg(orientation: int = 1, mode: str = "RGB", **options: Any) -> bytes:
    """A JPEG with all that cameras and programs put in."""
    made = file_of(drawn(mode), "JPEG", quality=92, exif=exif(orientation), comment=SECRET, **options)
    body = b"Photoshop 3.0\0" + SECRET
    thumbnail = b"JFXX\0\x10" + file_of(drawn(size=(16, 16)), "JPEG", comment=SECRET)
    extra = b"".join(
        b"\xff" + marker + struct.pack(">H", len(content) + 2) + content
        for marker, content in (
            (b"\xed", body),
            (b"\xe0", thumbnail),
            (b"\xe2", b"MPF\0" + SECRET),
            (b"\xe5", b"\xff\xff" + SECRET),
        )
    )
    return made[:2] + extra + made[2:] + SECRET + made


def webp(orientation: int = 1, **options: Any) -> bytes:
    return file_of(drawn(), "WEBP", exif=exif(orientation), xmp=SECRET, **options)


def noted_png(orientation: int = 1, mode: str = "RGB") -> bytes:
    notes = PngImagePlugin.PngInfo()
    notes.add_text("Comment", SECRET.decode())
    notes.add_itxt("Place", SECRET.decode())
    notes.add(b"prVt", SECRET, after_idat=True)
    return file_of(drawn(mode), "PNG", pnginfo=notes, exif=exif(orientation)) + SECRET


def gif() -> bytes:
    frames = [drawn("P"), drawn("P").transpose(Image.Transpose.ROTATE_180)]
    stream = io.BytesIO()
    frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:], loop=3, duration=50, comment=SECRET)
    made = stream.getvalue()
    at = made.index(b"\x21\xf9")
    xmp = b"\x21\xff\x0bXMP DataXMP" + bytes([len(SECRET)]) + SECRET + b"\0"
    return made[:at] + xmp + made[at:] + SECRET


PICTURES: dict[str, bytes] = {
    "jpeg": jpeg(),
    "grey jpeg": jpeg(mode="L"),
    "cmyk jpeg": jpeg(mode="CMYK"),
    "progressive jpeg": jpeg(progressive=True),
    "png": noted_png(),
    "grey png": noted_png(mode="L"),
    "palette png": noted_png(mode="P"),
    "webp": webp(),
    "lossless webp": webp(lossless=True),
    "gif": gif(),
}


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(decode_image(data, max_pixels=10**8)).astype(int)


@pytest.mark.parametrize("name", PICTURES)
def test_what_is_no_picture_is_gone_and_no_pixel_changed(name: str) -> None:
    data = PICTURES[name]
    assert SECRET in data
    stored = without_metadata(data)
    assert SECRET not in stored
    opened = Image.open(io.BytesIO(stored))
    assert not dict(opened.getexif())
    assert not {"exif", "xmp", "comment", "photoshop", "XML:com.adobe.xmp", "mp"} & opened.info.keys()
    assert np.array_equal(pixels(stored), pixels(data))
    assert without_metadata(stored) == stored
    assert opened.n_frames == 2 if name == "gif" else True


def test_a_gif_goes_on_turning() -> None:
    before, after = (Image.open(io.BytesIO(data)) for data in (gif(), without_metadata(gif())))
    assert (after.info["loop"], after.info["duration"]) == (before.info["loop"], before.info["duration"])
    before.seek(1)
    after.seek(1)
    assert np.array_equal(np.asarray(before.convert("RGB")), np.asarray(after.convert("RGB")))


def test_an_animated_webp_keeps_its_frames() -> None:
    frames = [drawn(), drawn().transpose(Image.Transpose.ROTATE_180)]
    stream = io.BytesIO()
    frames[0].save(stream, "WEBP", save_all=True, append_images=frames[1:], exif=exif(), xmp=SECRET, loop=2)
    stored = without_metadata(stream.getvalue())
    assert SECRET not in stored
    opened = Image.open(io.BytesIO(stored))
    assert (opened.n_frames, opened.info["loop"]) == (2, 2)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_what_holds_nothing_else_stays_as_it_is(kind: str) -> None:
    data = file_of(drawn("P" if kind == "GIF" else "RGB"), kind)
    assert without_metadata(data) is data


def test_colours_stay_what_they_were() -> None:
    profile = b"a profile" * 20
    for kind in ("JPEG", "PNG", "WEBP"):
        for orientation in (1, 6):
            data = file_of(drawn(), kind, icc_profile=profile, exif=exif(orientation))
            assert Image.open(io.BytesIO(without_metadata(data))).info["icc_profile"] == profile


@pytest.mark.filterwarnings("ignore:Image appears to be a malformed MPO")  # the test's own reading of it
@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("make", [jpeg, noted_png, webp], ids=["jpeg", "png", "webp"])
def test_a_picture_is_stored_upright(make: Callable[[int], bytes], orientation: int) -> None:
    data = make(orientation)
    stored = without_metadata(data)
    assert SECRET not in stored
    opened = Image.open(io.BytesIO(stored))
    assert not dict(opened.getexif())
    assert opened.size == (SIZE if orientation < 5 else SIZE[::-1])
    wanted = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    difference = np.abs(np.asarray(opened.convert("RGB")).astype(int) - np.asarray(wanted))
    assert difference.mean() < 2
    assert difference.max() < 24
    assert np.abs(pixels(stored) - pixels(data)).mean() < 2  # for encoders it is the same picture


def test_an_orientation_in_xmp_counts_too() -> None:
    data = file_of(drawn(), "JPEG", xmp=XMP)
    stored = without_metadata(data)
    assert Image.open(io.BytesIO(stored)).size == SIZE[::-1]
    assert SECRET not in stored


def test_a_large_picture_is_turned_by_another_process() -> None:
    large = drawn(size=(2400, 1800))
    for kind in ("JPEG", "WEBP"):
        stored = without_metadata(file_of(large, kind, exif=exif(6)))
        opened = Image.open(io.BytesIO(stored))
        assert opened.size == (1800, 2400)
        corners = np.asarray(opened.convert("RGB").resize((18, 24)))
        assert corners[0, -1].sum() > corners[0, 0].sum() + 100
        assert not dict(opened.getexif())


def test_transparency_and_depth_survive_being_turned() -> None:
    ramp = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64, 1) * 16
    chunk = exif(6).tobytes()[6:]
    whole = png(16, 0, ramp)
    at = whole.index(b"IDAT") - 4
    turned = whole[:at] + struct.pack(">I", len(chunk)) + b"eXIf" + chunk + _crc(b"eXIf" + chunk) + whole[at:]
    stored = Image.open(io.BytesIO(without_metadata(turned)))
    assert stored.mode == "I;16"
    assert np.array_equal(np.asarray(stored), np.rot90(ramp[..., 0], -1))
    half = drawn("RGBA")
    half.putalpha(100)
    alpha = Image.open(io.BytesIO(without_metadata(file_of(half, "PNG", exif=exif(6)))))
    assert alpha.mode == "RGBA"
    assert alpha.getpixel((0, 0))[3] == 100  # type: ignore[index]


def _crc(data: bytes) -> bytes:
    return struct.pack(">I", zlib.crc32(data))


@pytest.mark.parametrize("name", PICTURES)
def test_bytes_that_are_cut_or_changed_are_no_fault(name: str) -> None:
    rng, data = np.random.default_rng(1), PICTURES[name]
    for _ in range(200):
        changed = bytearray(data)
        for place in rng.integers(0, len(data), 3):
            changed[place] = rng.integers(0, 256)
        kept = bytes(changed[: rng.integers(1, len(data))])
        try:
            decode_image(kept, max_pixels=10**6)
        except ValueError:
            continue
        without_metadata(kept)


@pytest.mark.parametrize("path", ["json", "multipart", "batch", "patch"])
def test_the_service_stores_and_answers_it_so(running: Running, path: str) -> None:
    item, data = fresh_id(), jpeg(6)
    body = {"id": item, "modalities": {"image": base64_of(data)}}
    if path == "json":
        running.post("/items", body, status=201)
    elif path == "batch":
        running.post("/items/batch", {"items": [body]})
    elif path == "patch":
        running.create(id=item, title="a mug")
        running.patch(item, {"modalities": {"image": base64_of(data)}})
    else:
        files = {"item": (None, json.dumps({"id": item}), "application/json"), "image": ("a.jpg", data, "image/jpeg")}
        assert running.client.post("/items", files=files).status_code == 201
    answer = running.client.get(f"/items/{item}/media/image")
    assert answer.headers["content-type"] == "image/jpeg"
    assert SECRET not in answer.content
    opened = Image.open(io.BytesIO(answer.content))
    assert opened.size == SIZE[::-1]
    assert not dict(opened.getexif())
    upright = running.create(modalities={"image": base64_of(answer.content)})["id"]
    one, other = running.vector(item, "image"), running.vector(upright, "image")
    assert np.dot(one, other) / np.linalg.norm(one) / np.linalg.norm(other) > 0.99
