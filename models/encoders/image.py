"""Pictures: preparing them for networks, and torchvision networks as feature extractors."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from threading import Lock
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
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

# --- preparing ---------------------------------------------------------------------------------------------------


def prepare_image(image: Image.Image, size: int) -> NDArray[np.float32]:
    """An RGB picture -> `[1, 3, size, size]`, values / 255 minus ImageNet's mean over its standard deviation.

    The picture is squeezed to a square: nothing is cropped off a product, and no border is added that networks never
    saw in training.
    """
    pixels = resized(image, size).astype(np.float32) / 255
    return np.ascontiguousarray(((pixels - IMAGENET_MEAN) / IMAGENET_STD).transpose(2, 0, 1)[None])


def resized(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """What `prepare_image` reads of a picture, a quarter as large: bytes `[size, size, 3]`."""
    return np.array(image.resize((size, size), Image.Resampling.BILINEAR))


def normalised(pixels: Tensor) -> Tensor:
    """Bytes `[n, size, size, 3]` as `resized` gives them -> `[n, 3, size, size]` as `prepare_image` does."""
    values = pixels.permute(0, 3, 1, 2).float() / 255
    mean, deviation = (torch.from_numpy(part)[:, None, None] for part in (IMAGENET_MEAN, IMAGENET_STD))
    return (values - mean) / deviation


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
