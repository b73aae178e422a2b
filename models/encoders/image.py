"""Pictures: decoding untrusted bytes, and torchvision networks as feature extractors."""

from __future__ import annotations

import importlib
import io
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from threading import Lock
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import BmpImagePlugin, GifImagePlugin, Image, ImageFile, JpegImagePlugin, PngImagePlugin, WebPImagePlugin
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from models.encoders.base import EncoderUnavailableError, NetworkEncoder
from models.encoders.runtime import compile_network

INPUT_SIZE = 224
FAMILIES = (
    "mobilenet_v2",
    "mobilenet_v3_",
    "resnet",
    "resnext",
    "wide_resnet",
    "efficientnet_",
    "shufflenet_",
)
IMAGENET_MEAN = np.array((0.485, 0.456, 0.406), np.float32)
IMAGENET_STD = np.array((0.229, 0.224, 0.225), np.float32)

# --- decoding ----------------------------------------------------------------------------------------------------


class ImageError(ValueError):
    """Bytes that cannot be used as a picture; the message is one sentence."""


_DECODED_SIDE = 512  # a JPEG larger than this in both directions is decoded at 1/2, 1/4 or 1/8 scale
_REDUCED_SIDE = 1024  # no side of any other picture is reduced below
_WHOLE_PIXELS = 4_000_000  # a picture with more is reduced before it becomes RGB
_BAND_PIXELS = 1_000_000  # and read in bands of so many pixels
_MAX_SCANS = 40  # of a progressive JPEG, which is gone through once for each; encoders write about ten
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
    with _image_errors(max_pixels):
        image = _opened(data, max_pixels)
        _check_size(image.size, max_pixels)
    if spend is not None:
        spend(image.width * image.height)
    with _image_errors(max_pixels):
        _check_kind(data, image)
        frame = image.tile[0].extents if isinstance(image, GifImagePlugin.GifImageFile) else None
        image.draft(None, (_DECODED_SIDE, _DECODED_SIDE))
        image.load()
        return _upright(_reduced(image, frame), image)


@contextmanager
def _image_errors(max_pixels: int) -> Iterator[None]:
    try:
        yield
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise ImageError(f"the picture has more than the {max_pixels:,} pixels that are accepted") from None
    except Exception as error:  # noqa: BLE001 - hostile bytes make Pillow raise nearly anything
        raise ImageError(f"the picture is broken or cut off: {error}") from None


def _opened(data: bytes, max_pixels: int) -> ImageFile.ImageFile:
    plugin = _plugin(data)
    if plugin is GifImagePlugin.GifImageFile:
        _check_size(_gif_canvas(data), max_pixels)  # Pillow may fill the canvas while it reads the header
    return plugin(io.BytesIO(data))


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
    made = Image.new("RGB", (-(-width // factor), -(-height // factor)))
    rows = height if is_whole else max(1, _BAND_PIXELS // (width * factor)) * factor
    for top in range(0, height, rows):
        band = image.crop((0, top, width, min(top + rows, height)))
        made.paste(_framed(_over_white(band), frame, top).reduce(factor), (0, top // factor))
    return made


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
    try:
        turn = _TURNS.get(source.getexif().get(_ORIENTATION, 1))
    except Exception:  # noqa: BLE001 - broken EXIF says nothing about the pixels
        turn = None
    return decoded if turn is None else decoded.transpose(turn)


def prepare_image(image: Image.Image, size: int) -> NDArray[np.float32]:
    """An RGB picture -> `[1, 3, size, size]`, values / 255 minus ImageNet's mean over its standard deviation.

    The picture is squeezed to a square: nothing is cropped off a product, and no border is added that networks never
    saw in training.
    """
    pixels = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR), np.float32) / 255
    return np.ascontiguousarray(((pixels - IMAGENET_MEAN) / IMAGENET_STD).transpose(2, 0, 1)[None])


# --- torchvision -------------------------------------------------------------------------------------------------

_importing = Lock()


def import_torchvision() -> ModuleType:
    """The torchvision package, also where its compiled operators do not fit the installed torch.

    The wheel built for CUDA refuses to be imported beside a CPU build of torch, since two detection operators are not
    registered; no network here uses them, so declaring them is enough. Call this before importing anything that
    imports torchvision itself.

    Raises:
        EncoderUnavailableError: torchvision is not installed or fails for another reason.
    """
    with _importing:
        try:
            return importlib.import_module("torchvision")
        except ImportError as error:
            raise EncoderUnavailableError(f"torchvision cannot be imported: {error}") from error
        except RuntimeError as error:
            if "torchvision::" not in str(error):
                raise EncoderUnavailableError(f"torchvision cannot be imported: {error}") from error
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]  # the half that was imported
        for operator in ("nms", "qnms"):
            torch.library.define(
                f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            )
        return importlib.import_module("torchvision")


class PooledFeatures(nn.Module):
    """A torchvision classifier without its head: `[n, 3, h, w]` -> the pooled last feature map `[n, channels]`."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        head = "fc" if hasattr(classifier, "fc") else "classifier"
        setattr(classifier, head, nn.Identity())
        self.backbone = classifier

    def forward(self, x: Tensor) -> Tensor:
        return self.backbone(x).flatten(1)  # type: ignore[no-any-return]


def torchvision_encoder(
    name: str, *, weights: Path | None = None, cache_dir: Path | None = None, threads: int = 1
) -> NetworkEncoder[Image.Image]:
    """A torchvision network as image encoder: the global average of its last feature map, at 224 x 224.

    Args:
        name: a torchvision model of one of `FAMILIES`, such as `mobilenet_v2`.
        weights: a safetensors file with the model's state dict; None takes torchvision's own from its hub.
        cache_dir: where the exported graph, and weights from the hub, are kept between starts.
        threads: how many pictures of a batch are encoded at a time.

    Raises:
        EncoderUnavailableError: the model is unknown, or its weights cannot be had or belong to another model.
    """
    if not name.startswith(FAMILIES):
        raise EncoderUnavailableError(
            f"torchvision:{name} is no image encoder here; the model must be one of {', '.join(FAMILIES)}..."
        )
    blob = _hub_weights(name, cache_dir) if weights is None else read_weights(weights, f"torchvision:{name}")
    digest = sha256(blob).hexdigest()
    network = compile_network(
        lambda: PooledFeatures(_classifier(name, blob, weights)),
        [prepare_image(_gradient(), INPUT_SIZE)],
        key=f"{name}-{INPUT_SIZE}-{digest[:16]}",
        cache_dir=cache_dir,
    )
    return NetworkEncoder(
        f"torchvision:{name}",
        digest,
        prepare=lambda image: prepare_image(image, INPUT_SIZE),
        network=network,
        blank=Image.new("RGB", (INPUT_SIZE, INPUT_SIZE)),
        threads=threads,
    )


def read_weights(path: Path, encoder: str) -> bytes:
    """A weights file's bytes; `encoder` names it in the error.

    Raises:
        EncoderUnavailableError: the file cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise EncoderUnavailableError(
            f"the weights of {encoder} cannot be read from {path}: {error.strerror}"
        ) from None


def _hub_weights(name: str, cache_dir: Path | None) -> bytes:
    """torchvision's default weights, as safetensors, so that a file saved from them has the same hash."""
    torchvision = import_torchvision()
    try:
        published = torchvision.models.get_model_weights(name).DEFAULT
        state = published.get_state_dict(
            progress=False, check_hash=True, weights_only=True, model_dir=None if cache_dir is None else str(cache_dir)
        )
    except (ValueError, OSError, RuntimeError) as error:
        raise EncoderUnavailableError(
            f"the weights of torchvision:{name} could not be downloaded ({error}), and no local file was given "
            "(LACUNA_IMAGE_WEIGHTS)"
        ) from error
    return save({key: value.contiguous() for key, value in state.items()})


def _classifier(name: str, blob: bytes, source: Path | None) -> nn.Module:
    torchvision = import_torchvision()
    try:
        model: nn.Module = torchvision.models.get_model(name, weights=None)
        state: Mapping[str, Tensor] = load(blob)
        model.load_state_dict(state)
    except (ValueError, SafetensorError, RuntimeError) as error:
        where = "the downloaded file" if source is None else str(source)
        reason = str(error).strip().splitlines()[-1].strip()
        raise EncoderUnavailableError(f"{where} holds no weights of torchvision:{name}: {reason}") from error
    return model


def _gradient() -> Image.Image:
    """A picture with something in it, to compare two runtimes on."""
    return Image.merge("RGB", [Image.linear_gradient("L"), Image.radial_gradient("L"), Image.linear_gradient("L")])
