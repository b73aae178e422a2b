"""Trains the catalogue's own image encoder from its picture-text pairs.

Two losses on the same unit vectors, both InfoNCE (van den Oord et al., arXiv 1807.03748): a picture must find its text
among the batch's texts and the other way round (CLIP, Radford et al., ICML 2021), where the text side is a learned
projection of the fixed text encoder's vectors; and two views of a picture must find each other (SimCLR, Chen et al.,
ICML 2020), which is all that a picture without text can teach.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

from models.arrays import Array
from models.encoders import CatalogueNetwork, CatalogueNetworkConfig, prepare_image

MIN_PAIRS = 32
Progress = Callable[[int, int], None]


class CatalogueEncoderConfig(BaseModel):
    """How the encoder is trained. `max_steps` bounds the time on large catalogues.

    `threads` are torch's. The network is so small that several wait for each other at every step: on a machine with
    other work to do, two took eight times as long as one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    network: CatalogueNetworkConfig = CatalogueNetworkConfig()
    epochs: int = Field(20, ge=1)
    max_steps: int = Field(1000, ge=1)
    batch_size: int = Field(128, ge=2)
    learning_rate: float = Field(3e-3, gt=0)
    weight_decay: float = Field(0.05, ge=0)
    temperature: float = Field(0.2, gt=0)
    agreement_weight: float = Field(0.1, ge=0, description="of the two views' loss beside the picture-text loss")
    seed: int = 0
    threads: int = Field(1, ge=1)


class TooFewPairsError(ValueError):
    """Not enough pictures with a text to learn from; the message is one sentence."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture to learn from, and the text encoder's vector of its item's text, or None where it has none."""

    image: Image.Image
    text: Array | None


@dataclass(frozen=True)
class TrainedCatalogueEncoder:
    """The network, and the projection that takes text vectors `[n, t]` into its space (for evaluation only)."""

    network: CatalogueNetwork
    text_projection: nn.Module

    def project_texts(self, vectors: Array) -> Array:
        """Text vectors `[n, t]` -> unit vectors `[n, embedding_size]` in the pictures' space."""
        with torch.inference_mode():
            projected = functional.normalize(self.text_projection(torch.from_numpy(vectors)))
        return np.asarray(projected, np.float32)


def train_catalogue_encoder(
    pictures: Sequence[Picture],
    config: CatalogueEncoderConfig | None = None,
    *,
    progress: Progress | None = None,
) -> TrainedCatalogueEncoder:
    """Train on these pictures and nothing else: withheld cells must not be among them.

    The same pictures, config and machine give the same weights. `progress` gets (steps done, steps in all).

    Raises:
        TooFewPairsError: fewer than 32 pictures come with a text.
    """
    config = config or CatalogueEncoderConfig()
    pairs = sum(picture.text is not None for picture in pictures)
    if pairs < MIN_PAIRS:
        raise TooFewPairsError(
            f"an image encoder of the catalogue's own needs at least {MIN_PAIRS} pictures with a text, and there are "
            f"{pairs}; use a pretrained one (torchvision:mobilenet_v2)"
        )
    with _torch_state(config):
        return _fit(pictures, config, progress or (lambda _done, _total: None))


@contextmanager
def _torch_state(config: CatalogueEncoderConfig) -> Iterator[None]:
    """Seed and thread count for the block, as they were afterwards."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        torch.set_num_threads(config.threads)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def _fit(pictures: Sequence[Picture], config: CatalogueEncoderConfig, progress: Progress) -> TrainedCatalogueEncoder:
    pixels, texts, has_text = _tensors(pictures, config.network.input_size)
    network = CatalogueNetwork(config.network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    projection = nn.Linear(texts.shape[1], config.network.embedding_size)
    parameters = [*network.parameters(), *projection.parameters()]
    steps = min(config.epochs * math.ceil(len(pixels) / config.batch_size), config.max_steps)
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, total_steps=steps, pct_start=0.15)
    for step, rows in enumerate(_batches(len(pixels), config.batch_size, steps), start=1):
        paired = has_text[rows]
        first, second = network(_views(pixels[rows])).chunk(2)  # [b, d] each
        loss = config.agreement_weight * _info_nce(first, second, config.temperature)
        if int(paired.sum()) > 1:
            projected = functional.normalize(projection(texts[rows][paired]))  # [p, d]
            for view in (first, second):
                loss = loss + _info_nce(view[paired], projected, config.temperature) / 2
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
        schedule.step()
        progress(step, steps)
    return TrainedCatalogueEncoder(network.eval(), projection.eval())


def _tensors(pictures: Sequence[Picture], input_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures, a quarter larger than the network's input, `[n, 3, s, s]`; text vectors `[n, t]`; which have one."""
    side = input_size * 5 // 4
    pixels = np.concatenate([prepare_image(picture.image, side) for picture in pictures])
    dim = next(len(picture.text) for picture in pictures if picture.text is not None)
    texts = [np.zeros(dim, np.float32) if picture.text is None else picture.text for picture in pictures]
    has_text = torch.tensor([picture.text is not None for picture in pictures])
    return torch.from_numpy(pixels), torch.from_numpy(np.stack(texts)), has_text


def _batches(n: int, size: int, steps: int) -> Iterator[Tensor]:
    """Rows of `steps` batches; every picture once before any comes again. One epoch's rest is spread evenly."""
    done = 0
    while done < steps:
        for rows in torch.randperm(n).tensor_split(math.ceil(n / size)):
            if done == steps:
                return
            yield rows
            done += 1


def _views(pixels: Tensor) -> Tensor:
    """Two light random changes of each picture, `[b, 3, s, s]` -> `[2b, 3, 4s/5, 4s/5]`, first views first.

    Place, size, left-right, brightness and contrast change; hue does not, since texts name colours.
    """
    both = torch.cat([pixels, pixels])
    n, side = len(both), pixels.shape[-1] * 4 // 5
    zoom = torch.empty(n).uniform_(0.75, 1.0)
    flip = torch.where(torch.rand(n) < 0.5, -1.0, 1.0)
    shift = torch.empty(n, 2).uniform_(-1, 1) * (1 - zoom)[:, None]
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = zoom * flip, zoom, shift
    grid = functional.affine_grid(theta, [n, 3, side, side], align_corners=False)
    views = functional.grid_sample(both, grid, padding_mode="border", align_corners=False)
    contrast = torch.empty(n, 1, 1, 1).uniform_(0.8, 1.2)
    brightness = torch.empty(n, 1, 1, 1).uniform_(-0.2, 0.2)
    return (views * contrast + brightness).contiguous(memory_format=torch.channels_last)


def _info_nce(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """Symmetric InfoNCE of two sets of unit vectors `[n, d]` whose rows belong together."""
    logits = a @ b.T / temperature  # [n, n]
    own = torch.arange(len(a))
    return (functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)) / 2
